"""A short real distillation through the command line: SmolLM2, real instructions, one kill in the middle.

Not part of `make test`: it needs the folder `shared` beside the clone, and fetches a model.  .ci/run calls it.

REDISTILL_SMOLLM2 names a folder that holds the model already; REDISTILL_CI_CACHE, where to fetch it to.
"""

import base64
import hashlib
import html.parser
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.data.reader import read_records
from redistill.evaluation.metrics.rouge_l import rouge_l
from redistill.models.initialise import fresh_model
from redistill.storage import files
from redistill.toy.world import toy_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
TASKS = ("dolly", "self_instruct", "vicuna", "super_natural", "unnatural")
SEEDS = (10, 20)
PROMPTS = 3
UPDATES, BATCH_SIZE, SAVE_EVERY, KILL_AFTER = 20, 4, 10, 12
LAYERS = 8

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no folder shared/data beside the clone")


# --- what happens, once ---------------------------------------------------------------------------------------------------


def redistill(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment(), check=False)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "redistill", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Data and models are local: whoever asks the hub all the same fails."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's folder, fetched unless the machine has it."""
    if "REDISTILL_SMOLLM2" in os.environ:
        return Path(os.environ["REDISTILL_SMOLLM2"]).resolve()
    cache = os.environ.get("REDISTILL_CI_CACHE")
    target = (Path(cache) if cache else tmp_path_factory.mktemp("models")).resolve() / "smollm2"
    done = redistill("models", "fetch", "smollm2", "--to", target)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == target
    return target


@pytest.fixture(scope="session")
def recipe(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MGSR with all its terms; prompts of more than 64 tokens are left out by the length limit."""
    tree = {
        "name": "real",
        "method": "mgsr",
        "teacher": {"model": str(smollm2), "dtype": "bfloat16"},
        "student": {"model": "teacher", "initialise": {"layers": LAYERS}},
        "data": {
            "train": [str(DATA / "t0" / "train.jsonl"), str(DATA / "dolly" / "train.jsonl")],
            "validation": str(DATA / "dolly" / "validation.jsonl"),
            "validation_rows": 8,
            "tests": {task: str(DATA / task / "test.jsonl") for task in TASKS},
            "tokens": {"prompt_tokens": 64, "response_tokens": 32},
        },
        "training": {
            "updates": UPDATES,
            "batch_size": BATCH_SIZE,
            "precision": "bf16",
            "save_every": SAVE_EVERY,
            "keep": 2,
            "log_every": 1,
        },
        "evaluation": {"seeds": list(SEEDS), "limit": PROMPTS},
    }
    path = tmp_path_factory.mktemp("recipe") / "real.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def killed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A run that was killed two updates after its checkpoint: its folder, and the metrics that it left."""
    folder = tmp_path_factory.mktemp("runs") / "real"
    with subprocess.Popen(
        command("run", recipe, "--out", folder), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment()
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith(f"step {KILL_AFTER}/{UPDATES}"):
                process.kill()
                break
        else:
            pytest.fail("the run ended before it could be killed:\n" + "".join(said))
    return folder, read_lines(folder / "metrics.jsonl")


@pytest.fixture(scope="session")
def run(killed: tuple[Path, list[dict[str, Any]]], recipe: Path) -> tuple[Path, str]:
    """The same command once more, which finishes the run: its folder, and what it said."""
    folder, _ = killed
    done = redistill("run", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="session")
def folder(run: tuple[Path, str]) -> Path:
    return run[0]


# --- data -----------------------------------------------------------------------------------------------------------------


def promised_rows() -> Iterator[tuple[Path, int]]:
    """(file, rows) of the table in the data's README, whose lines read "| dolly/train.jsonl, validation.jsonl | 899, 100 |"."""
    for line in (DATA / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1 and ".jsonl" in cells[0]:
            first, *others = cells[0].split(", ")
            paths = [DATA / first, *((DATA / first).with_name(name) for name in others)]
            yield from zip(paths, (int(count.replace(",", "")) for count in cells[1].split(", ")), strict=True)


def test_every_data_file_is_read_with_the_promised_rows() -> None:
    promised = dict(promised_rows())
    assert set(promised) == set(DATA.rglob("*.jsonl")) != set()
    for path, count in promised.items():
        records, report = read_records(path)
        assert (len(records), report.rejected) == (count, ()), path
        assert all(record.references for record in records), path


# --- interruption ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_leaves_its_checkpoint(killed: tuple[Path, list[dict[str, Any]]]) -> None:
    _, left = killed
    assert [line["step"] for line in left if line["kind"] == "train"][:KILL_AFTER] == list(range(1, KILL_AFTER + 1))


def test_the_same_command_resumes_from_the_checkpoint(run: tuple[Path, str]) -> None:
    assert f"resumed at step {SAVE_EVERY} of {UPDATES}" in run[1]


def test_every_update_is_logged_once_and_in_order(folder: Path) -> None:
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, UPDATES + 1))
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [0, UPDATES]


def test_resumed_updates_are_those_that_the_kill_lost(killed: tuple[Path, list[dict[str, Any]]], folder: Path) -> None:
    timings = ("seconds", "draw_seconds", "tokens_per_s")
    again = {(line["kind"], line["step"]): line for line in read_lines(folder / "metrics.jsonl")}
    for before in killed[1]:
        after = again[before["kind"], before["step"]]
        assert {k: v for k, v in before.items() if k not in timings} == {k: v for k, v in after.items() if k not in timings}


def test_a_finished_run_is_left_as_it_is(folder: Path, recipe: Path) -> None:
    before = digests(folder)
    done = redistill("run", recipe, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert "step " not in done.stderr
    assert digests(folder) == before


# --- the run folder -------------------------------------------------------------------------------------------------------


def test_the_run_folder_is_complete(folder: Path) -> None:
    answers = [f"responses/{task}-seed{seed}.jsonl" for task in TASKS for seed in SEEDS]
    evaluations = [
        f"{role}{name}" for role in ("", "before/", "teacher/") for name in ("scores.json", "settings.json", *answers)
    ]
    expected = ["run.json", "metrics.jsonl", "revisions.jsonl", "report.html", "model/config.json", "model/model.safetensors"]
    expected += ["model/tokenizer.json", "checkpoints/step-10/manifest.json", "checkpoints/step-20/manifest.json", *evaluations]
    assert [name for name in expected if not (folder / name).is_file()] == []
    assert [*folder.rglob(f"{files.TEMPORARY}*"), *folder.rglob("*.part*")] == []


def test_run_json_describes_the_run(folder: Path) -> None:
    described = read_json(folder / "run.json")
    assert (described["method"], described["status"], described["processes"]) == ("mgsr", "finished", 1)
    assert described["config"]["training"]["updates"] == UPDATES
    assert {"torch", "transformers", "redistill"} <= described["versions"].keys()
    teacher, student = described["models"]["teacher"], described["models"]["student"]
    assert 0 < student["parameters"] < teacher["parameters"]
    sources = [about for about in described["data"].values() if "sha256" in about]
    assert len(sources) == 3 + len(TASKS)
    for about in sources:
        assert about["sha256"] == sha256(Path(about["source"])), about["source"]
    assert described["data"]["kept"]["train"] + described["data"]["kept"]["dropped"] == 4000 + 899


def test_every_term_is_finite_and_counted(folder: Path) -> None:
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    origins: Counter[str] = Counter()
    for line in lines:
        for name in ("loss", "sft", "divergence", "span", "kept_mass", "kept_classes", "grad_norm", "clip_network_grad_norm"):
            assert math.isfinite(line[name]), (line["step"], name)
        assert sum(line["origin"].values()) == BATCH_SIZE
        origins += Counter(line["origin"])
    assert origins["dataset"] > 0 and origins["revised"] > 0


def test_checkpoints_match_their_manifests(folder: Path) -> None:
    for step in (SAVE_EVERY, UPDATES):
        place = folder / "checkpoints" / f"step-{step}"
        listed = read_json(place / "manifest.json")
        assert listed["step"] == step
        assert set(listed["files"]) | {"manifest.json", "manifest.sha256"} == {path.name for path in place.iterdir()}
        for name, about in listed["files"].items():
            assert about == {"bytes": (place / name).stat().st_size, "sha256": sha256(place / name)}, name
        assert (place / "manifest.sha256").read_text(encoding="utf-8").split()[0] == sha256(place / "manifest.json")


def test_the_student_has_the_layers_that_were_asked_for(folder: Path, smollm2: Path) -> None:
    student, teacher = read_json(folder / "model" / "config.json"), read_json(smollm2 / "config.json")
    assert student["num_hidden_layers"] == LAYERS < teacher["num_hidden_layers"]
    assert student["vocab_size"] == teacher["vocab_size"]


def test_revisions_tell_where_the_teacher_stepped_in(folder: Path) -> None:
    revisions = read_lines(folder / "revisions.jsonl")
    keys = [(line["step"], line["sample"]) for line in revisions]
    assert keys and len(set(keys)) == len(keys) and keys == sorted(keys, key=lambda key: key[0])
    assert {step for step, _ in keys} <= set(range(1, UPDATES + 1))
    for line in revisions:
        assert line["student_token"] != line["teacher_token"] and line["kl"] > 0 and line["position"] >= 0
        assert line["prompt"] and len(line) == 10


@pytest.mark.parametrize("method", ["seqkd", "minillm", "distillm"])
def test_methods_that_write_in_other_ways_learn_from_the_real_model(recipe: Path, tmp_path: Path, method: str) -> None:
    """With the pre-training term on plain text where the method has it."""
    corpus = tmp_path / "corpus.txt"
    answers = (record.references[0] for record in read_records(DATA / "dolly" / "train.jsonl")[0][:200])
    corpus.write_text("\n\n".join(answers), encoding="utf-8")
    changes = {
        "seqkd": [],
        "minillm": ["policy.num_rollouts=4", "policy.inner_epochs=2", "optimiser.warmup_updates=0"],
        "distillm": ["policy.threshold=0.9", "policy.capacity=4"],
    }
    small = ["training={updates: 3, batch_size: 4, precision: bf16, log_every: 1}", "data.validation_rows=2", "data.tests={}"]
    small += ["data.tokens={prompt_tokens: 48, response_tokens: 16}", f"data.corpus=[{corpus}]", f"method={method}"]
    done = redistill("train", recipe, *small, *changes[method], "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    lines = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3] and all(math.isfinite(line["loss"]) for line in lines)
    origins = {name for line in lines for name in line["origin"]}
    assert origins <= {"seqkd": {"teacher"}, "minillm": {"mixture"}, "distillm": {"dataset", "student", "replay"}}[method]
    assert ("pretraining" in lines[0]) == (method != "seqkd")


@pytest.mark.parametrize("role", ["", "before", "teacher"])
def test_scores_are_those_of_the_responses(folder: Path, role: str) -> None:
    scores = read_json(folder / role / "scores.json")
    assert set(scores["datasets"]) == set(TASKS)
    for task in TASKS:
        records = read_records(DATA / task / "test.jsonl")[0][:PROMPTS]
        held = scores["datasets"][task]
        assert held["prompts"] == PROMPTS and set(held["seeds"]) == set(map(str, SEEDS))
        for seed in SEEDS:
            lines = read_lines(folder / role / "responses" / f"{task}-seed{seed}.jsonl")
            assert [line["id"] for line in lines] == [record.record_id for record in records]
            assert [tuple(line["references"]) for line in lines] == [record.references for record in records]
            again = [rouge_l(line["response"], line["references"]) for line in lines]
            assert [line["rouge_l"] for line in lines] == pytest.approx(again)
            assert held["seeds"][str(seed)]["rouge_l"] == pytest.approx(math.fsum(again) / PROMPTS)
            assert all(0 < line["tokens"] <= 32 for line in lines)


def test_the_student_is_measured_against_the_teacher(folder: Path) -> None:
    forced = read_json(folder / "scores.json")["datasets"]["dolly"]["teacher_forced"]
    assert forced["kl"] > 0 and forced["cross_entropy"] > 0 and 0 <= forced["agreement"] <= 1
    before = read_json(folder / "before" / "scores.json")["datasets"]["dolly"]["teacher_forced"]
    assert forced["kl"] < before["kl"], "20 updates bring it nearer to the teacher"


def test_the_report_needs_nothing_beside_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = _Outward()
    found.feed(page)
    assert found.outward == []
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == page.count("<script"), "only scripts of the page itself"
    allowed = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts}
    assert all(html.unescape(each) in html.unescape(page.split("</head>")[0]) for each in allowed)
    styles = " ".join([*re.findall(r"<style[^>]*>(.*?)</style>", page, re.DOTALL), *re.findall(r'style="([^"]*)"', page)])
    assert re.search(r"@import|url\(\s*['\"]?(?!data:|#)", styles) is None  # answers of a model may contain such text
    for text in ("real", "dolly", "vicuna"):
        assert text in page


class _Outward(html.parser.HTMLParser):
    """The tags of a page, and whatever in it would make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.outward: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            is_inward = (value or "").startswith(("#", "data:"))
            if name in {"src", "href", "xlink:href", "srcset", "action", "data"} and not is_inward:
                self.outward.append((tag, name, value or ""))


# --- commands by themselves -----------------------------------------------------------------------------------------------


def test_report_builds_the_same_page_again(folder: Path, tmp_path: Path) -> None:
    done = redistill("report", folder, "-o", tmp_path / "again.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again.html").read_bytes() == (folder / "report.html").read_bytes()


def test_evaluate_scores_a_model_that_was_not_made_here(smollm2: Path, tmp_path: Path) -> None:
    done = redistill(
        *("evaluate", smollm2, "--data", f"dolly={DATA / 'dolly' / 'test.jsonl'}", "--limit", "4"),
        *("--seeds", "10", "--response-tokens", "32", "--out", tmp_path / "teacher"),
    )
    assert done.returncode == 0, done.stderr
    held = read_json(tmp_path / "teacher" / "scores.json")["datasets"]["dolly"]
    assert held["prompts"] == 4 and held["seeds"]["10"]["rouge_l"] > 0
    assert len(read_lines(tmp_path / "teacher" / "responses" / "dolly-seed10.jsonl")) == 4


def test_evaluate_takes_a_run_folder_for_its_student(folder: Path, tmp_path: Path) -> None:
    done = redistill(
        *("evaluate", folder, "--data", f"dolly={DATA / 'dolly' / 'test.jsonl'}", "--limit", "1"),
        *("--seeds", "10", "--response-tokens", "8", "--out", tmp_path / "student"),
    )
    assert done.returncode == 0, done.stderr
    parameters = read_json(folder / "scores.json")["parameters"]
    assert read_json(tmp_path / "student" / "scores.json")["parameters"] == parameters


def test_a_student_with_another_vocabulary_is_refused(recipe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tokenizer = toy_tokenizer(512, 10)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    fresh_model({"model_type": "llama", "vocab_size": len(tokenizer), **shape}, 10).save_pretrained(other)
    tokenizer.save_pretrained(other)
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {"student": {"model": str(other)}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = redistill("run", tmp_path / "mixed.yaml", "--out", tmp_path / "run")
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert re.search(r"vocabularies differ: id \d+ is .+ in the teacher and .+ in the student", last), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


# --- files ----------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
