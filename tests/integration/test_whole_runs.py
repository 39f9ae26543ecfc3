"""Ten updates of each method, from recipe to report: the content of a run folder, and that the run can be repeated."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from redistill.cli.main import main
from redistill.config.methods import METHODS
from redistill.config.run import decode_run, encode_run
from redistill.losses.dac_kl import DacKLConfig
from redistill.runs.run import distill
from redistill.storage import files
from redistill.training import checkpoint
from tests.worlds import LLAMA, tiny_run

UPDATES = 10
SETTINGS: dict[str, Any] = {
    "training": {"updates": UPDATES, "batch_size": 8, "evaluate_every": 5, "keep": 2, "log_every": 1},
    "optimiser": {"learning_rate": 5e-3},
}
_MGSR = {"sft", "divergence", "span", "kept_mass", "kept_classes"}
TERMS = {
    "sft": {"sft"},
    "kd": {"divergence"},
    "seqkd": {"sft"},
    "imitkd": {"divergence"},
    "gkd": {"divergence"},
    "opd": {"divergence"},
    "todi": {"divergence"},
    "eopd": {"divergence"},
    "iwopd": {"divergence"},
    "minillm": {"divergence", "policy_gradient", "ratio", "clipped"},
    "distillm": {"divergence"},
    "distillm2": {"divergence"},
    "skd": {"divergence"},
    "taid": {"divergence", "interpolation"},
    "mgsr": _MGSR,
    "mgsr-robust": {"sft", "divergence", "span"},
    "draft": {"divergence"},
}
CONFIDENT = {**LLAMA, "initializer_range": 0.15}  # two random models that differ, so that there is something to learn
PARTS = {"run.json", "metrics.jsonl", "checkpoints", "model", "responses", "settings.json", "scores.json", "report.html"}


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A method, the recipe of its run, and the run folder."""
    method = request.param
    folder = tmp_path_factory.mktemp(method)
    compare = ["teacher", "before"] if method == "mgsr" else []
    config = tiny_run(folder, method, config=CONFIDENT, evaluation={"seeds": [10, 20], "compare": compare}, **SETTINGS)
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    assert main(["run", str(recipe)]) == 0
    return method, recipe, config.folder


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def test_held_out_loss_falls(finished: tuple[str, Path, Path]) -> None:
    """Cross entropy where the method has that term, KL to the teacher where it has not."""
    method, _, folder = finished
    score = "cross_entropy" if METHODS[method].objective.sft_weight else "kl"
    validations = [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "validation"]
    if method != "seqkd":  # the text of a random teacher is unrelated to the gold answers
        assert validations[-1][score] < validations[0][score] - 0.01, [line[score] for line in validations]
    if METHODS[method].objective.sft_weight:
        lines = train_lines(folder)
        assert lines[-1]["sft"] < lines[0]["sft"] - 0.05, [line["sft"] for line in lines]


def test_the_folder_holds_every_part_and_nothing_unfinished(finished: tuple[str, Path, Path]) -> None:
    method, _, folder = finished
    expected = {*PARTS, "positions.jsonl"}
    if "mgsr" in method:
        expected |= {"revisions.jsonl", "revision-positions.jsonl"}
    if method == "mgsr":
        expected |= {"teacher", "before"}
    if isinstance(METHODS[method].objective.divergence, DacKLConfig):
        expected.add("windows.jsonl")
    if method in ("seqkd", "distillm2", "draft"):
        expected.add("teacher-responses.jsonl")
    assert {path.name for path in folder.iterdir()} == expected
    assert not list(folder.rglob(f"{files.TEMPORARY}*"))


def test_run_json_describes_the_run(finished: tuple[str, Path, Path]) -> None:
    method, recipe, folder = finished
    described = files.read_json(folder / "run.json")
    assert described["status"] == "finished" and described["method"] == method and described["processes"] == 1
    assert decode_run(described["config"], "run.json") == decode_run(yaml.safe_load(recipe.read_text()), "recipe")
    train = Path(described["data"]["train"]["source"])
    assert described["data"]["train"]["sha256"] == files.digest(train)
    assert described["data"]["kept"] == {
        "train": 24,
        "dropped": 0,
        "too long": 0,
        "nothing to learn": 0,
        "in a test set": 0,
        "validation": 4,
    }
    assert {"redistill", "torch", "transformers"} <= described["versions"].keys()
    assert described["models"].keys() == {"student", "teacher"}


def test_metrics_have_every_update_once(finished: tuple[str, Path, Path]) -> None:
    method, _, folder = finished
    lines = train_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, UPDATES + 1))
    assert all(TERMS[method] <= line.keys() for line in lines), lines[0].keys()
    validations = [line["step"] for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "validation"]
    assert validations == [0, 5, 10]
    if "mgsr" in method:
        drawn = [sum(line["origin"].values()) for line in lines]
        assert drawn == [8] * UPDATES and {"dataset", "revised"} <= {name for line in lines for name in line["origin"]}


def test_checkpoints_are_valid_and_the_best_is_the_model(finished: tuple[str, Path, Path]) -> None:
    _, _, folder = finished
    assert checkpoint.steps(folder / "checkpoints") == [5, 10]
    found = {step: checkpoint.load_step(folder / "checkpoints", step) for step in (5, 10)}
    best = found[found[10].state["training"]["best_step"]]
    exported = weights(folder)
    assert all(torch.equal(value, best.tensors["model"][name]) for name, value in exported.items())


def test_transformers_loads_the_model(finished: tuple[str, Path, Path]) -> None:
    _, _, folder = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    ids = tokenizer("Where is the cat?", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))


def test_scores_and_responses_agree(finished: tuple[str, Path, Path]) -> None:
    method, _, folder = finished
    for place in [folder] + ([folder / "teacher", folder / "before"] if method == "mgsr" else []):
        scores = files.read_json(place / "scores.json")["datasets"]["toy"]
        assert scores["prompts"] == 3 and list(scores["seeds"]) == ["10", "20"]
        for seed, found in scores["seeds"].items():
            lines = files.read_lines(place / "responses" / f"toy-seed{seed}.jsonl")
            assert len(lines) == 3
            assert found["rouge_l"] == pytest.approx(sum(line["rouge_l"] for line in lines) / 3)


def test_the_report_is_self_contained(finished: tuple[str, Path, Path]) -> None:
    method, _, folder = finished
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>") and page.rstrip().endswith("</html>")
    assert method in page
    assert not [mark for mark in ('src="http', 'href="http', "<script src", "@import") if mark in page]


def test_revisions_describe_the_corrections(finished: tuple[str, Path, Path]) -> None:
    method, _, folder = finished
    lines = files.read_lines(folder / "revisions.jsonl")
    assert bool(lines) == ("mgsr" in method)
    for line in lines:
        assert 1 <= line["step"] <= UPDATES and 0 <= line["position"] < 16 and line["kl"] >= 0
        assert line["student_token"] and line["teacher_token"] and line["prompt"].endswith("### Response:\n")


@pytest.mark.parametrize("finished", ["mgsr"], indirect=True)
def test_running_again_changes_nothing(finished: tuple[str, Path, Path]) -> None:
    _, recipe, folder = finished
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in {"report.html", "run.json"}]
    before = {path: files.digest(path) for path in kept}
    described = files.read_json(folder / "run.json")
    assert main(["run", str(recipe)]) == 0
    assert {path: files.digest(path) for path in kept} == before
    assert files.read_json(folder / "run.json") == described
    assert sorted(path for path in folder.rglob("*") if path.is_file() and path in before) == kept


@pytest.mark.parametrize("finished", ["mgsr"], indirect=True)
def test_run_json_repeats_the_run(finished: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, _, folder = finished
    assert main(["run", str(folder / "run.json"), "--out", str(tmp_path / "again")]) == 0
    again, first = weights(tmp_path / "again"), weights(folder)
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    scores = [files.read_json(place / "scores.json")["datasets"] for place in (tmp_path / "again", folder)]
    assert scores[0] == scores[1]


def test_a_folder_of_another_run_is_rejected_and_unchanged(
    finished: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, recipe, folder = finished
    before = files.digest(folder / "run.json")
    assert main(["run", str(recipe), "seed=4"]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "seed is 3 there and 4 here" in line and "choose another `out`" in line
    assert files.digest(folder / "run.json") == before


def test_a_teacher_is_fine_tuned_first_in_its_own_run_folder(tmp_path: Path) -> None:
    config = tiny_run(
        tmp_path,
        "kd",
        config=CONFIDENT,
        teacher={"finetune": {"updates": 2, "learning_rate": 1e-2}},
        student={"model": "teacher", "initialise": {"layers": 2}},
        training={"updates": 2},
    )
    distill(config)
    tuned = tmp_path / "run-teacher"
    assert files.read_json(tuned / "run.json")["method"] == "sft"
    assert [line["step"] for line in train_lines(tuned)] == [1, 2]
    before, after = load_file(tmp_path / "teacher" / "model.safetensors"), weights(tuned)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    first = checkpoint.load_step(config.folder / "checkpoints", 2).tensors["model"]
    name = "model.layers.0.mlp.up_proj.weight"
    assert (first[name] - after[name]).abs().max() < (first[name] - before[name]).abs().max(), "a student of the tuned teacher"
    distill(config)
    assert [line["step"] for line in train_lines(tuned)] == [1, 2], "tuned once"


def test_a_student_is_fine_tuned_first_if_its_method_requires_it(tmp_path: Path) -> None:
    student = {"model": "teacher", "initialise": {"layers": 2}, "finetune": {"updates": 3, "learning_rate": 1e-2}}
    runs = {
        method: tiny_run(tmp_path, method, config=CONFIDENT, student=student, training={"updates": 2}, out=f"{method}-run")
        for method in ("kd", "imitkd")
    }
    for config in runs.values():
        distill(config)
    assert not (tmp_path / "kd-run-start").exists(), "kd starts from the base model"
    start = tmp_path / "imitkd-run-start"
    assert [line["step"] for line in train_lines(start)] == [1, 2, 3]
    described = files.read_json(runs["imitkd"].folder / "run.json")
    assert described["stages"]["start"]["cost"]["updates"] == 3 and described["stages"]["start"]["folder"] == str(start)
    first = files.read_lines(runs["imitkd"].folder / "metrics.jsonl")[0]
    tuned = [line for line in files.read_lines(start / "metrics.jsonl") if line["kind"] == "validation"]
    assert first["step"] == 0 and first["cross_entropy"] == pytest.approx(tuned[-1]["cross_entropy"], rel=1e-4)
