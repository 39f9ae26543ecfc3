"""The recipes of docs/moving have the losses of TRL 1.16's own code: same weights, rows and sampled texts, one update.

TRL makes its update first and its texts are recorded. The engine `replayed` then returns these texts in a run of the recipe.
"""

import contextlib
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from redistill.cli.main import main
from redistill.storage import files
from tests.worlds import LLAMA, rows, write_model, write_rows

pytestmark = pytest.mark.trl

PAGES = Path(__file__).parents[2] / "docs/moving"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
NUM_ROWS, RESPONSE_TOKENS = 6, 16
TRAINING = {
    "max_steps": 1,
    "per_device_train_batch_size": NUM_ROWS,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": [],
    "save_strategy": "no",
}
ENGINE = """
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from redistill.contracts import EngineCapabilities, Generation


@dataclass(frozen=True, kw_only=True)
class Replayed:
    capabilities: ClassVar[EngineCapabilities] = EngineCapabilities(deterministic=True)
    path: str

    def build(self, tools):
        return ReplayedEngine(Path(self.path), tools.end_ids)


class ReplayedEngine:
    capabilities = Replayed.capabilities

    def __init__(self, path, end_ids):
        self._texts = {tuple(prompt): tuple(text) for prompt, text in json.loads(path.read_text())}
        self._end_ids = end_ids

    def sync(self, student, step):
        pass

    def generate(self, requests, sampling):
        texts = [self._texts[request.prompt_ids] for request in requests]
        return [Generation(token_ids=text, finished=text[-1] in self._end_ids) for text in texts]
"""

DIVERGENCES = {
    0.0: "forward_kl",
    0.5: {"kind": "jensen_shannon", "teacher_weight": 0.5},
    1.0: "reverse_kl",
}
"""TRL's beta -> the divergence that the pages name for it."""
OFF = {"top_k": 0, "min_p": None, "repetition_penalty": 1.0}
"""Arguments whose default is "off" on the page."""

Texts = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a student and conversations; the models differ by more than a nat per token."""
    folder = tmp_path_factory.mktemp("trl")
    for name, seed in (("teacher", 1), ("student", 2)):
        write_model(folder / name, LLAMA, seed, initializer_range=0.4)
        files.write_text(folder / name / "chat_template.jinja", TEMPLATE)
    write_rows(folder / "train.jsonl", conversations(0))
    write_rows(folder / "validation.jsonl", conversations(NUM_ROWS))
    files.write_text(folder / "replayed.py", ENGINE)
    return folder


def conversations(offset: int) -> list[dict[str, Any]]:
    turns = [(row["instruction"], row["output"]) for row in rows(NUM_ROWS, offset)]
    return [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]} for asked, answer in turns
    ]


def models(world: Path) -> dict[str, Any]:
    """The first arguments of both trainers."""
    teacher = AutoModelForCausalLM.from_pretrained(world / "teacher")
    tokenizer = AutoTokenizer.from_pretrained(world / "student")
    return {"model": str(world / "student"), "teacher_model": teacher, "processing_class": tokenizer}


def gkd(world: Path, *, lmbda: float, beta: float) -> tuple[float, Texts, float]:
    """The loss of an update of GKDTrainer, its texts, and the number of its tokens by the number it is divided by."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    seen: dict[str, Any] = {}

    class Recorded(GKDTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            seen.update(inputs, divisor=num_items_in_batch)
            seen["loss"] = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return seen["loss"]

    args = GKDConfig(output_dir=str(world / "gkd"), lmbda=lmbda, beta=beta, max_new_tokens=RESPONSE_TOKENS, **TRAINING)
    Recorded(**models(world), args=args, train_dataset=Dataset.from_list(conversations(0))).train()
    texts = []
    for ids, mask, labels in zip(seen["input_ids"], seen["attention_mask"], seen["labels"], strict=True):
        prompt = ids[(labels == -100) & (mask == 1)]
        texts.append((prompt.tolist(), ids[labels != -100].tolist()))
    tokens = sum(len(answer) for _, answer in texts)
    return float(seen["loss"]), texts, tokens / float(seen["divisor"])


def distillation(world: Path, *, beta: float) -> tuple[float, Texts]:
    """The loss of an update of DistillationTrainer, and its texts."""
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    seen: dict[str, Any] = {}

    class Recorded(DistillationTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            seen.update(inputs)
            seen["loss"] = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            return seen["loss"]

    args = DistillationConfig(output_dir=str(world / "opd"), beta=beta, max_completion_length=RESPONSE_TOKENS, **TRAINING)
    prompts = [{"prompt": row["messages"][:1]} for row in conversations(0)]
    Recorded(**models(world), args=args, train_dataset=Dataset.from_list(prompts)).train()
    parts = (seen[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"))
    rows_of = zip(*parts, strict=True)
    texts = [(prompt[asked == 1].tolist(), ids[given == 1].tolist()) for prompt, asked, ids, given in rows_of]
    return float(seen["loss"]), texts


def loss_of_recipe(world: Path, page: str, texts: Texts, **changes: Any) -> float:
    """The loss of the first update of the page's recipe, with the models, rows and texts of the test."""
    (text,) = re.findall(r"^```yaml\n(name: .*?)^```", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    tree = yaml.safe_load(text)
    tree["teacher"]["model"], tree["student"]["model"] = str(world / "teacher"), str(world / "student")
    tree["data"] |= {"train": [str(world / "train.jsonl")], "validation": str(world / "validation.jsonl")}
    tree["data"]["tokens"] |= {"prompt_tokens": 100, "response_tokens": RESPONSE_TOKENS}
    tree["training"] |= {"updates": 1, "batch_size": NUM_ROWS, "precision": "fp32"}
    tree["engine"] = {"kind": "replayed:Replayed", "path": str(world / "texts.json")}
    for name, values in changes.items():
        tree[name] |= values
    files.write_text(world / "texts.json", json.dumps(texts))
    files.write_text(world / "recipe.yaml", yaml.safe_dump(tree))
    out = world / f"out-{len(list(world.glob('out-*')))}"
    assert main(["train", str(world / "recipe.yaml"), "--out", str(out), "--allow-code", "replayed"]) == 0
    (line,) = [line for line in files.read_lines(out / "metrics.jsonl") if line["kind"] == "train"]
    return float(line["loss"])


@pytest.fixture(autouse=True)
def importable(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(world))


@pytest.mark.parametrize("beta", DIVERGENCES)
@pytest.mark.parametrize("fraction", [0.0, 1.0], ids=["gold", "sampled"])
def test_an_update_of_gkd_has_the_loss_of_trl(world: Path, fraction: float, beta: float) -> None:
    loss, texts, tokens_by_divisor = gkd(world, lmbda=fraction, beta=beta)
    divergence = {"divergence": DIVERGENCES[beta]}
    ours = loss_of_recipe(world, "trl-gkd.md", texts, policy={"student_fraction": fraction}, objective=divergence)
    assert loss > 0.1
    assert (tokens_by_divisor == 1) == (fraction == 0)  # TRL divides by the number of gold tokens
    assert ours * tokens_by_divisor == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("beta", DIVERGENCES)
def test_an_on_policy_update_has_the_loss_of_trl(world: Path, beta: float) -> None:
    loss, texts = distillation(world, beta=beta)
    assert loss > 0.1
    ours = loss_of_recipe(world, "trl-distillation.md", texts, objective={"divergence": DIVERGENCES[beta]})
    assert ours == pytest.approx(loss, rel=1e-4)


def shown_defaults(page: str) -> Iterator[tuple[str, Any]]:
    """The arguments of a page's table with their defaults; one default may be that of several arguments."""
    for cells in re.findall(r"^\| (`.+?) \| (.+?) \| ", (PAGES / page).read_text(encoding="utf-8"), re.MULTILINE):
        names = re.split(", | x ", cells[0])
        values = re.split(", | x ", cells[1].partition(", if ")[0])
        for name, value in zip(names, values * len(names) if len(values) == 1 else values, strict=True):
            if name.startswith("`"):
                yield name.strip("`").partition(":")[0], OFF[name.strip("`")] if value == "off" else value_of(value)


def value_of(text: str) -> float | bool | str | None:
    with contextlib.suppress(ValueError):
        return float(text)
    words = {"true": True, "false": False, "none": None}
    return words.get(text, text)


def test_the_defaults_of_the_pages_are_those_of_trl(tmp_path: Path) -> None:
    from trl import DistillationConfig, DistillationTrainer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    pairs = (("trl-gkd.md", GKDConfig, GKDTrainer), ("trl-distillation.md", DistillationConfig, DistillationTrainer))
    for page, config, trainer in pairs:
        chosen = config(output_dir=str(tmp_path), use_cpu=True)  # chooses what depends on the device, such as bf16
        defaults = {field.name: field.default for field in dataclasses.fields(config)}
        defaults = {name: getattr(chosen, name) if value is None else value for name, value in defaults.items()}
        defaults |= {name: each.default for name, each in inspect.signature(trainer).parameters.items()}
        shown = list(shown_defaults(page))
        assert len(shown) > 15
        for name, value in shown:
            found = None if defaults[name] == "none" else defaults[name]
            assert found == value, (page, name)
