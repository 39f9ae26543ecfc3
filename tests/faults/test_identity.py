"""A model that is replaced between stop and resume is rejected by name; a run whose models are unchanged resumes.

Each trial replaces a file by one of the same size and modification time, which only the inode or the change time shows.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from redistill.cli.main import main
from redistill.config.run import Run, encode_run
from redistill.storage import file_hash, files
from redistill.training import checkpoint
from redistill.training import loop as training
from tests.faults.counts import trials
from tests.faults.remains import remains
from tests.worlds import LLAMA, tiny_run, write_model

TUNING = {"updates": 2, "learning_rate": 1e-3, "batch_size": 4, "evaluate_every": 1}
TRAINING = {"updates": 3, "batch_size": 4, "save_every": 1, "evaluate_every": 1}
LORA = {"lora": {"rank": 2, "alpha": 4}}
FINETUNED = {"finetune": TUNING}
RUNS: dict[str, dict[str, Any]] = {
    "whole": {"method": "kd"},
    "lora": {"method": "kd", "student": LORA},
    "stages": {"method": "mgsr", "teacher": FINETUNED, "student": FINETUNED},
    "within a stage": {"method": "kd", "teacher": FINETUNED},
    "adapter": {"method": "kd", "teacher": {"adapter": "adapter"}},
}
RESUMED = {
    **RUNS,
    "gkd": {"method": "gkd"},
    "seqkd with a stored text": {"method": "seqkd"},
    "minillm": {"method": "minillm"},
    "distillm": {"method": "distillm"},
    "layers of the teacher": {"method": "mgsr", "student": {"model": "teacher", "initialise": {"layers": [0, 2]}}},
}
KINDS = ("weights", "tokenizer", "chat template")
# The run that is stopped, the folder in which a file is replaced, the kind of file, and the name in the error.
TRIALS = [
    *(("whole", folder, kind, f"{folder} {kind}") for folder in ("teacher", "student") for kind in (*KINDS, "config")),
    *(("lora", "student", kind, f"LoRA base {kind}") for kind in (*KINDS, "config")),
    *(("lora", "teacher", kind, f"teacher {kind}") for kind in KINDS),
    *(
        ("stages", "run-teacher/model", kind, f"fine-tuned teacher {kind}")
        for kind in ("weights", "tokenizer", "chat template")
    ),
    *(("stages", "run-start/model", kind, f"fine-tuned student {kind}") for kind in ("weights", "tokenizer", "chat template")),
    ("within a stage", "teacher", "weights", "student weights"),
    ("adapter", "adapter", "adapter", "teacher adapter"),
    ("adapter", "teacher", "weights", "teacher weights"),
]
QUICK = [0, 6, 8, 15, 22]  # of each run but the one that is stopped within a stage


def flip_the_last_weight(content: bytearray) -> None:
    content[-4] ^= 1  # the lowest bit of a float32


def exchange(before: bytes, after: bytes) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        at = content.index(before)
        content[at : at + len(before)] = after

    return change


FILES: dict[str, tuple[str, Callable[[bytearray], None]]] = {
    "weights": ("model.safetensors", flip_the_last_weight),
    "adapter": ("adapter_model.safetensors", flip_the_last_weight),
    "tokenizer": ("tokenizer.json", exchange(b'"add_prefix_space": false', b'"add_prefix_space": true ')),
    "chat template": ("chat_template.jinja", exchange(b"trim", b"safe")),
    "config": ("config.json", exchange(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05')),
}


def replace(folder: Path, kind: str, *, in_place: bool) -> Callable[[], None]:
    """Replace a file of a model; returns a function that restores it."""
    name, change = FILES[kind]
    path, kept = folder / name, folder.parent / f"kept-{name}"
    shutil.copy2(path, kept)
    times, content = path.stat(), bytearray(path.read_bytes())
    change(content)
    target = path if in_place else path.with_name(f"new-{name}")
    target.write_bytes(content)
    target.replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    return lambda: kept.replace(path) and None


@dataclass(frozen=True)
class World:
    """Models, data and recipes in a folder of their own.

    Args:
        folder: The folder.
        sections: Settings of the run.
    """

    folder: Path
    sections: dict[str, Any]

    def recipe(self, out: str) -> tuple[Run, Path]:
        """A run with the folder `out`, and the path of its recipe."""
        config = tiny_run(self.folder, out=out, training=TRAINING, **self.sections)
        path = self.folder / f"{out}.yaml"
        path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
        return config, path


def make_world(folder: Path, name: str) -> World:
    template = "{% for message in messages %}{{ message['content'] | trim }}<|endoftext|>{% endfor %}"
    for model, seed in (("teacher", 1), ("student", 2)):
        write_model(folder / model, LLAMA, seed)
        (folder / model / "chat_template.jinja").write_text(template, encoding="utf-8")
    sections = dict(RESUMED[name])
    if name == "adapter":
        base = AutoModelForCausalLM.from_pretrained(folder / "teacher")
        torch.manual_seed(3)
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(folder / "adapter")
        sections["teacher"] = {"model": str(folder / "teacher"), "adapter": str(folder / "adapter")}
    elif "teacher" in sections:
        sections["teacher"] = {"model": str(folder / "teacher"), **sections["teacher"]}
    if "model" not in sections.get("student", {}):
        sections["student"] = {"model": str(folder / "student"), **sections.get("student", {})}
    return World(folder, sections)


@pytest.fixture(autouse=True)
def _caching(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hashes of all files are cached, although the models are small and new."""
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(file_hash, "LARGE_BYTES", 0)
    monkeypatch.setattr(file_hash, "SETTLED_S", -1e9)


class Enough(KeyboardInterrupt):
    """The checkpoint of the second update is written."""


def train_until(recipe: Path, last: int, folder: Path) -> None:
    """Train the run in `folder` until the checkpoint of the step `last`."""
    save = training.save_checkpoint

    def save_and_stop(parts: Any, settings: Any, state: Any) -> None:
        save(parts, settings, state)
        if state.step == last and parts.output.checkpoints.parent == folder:
            raise Enough

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_checkpoint", save_and_stop)
        assert main(["train", str(recipe)]) == 130


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], World]]:
    """Makes a run that is stopped before its end, once for all trials."""
    made: dict[str, World] = {}

    def make(name: str) -> World:
        if name not in made:
            made[name] = world = make_world(tmp_path_factory.mktemp("identity"), name)
            stop(world, name)
        return made[name]

    yield make


def stop(world: World, name: str) -> None:
    config, recipe = world.recipe("run")
    if name == "within a stage":
        train_until(recipe, 1, config.folder.with_name("run-teacher"))
    else:
        train_until(recipe, 2, config.folder)


def whole_state(folder: Path) -> dict[str, str]:
    return {str(path): files.digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("name", "replaced", "kind", "different"), TRIALS if trials(0, 1) else [TRIALS[number] for number in QUICK]
)
def test_a_replaced_model_is_rejected_by_name_and_changes_nothing(
    stopped: Callable[[str], World],
    capsys: pytest.CaptureFixture[str],
    name: str,
    replaced: str,
    kind: str,
    different: str,
) -> None:
    world = stopped(name)
    config, recipe = world.recipe("run")
    folder = config.folder.with_name("run-teacher") if name == "within a stage" else config.folder
    before = whole_state(folder)
    restore = replace(world.folder / replaced, kind, in_place=TRIALS.index((name, replaced, kind, different)) % 2 == 0)
    try:
        capsys.readouterr()
        assert main(["train", str(recipe)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("redistill:")]
        assert errors == [
            f"redistill: {folder / 'checkpoints'}: its checkpoints belong to a run with different {different}; "
            f"restore the {different} of that run, or use a new folder"
        ]
        assert whole_state(folder) == before
    finally:
        restore()


def test_there_are_24_trials() -> None:
    assert len(set(TRIALS)) == 24


@pytest.mark.parametrize("name", list(RESUMED) if trials(0, 1) else ["lora", "seqkd with a stored text"])
def test_a_run_with_unchanged_models_ends_bitwise_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    world = make_world(tmp_path, name)
    (config, recipe), (whole, straight) = world.recipe("run"), world.recipe("straight")
    assert main(["train", str(straight)]) == 0
    stop(world, name)
    capsys.readouterr()
    assert main(["train", str(recipe)]) == 0
    assert "no hashes of" not in capsys.readouterr().err
    assert remains(config.folder) == remains(whole.folder)
    identities = [files.read_json(each.folder / "run.json")["identity"] for each in (config, whole)]
    assert identities == [checkpoint.identity(each.folder / "checkpoints") for each in (config, whole)]


# --- checkpoints of earlier versions, and finished runs -----------------------------------------------------------------


def without_hashes_of_models(folder: Path) -> None:
    """Write identity.json as versions did that did not hash models."""
    held = {name: sha256 for name, sha256 in checkpoint.identity(folder).items() if name in ("settings", "training data")}
    files.write_json(folder / checkpoint.IDENTITY, checkpoint._sealed(held))


def test_checkpoints_without_hashes_are_noted_once_and_then_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(tmp_path, "whole")
    config, recipe = world.recipe("run")
    checkpoints = config.folder / "checkpoints"
    train_until(recipe, 1, config.folder)
    complete = checkpoint.identity(checkpoints)
    without_hashes_of_models(checkpoints)
    capsys.readouterr()
    train_until(recipe, 2, config.folder)
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "no hashes of" in line)
    assert note.startswith(f"note: {checkpoints}: the checkpoints have no hashes of teacher weights, ")
    assert checkpoint.identity(checkpoints) == complete
    restore = replace(world.folder / "teacher", "weights", in_place=True)
    assert main(["train", str(recipe)]) == 2
    restore()
    assert main(["train", str(recipe)]) == 0
    assert "no hashes of" not in capsys.readouterr().err


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content is hashed."""
    found, digest = list[Path](), files.digest

    def listed(path: Path) -> str:
        found.append(path)
        return digest(path)

    monkeypatch.setattr(files, "digest", listed)
    return found


def test_a_finished_run_is_not_hashed_again(tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hash, "LARGE_BYTES", 1 << 40)  # nothing is cached
    world = make_world(tmp_path, "within a stage")
    config, recipe = world.recipe("run")
    assert main(["run", str(recipe)]) == 0
    stage = config.folder.with_name("run-teacher")
    assert {world.folder / "teacher" / "model.safetensors", stage / "model" / "model.safetensors"} <= set(hashed)
    hashed.clear()
    assert main(["run", str(recipe)]) == 0
    assert not [path for path in hashed if path.suffix == ".safetensors"]


def test_the_cache_spares_a_second_start_from_reading_models(tmp_path: Path, hashed: list[Path]) -> None:
    world = make_world(tmp_path, "whole")
    config, recipe = world.recipe("run")
    models = [world.folder / name / "model.safetensors" for name in ("teacher", "student")]
    train_until(recipe, 1, config.folder)
    assert set(models) <= set(hashed)
    hashed.clear()
    train_until(recipe, 2, config.folder)
    assert not set(models) & set(hashed)
