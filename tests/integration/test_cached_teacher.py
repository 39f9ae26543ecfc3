"""Whole runs with a cached teacher: those that need only stored rows equal the live ones, all others are rejected by name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.models import load
from redistill.storage import files
from redistill.training import checkpoint
from redistill.training import loop as training
from tests.worlds import GPT2, tiny_run

NOTHING_GENERATED = {"kind": "mixed", "student_fraction": 0.0}
CORPUS = "The cat number one is sleeping in the barn. The dog is in the garden. " * 40
RUNS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "kd": {"method": "kd"},
    "kd in bf16": {"method": "kd", "training": {"precision": "bf16"}, "teacher": {"dtype": "bfloat16"}},
    "seqkd": {"method": "seqkd"},
    "seqkd with a divergence": {
        "method": "seqkd",
        "policy": {"kind": "teacher_generated", "temperature": 0.7},
        "objective": {"sft_on": "sampled", "divergence": "fkl"},
    },
    "gkd": {"method": "gkd", "policy": NOTHING_GENERATED},
    "distillm": {"method": "distillm", "policy": NOTHING_GENERATED},
    "mgsr": {"method": "mgsr", "policy": NOTHING_GENERATED},
    "pre-training term": {
        "method": "kd",
        "objective": {"sft_weight": 0.0, "divergence": "rkl", "pretraining": {"divergence_share": 0.5}},
        "data": {"corpus": ["corpus.txt"]},
    },
    "student from the teacher's layers": {"method": "kd", "student": {"model": "teacher", "initialise": {"layers": 2}}},
    "fine-tuned student": {"method": "gkd", "policy": NOTHING_GENERATED, "student": {"finetune": {"updates": 2}}},
    "fine-tuned teacher": {"method": "kd", "teacher": {"finetune": {"updates": 2}}},
}
COMPARED = ("loss", "sft", "divergence", "span", "pretraining", "pretraining_kl", "grad_norm", "kl", "agreement")


def recipe_of(folder: Path, out: str, **sections: Any) -> Path:
    (folder / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    if corpus := sections.get("data", {}).get("corpus"):
        sections["data"] = {"corpus": [str(folder / name) for name in corpus]}
    path = folder / f"{out}.yaml"
    config = tiny_run(folder, out=out, config=GPT2, **sections)
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path


def figures(folder: Path) -> list[tuple[int, dict[str, float]]]:
    lines = files.read_lines(folder / "metrics.jsonl")
    return [(line["step"], {name: line[name] for name in COMPARED if name in line}) for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_stored_rows_equals_that_of_the_live_teacher(tmp_path: Path, name: str) -> None:
    sections = dict(RUNS[name])
    recipe = recipe_of(tmp_path, "live", **sections)
    assert main(["train", str(recipe)]) == 0
    cache = [f"teacher.cache={tmp_path / 'store'}", "--out", str(tmp_path / "cached")]
    assert main(["train", str(recipe), *cache]) == 0
    mine, theirs = figures(tmp_path / "cached"), figures(tmp_path / "live")
    assert [step for step, _ in mine] == [step for step, _ in theirs]
    tolerance = 2e-2 if "bf16" in name else 1e-4
    for (step, own), (_, other) in zip(mine, theirs, strict=True):
        assert own == pytest.approx(other, rel=tolerance, abs=tolerance), (name, step)
    assert "kl" in theirs[0][1] and "agreement" in theirs[0][1]


def test_the_teacher_is_loaded_to_fill_the_store_and_never_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, loaded = recipe_of(tmp_path, "run", method="kd"), []
    read = load._read_weights

    def noted(config: Any, *arguments: Any) -> Any:
        loaded.append(Path(config.model).name)
        return read(config, *arguments)

    monkeypatch.setattr(load, "_read_weights", noted)
    assert main(["cache-teacher", str(recipe), "--out", str(tmp_path / "store")]) == 0
    assert sorted(loaded) == ["student", "teacher"]
    loaded.clear()
    named = f"teacher={{kind: cached, path: {tmp_path / 'store'}}}"
    for teacher, out in ((named, "one"), (f"teacher.cache={tmp_path / 'store'}", "two")):
        assert main(["run", str(recipe), teacher, "--out", str(tmp_path / out)]) == 0
    assert set(loaded) == {"student", "model"}  # the second is the trained student, which is evaluated
    loaded.clear()
    layers = "student={model: teacher, initialise: {layers: 2}}"  # read from the files of the teacher, without its other layers
    assert main(["train", str(recipe), f"teacher.cache={tmp_path / 'store'}", layers, "--out", str(tmp_path / "three")]) == 0
    assert loaded == []
    scores = files.read_json(tmp_path / "one" / "scores.json")["datasets"]["toy"]["teacher_forced"]
    assert "cross_entropy" in scores and "kl" not in scores  # test data is not stored


@pytest.mark.parametrize(
    ("sections", "fault"),
    [
        ({"method": "gkd"}, "policy mixed: generates student text during training"),
        ({"method": "imitkd"}, "policy student_generated: generates student text during training"),
        ({"method": "distillm"}, "policy adaptive: generates student text during training"),
        ({"method": "mgsr"}, "policy mixed: generates student text during training"),
        ({"method": "minillm"}, "policy rollouts: samples tokens from a mixture of student and teacher"),
    ],
)
def test_a_method_that_needs_the_teacher_on_new_text_is_rejected_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any], fault: str
) -> None:
    recipe = recipe_of(tmp_path, "run", **sections)
    for cached in (f"teacher.cache={tmp_path / 'store'}", f"teacher={{kind: cached, path: {tmp_path / 'store'}}}"):
        capsys.readouterr()
        assert main(["train", str(recipe), cached]) == 2
        printed = capsys.readouterr().err
        assert fault in printed and len(printed.splitlines()) == 1
    assert not (tmp_path / "store").exists() and not (tmp_path / "run").exists()


def test_answers_that_are_not_stored_are_rejected_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache-teacher", str(recipe_of(tmp_path, "kd", method="kd")), "--out", str(tmp_path / "store")]) == 0
    assert main(["train", str(recipe_of(tmp_path, "seqkd", method="seqkd")), f"teacher.cache={tmp_path / 'store'}"]) == 2
    assert "another teacher_generated" in capsys.readouterr().err.splitlines()[-1]


def test_a_store_with_answers_is_used_by_methods_without_them(tmp_path: Path) -> None:
    assert main(["cache-teacher", str(recipe_of(tmp_path, "seqkd", method="seqkd")), "--out", str(tmp_path / "store")]) == 0
    for method in ("kd", "sft"):
        recipe = recipe_of(tmp_path, method, method=method)
        assert main(["train", str(recipe), f"teacher={{kind: cached, path: {tmp_path / 'store'}}}"]) == 0


def test_a_recipe_without_a_model_to_store_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_of(tmp_path, "run", method="sft")
    for teacher in ("teacher=null", "teacher={kind: cached, path: somewhere}"):
        assert main(["cache-teacher", str(recipe), teacher, "--out", str(tmp_path / "store")]) == 2
        assert "teacher: has no model whose states could be stored" in capsys.readouterr().err.splitlines()[-1]


def test_doctor_and_estimate_accept_a_cached_teacher_or_reject_it_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path, "run", method="kd")
    assert main(["estimate", str(recipe), f"teacher.cache={tmp_path / 'store'}"]) == 0
    assert "the teacher does not run in this process" in " ".join(capsys.readouterr().out.split())
    assert main(["doctor", str(recipe), "teacher={kind: cached, path: somewhere}"]) == 2
    assert "teacher.kind = 'cached': the cache has no hidden states of the rows that doctor examines" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [["teacher.cache_new_text=true"], ["teacher.cache=store", "teacher.cache_form=top_k"]])
def test_new_text_needs_a_cache_with_hidden_states(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str]
) -> None:
    recipe = recipe_of(tmp_path, "run", method="gkd")
    assert main(["train", str(recipe), "teacher.cache_new_text=true", *settings]) == 2
    assert "cache_new_text = True: needs cache (a folder) and cache_form full" in capsys.readouterr().err


def test_a_method_with_replayed_text_reads_it_from_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trains the student of the live teacher, and after a kill bitwise the same student as without the kill."""
    recipe = recipe_of(tmp_path, "live", method="distillm", policy={"kind": "adaptive", "threshold": 1.0, "capacity": 8})
    assert main(["train", str(recipe), "training.updates=6"]) == 0
    cached = [
        "training.updates=6",
        f"teacher.cache={tmp_path / 'store'}",
        "teacher.cache_new_text=true",
        "training.save_every=2",
    ]
    assert main(["train", str(recipe), *cached, "--out", str(tmp_path / "cached")]) == 0
    for (step, own), (_, other) in zip(figures(tmp_path / "cached"), figures(tmp_path / "live"), strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-5), step
    assert list((tmp_path / "cached" / "teacher-states").rglob("*.safetensors"))

    log = training._log_update

    def stop_after_an_update(parts: Any, state: Any, *rest: Any) -> None:
        log(parts, state, *rest)
        if state.step == 4:  # the states of this update are stored, and the last checkpoint is that of an earlier one
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_log_update", stop_after_an_update)
        assert main(["train", str(recipe), *cached, "--out", str(tmp_path / "killed")]) == 130
    assert checkpoint.steps(tmp_path / "killed" / "checkpoints")[-1] < 4
    assert main(["train", str(recipe), *cached, "--out", str(tmp_path / "killed")]) == 0
    ends = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("cached", "killed")]
    assert ends[0] == ends[1]
