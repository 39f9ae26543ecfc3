"""Longer runs: a raised `training.updates` alone resumes from the last checkpoint, and keeps the results of the shorter run."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import Run, encode_run
from redistill.errors import CheckpointError, ConfigError, Interrupted
from redistill.runs.run import distill, train_student
from redistill.storage import files
from redistill.training import loop
from tests.worlds import rows, tiny_run, write_rows

PEAK, END = 1e-3, 1e-7


def longer(
    folder: Path, updates: int | str, method: str = "kd", training: dict[str, Any] | None = None, **sections: Any
) -> Run:
    return tiny_run(folder, method, training={"updates": updates, **(training or {})}, **sections)


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): files.digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]


def events(folder: Path) -> list[dict[str, Any]]:
    return [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "event"]


def rate(done: int, updates: int) -> float:
    """The cosine schedule: the learning rate of the next update when `done` of `updates` updates are done."""
    return END + (PEAK - END) * (1 + math.cos(math.pi * done / updates)) / 2


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A signal arrives when `step` updates are done."""
    make_update = loop._step

    def made(*arguments: Any) -> None:
        if arguments[-1].step == step:
            raise Interrupted(15)
        make_update(*arguments)

    monkeypatch.setattr(loop, "_step", made)


def test_a_finished_run_is_extended_and_its_results_are_kept(tmp_path: Path) -> None:
    folder = distill(longer(tmp_path, 4)).folder
    before = hashes(folder)
    results = [name for name in before if not name.startswith(("checkpoints", "revisions", "."))]
    distill(longer(tmp_path, 8))
    kept = hashes(folder / "step-4")
    assert kept.keys() >= {"run.json", "scores.json", "report.html", "settings.json", "model/model.safetensors"}
    assert kept == {name: before[name] for name in results if not name.startswith("rejected")}
    described = files.read_json(folder / "run.json")
    assert described["status"] == "finished" and described["extended"] == [{"updates": 4, "step": 4}]
    assert described["cost"]["updates"] == 8 and files.read_json(folder / "step-4" / "run.json")["cost"]["updates"] == 4
    assert files.read_json(folder / "scores.json")["settings"] != files.read_json(folder / "step-4" / "scores.json")["settings"]
    lines = train_lines(folder)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[:4] == train_lines(folder / "step-4")


def test_the_schedule_is_stretched_and_the_learning_rates_at_the_seam_are_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train_student(longer(tmp_path, 4)).parent
    capsys.readouterr()
    train_student(longer(tmp_path, 10))
    rates = [line["learning_rate"] for line in train_lines(folder)]
    assert rates == pytest.approx([rate(done, 4) for done in range(4)] + [rate(done, 10) for done in range(4, 10)])
    (event,) = events(folder)
    assert (event["step"], event["event"], event["updates_before"], event["updates_after"]) == (4, "extended", 4, 10)
    assert (event["before"]["learning_rate"], event["after"]["learning_rate"]) == (rates[3], rates[4])
    assert "step 4: extended from 4 to 10 updates; learning rate 0.000147 before and 0.000655 after" in capsys.readouterr().err


def test_with_a_constant_schedule_an_extended_run_equals_one_that_was_always_long(tmp_path: Path) -> None:
    sections = {"optimiser": {"learning_rate": PEAK, "schedule": "constant"}, "training": {"evaluate_every": 2}}
    for updates in (2, 4, 6):  # extended twice
        folder = train_student(longer(tmp_path, updates, **sections)).parent
    whole = train_student(longer(tmp_path, 6, **sections, out="whole")).parent
    assert files.digest(folder / "model" / "model.safetensors") == files.digest(whole / "model" / "model.safetensors")
    assert files.read_json(folder / "run.json")["extended"] == [{"updates": 2, "step": 2}, {"updates": 4, "step": 4}]
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-2", "step-4"]


def test_a_stopped_run_is_extended_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 2)
        train_student(longer(tmp_path, 4))
    folder = train_student(longer(tmp_path, 6)).parent
    assert [line["learning_rate"] for line in train_lines(folder)] == pytest.approx(
        [rate(done, 4) for done in range(2)] + [rate(done, 6) for done in range(2, 6)]
    )
    assert [event["step"] for event in events(folder)] == [2] and not list(folder.glob("step-*"))


def test_a_run_without_updates_begins_with_the_new_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_at(patch, 0)
        train_student(longer(tmp_path, 4))
    folder = train_student(longer(tmp_path, 5)).parent
    assert [line["learning_rate"] for line in train_lines(folder)] == pytest.approx([rate(done, 5) for done in range(5)])
    assert events(folder) == []


@pytest.mark.parametrize(("short", "long", "updates"), [("1 epoch", "2 epochs", 12), (5, "1.5 epochs", 9), ("1 epoch", 7, 7)])
def test_lengths_in_epochs_and_updates_are_compared(tmp_path: Path, short: int | str, long: int | str, updates: int) -> None:
    """24 examples in batches of 4: an epoch is 6 updates."""
    train_student(longer(tmp_path, short, "sft"))
    folder = train_student(longer(tmp_path, long, "sft")).parent
    assert [line["step"] for line in train_lines(folder)] == list(range(1, updates + 1))
    assert files.read_json(folder / "run.json")["config"]["training"]["updates"] == long


def test_what_depends_on_the_length_uses_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probability of fresh text of the policy adaptive decreases from `threshold` to 0 over the run."""
    from redistill.policies.adaptive import AdaptiveSource

    asked: list[float] = []
    probability = AdaptiveSource._fresh_probability
    monkeypatch.setattr(
        AdaptiveSource,
        "_fresh_probability",
        lambda self, update: asked.append(probability(self, update) / self._threshold) or probability(self, update),
    )
    policy = {"kind": "adaptive", "threshold": 1.0, "capacity": 4}
    train_student(longer(tmp_path, 4, "distillm", policy=policy))
    short = set(asked)
    asked.clear()
    train_student(longer(tmp_path, 8, "distillm", policy=policy))
    assert short <= {1 - update / 4 for update in range(1, 5)}
    assert asked and set(asked) <= {1 - update / 8 for update in range(5, 9)}


def test_a_longer_run_reads_more_of_its_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n\n".join(f"The {row['output']} {row['instruction']}" * 9 for row in rows(48)), encoding="utf-8")
    data = {"corpus": [str(corpus)], "tokens": {"prompt_tokens": 80, "response_tokens": 16}}
    objective = {"pretraining": {"weight": 1.0}}
    sections: dict[str, Any] = {"data": data, "objective": objective, "training": {"batch_size": 2}}
    folder = train_student(longer(tmp_path, 2, "sft", **sections)).parent
    short = files.read_json(folder / "run.json")["data"]["corpus"]["blocks"]
    train_student(longer(tmp_path, 4, "sft", **sections))
    assert files.read_json(folder / "run.json")["data"]["corpus"]["blocks"] > short
    corpus.write_text(corpus.read_text() + "more", encoding="utf-8")
    with pytest.raises(CheckpointError, match="different pre-training data"):
        train_student(longer(tmp_path, 6, "sft", **sections))


# --- rejected -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of 4 updates."""
    folder = tmp_path_factory.mktemp("finished")
    train_student(longer(folder, 4, "sft", training={"patience": 3}))
    return folder


def with_other_data(folder: Path) -> None:
    write_rows(folder / "train.jsonl", rows(24, 100))


CASES: dict[str, tuple[Callable[[Path], Run], str]] = {
    "fewer updates": (
        lambda folder: longer(folder, 3, "sft", training={"patience": 3}),
        "updates is 4 there and 3 here, and the number of updates can only be raised",
    ),
    "fewer epochs": (
        lambda folder: longer(folder, "0.5 epochs", "sft", training={"patience": 3}),
        "is 3 updates, but the run in this folder has 4, and the number can only be raised",
    ),
    "another seed": (lambda folder: longer(folder, 8, "sft", training={"patience": 3}, seed=4), "seed is 3 there and 4 here"),
    "another batch": (
        lambda folder: longer(folder, 8, "sft", training={"patience": 3, "batch_size": 8}),
        "training.batch_size is 4 there and 8 here",
    ),
    "another patience": (lambda folder: longer(folder, 8, "sft"), "training.patience is 3 there"),
}


@pytest.mark.parametrize("name", CASES)
def test_any_other_change_is_rejected_by_name_and_changes_nothing(finished: Path, name: str) -> None:
    config, message = CASES[name]
    made = config(finished)
    before = hashes(made.folder)
    with pytest.raises(ConfigError, match=message) as caught:
        train_student(made)
    assert "\n" not in str(caught.value) and hashes(made.folder) == before


def test_other_data_are_rejected_by_name(tmp_path: Path) -> None:
    folder = train_student(longer(tmp_path, 4, "sft")).parent
    before, config = hashes(folder), longer(tmp_path, 8, "sft")
    with_other_data(tmp_path)
    with pytest.raises(CheckpointError, match="different training data"):
        train_student(config)
    assert hashes(folder) == before


def test_a_run_that_early_stopping_ended_is_not_extended(tmp_path: Path) -> None:
    training = {"evaluate_every": 1, "patience": 1, "choose_by": "rouge_l"}
    optimiser = {"learning_rate": 1e-12, "final_learning_rate": 0.0}  # the second validation is no better
    folder = train_student(longer(tmp_path, 6, "sft", training=training, optimiser=optimiser)).parent
    assert files.read_json(folder / "run.json")["cost"]["updates"] == 2
    before = hashes(folder)
    with pytest.raises(ConfigError, match=r"early stopping ended the run at step 2 .training.patience = 1., so"):
        train_student(longer(tmp_path, 8, "sft", training=training, optimiser=optimiser))
    assert hashes(folder) == before


def test_a_finished_run_without_checkpoints_is_not_trained_from_scratch(tmp_path: Path) -> None:
    folder = train_student(longer(tmp_path, 4, "sft")).parent
    shutil.rmtree(folder / "checkpoints")
    before = hashes(folder)
    with pytest.raises(CheckpointError, match="has no checkpoint from which 8 updates could be reached"):
        train_student(longer(tmp_path, 8, "sft"))
    assert hashes(folder) == before


@pytest.mark.parametrize("length", [True, 1.5, None, "3 hours", [4], -1])
def test_an_invalid_length_in_run_json_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], length: object
) -> None:
    config = longer(tmp_path, 4, "sft")
    train_student(config)
    described = files.read_json(config.folder / "run.json")
    described["config"]["training"]["updates"] = length
    files.write_json(config.folder / "run.json", described)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(tmp_path / "recipe.yaml"), "training.updates=8"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("redistill: ")


def test_an_extended_run_and_the_shorter_one_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = distill(longer(tmp_path, 2, "sft")).folder
    distill(longer(tmp_path, 4, "sft"))
    capsys.readouterr()
    assert main(["compare", str(folder / "step-2"), str(folder), "--out", str(tmp_path / "c.csv")]) == 0
    assert "updates: 2 (step-2), 4 (run)" in capsys.readouterr().out
