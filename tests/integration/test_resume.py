"""A run that was interrupted ends exactly as one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.config.run import Run
from redistill.errors import Interrupted
from redistill.policies.state import StoredState, restore
from redistill.runs.run import distill, train_student
from redistill.storage import files
from redistill.training import checkpoint
from redistill.training import loop as training
from tests.policies.test_state import as_json
from tests.worlds import GPT2, tiny_run

WITH_DROPOUT = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
LOGS = ("metrics.jsonl", "revisions.jsonl", "revision-positions.jsonl")
TIMES = ("seconds", "draw_seconds", "tokens_per_s", "peak_bytes")
UPDATES, INTERRUPTED = 10, 5


SECTIONS: dict[str, dict[str, Any]] = {  # the interruption is within a cycle of roll-outs, and with a filled buffer
    "minillm": {"policy": {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 8, "inner_epochs": 2}},
    "distillm": {"policy": {"kind": "adaptive", "threshold": 0.8, "capacity": 6, "source": {"kind": "revised"}}},
    "adapters": {"method": "kd", "student": {"lora": {"rank": 2, "alpha": 4}}},
    "ahead": {"method": "distillm", "engine": {"kind": "local", "ahead": 4}},  # text of two more updates is waiting
}


def run(folder: Path, out: str, method: str = "mgsr") -> Run:
    settings = {"updates": UPDATES, "batch_size": 4, "micro_batch_size": 2, "save_every": INTERRUPTED, "log_every": 1}
    sections = {"method": method, **SECTIONS.get(method, {})}
    return tiny_run(folder, config=WITH_DROPOUT, out=out, training=settings, **sections)


def train_until_interrupted(config: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train as a user who presses Ctrl-C a little after the checkpoint: one more update is logged, then all stops."""
    log_update = training._log_update

    def interrupted(parts: Any, state: Any, *rest: Any) -> None:
        log_update(parts, state, *rest)
        if state.step == INTERRUPTED + 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_log_update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_student(config)


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module", params=["mgsr", "seqkd", "minillm", "distillm", "adapters", "ahead"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run twice: straight through, and interrupted."""
    folder = tmp_path_factory.mktemp("resume")
    straight, resumed = run(folder, "straight", request.param), run(folder, "resumed", request.param)
    train_student(straight)
    with pytest.MonkeyPatch.context() as monkeypatch:
        train_until_interrupted(resumed, monkeypatch)
    assert checkpoint.steps(resumed.folder / "checkpoints") == [INTERRUPTED]
    assert [line["step"] for line in files.read_lines(resumed.folder / "metrics.jsonl")][-1] == INTERRUPTED + 1
    assert files.read_json(resumed.folder / "run.json")["status"] == "running"
    train_student(resumed)
    return straight.folder, resumed.folder


only_mgsr = pytest.mark.parametrize("folders", ["mgsr"], indirect=True)


def test_weights_clip_network_and_optimiser_are_bitwise_equal(folders: tuple[Path, Path]) -> None:
    straight, resumed = (checkpoint.load_step(folder / "checkpoints", UPDATES) for folder in folders)
    assert set(straight.tensors) == set(resumed.tensors) >= {"model", "optimizer"}
    for group, tensors in straight.tensors.items():
        assert tensors.keys() == resumed.tensors[group].keys()
        for name, value in tensors.items():
            assert torch.equal(value, resumed.tensors[group][name]), f"{group}: {name}"
    states = [{**found.state, "training": without_times([found.state["training"]])} for found in (straight, resumed)]
    for state in states:
        assert state.pop("log_bytes").keys() == set(LOGS), "the sizes vary with the digits of times"
    assert states[0] == states[1]


def test_logs_are_the_same_apart_from_times(folders: tuple[Path, Path]) -> None:
    straight, resumed = (files.read_lines(folder / "metrics.jsonl") for folder in folders)
    assert without_times(straight) == without_times(resumed)
    assert [line["step"] for line in resumed if line["kind"] == "train"] == list(range(1, UPDATES + 1))


@only_mgsr
def test_revisions_are_the_same_without_duplicates(folders: tuple[Path, Path]) -> None:
    for name in LOGS[1:]:
        straight, resumed = (files.read_lines(folder / name) for folder in folders)
        assert straight == resumed
        places = [(line["step"], line["sample"]) for line in resumed]
        assert len(places) == len(set(places)) > UPDATES / 2


def test_exported_students_are_the_same_files(folders: tuple[Path, Path]) -> None:
    straight, resumed = (folder / "model" for folder in folders)
    names = sorted(path.name for path in straight.iterdir())
    assert names == sorted(path.name for path in resumed.iterdir())
    assert [files.digest(straight / name) for name in names] == [files.digest(resumed / name) for name in names]


@only_mgsr
def test_dropout_was_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Otherwise the tests above would not cover it: the same update without dropout has another loss."""
    still = {**WITH_DROPOUT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    without = tiny_run(tmp_path, config=still, training={"updates": 1, "batch_size": 4, "micro_batch_size": 2})
    train_student(without)
    with_dropout = files.read_lines(folders[0] / "metrics.jsonl")[1]
    assert files.read_lines(without.folder / "metrics.jsonl")[1]["sft"] != with_dropout["sft"]


@only_mgsr
def test_the_same_call_finishes_the_run_without_partial_files(folders: tuple[Path, Path]) -> None:
    config = run(folders[1].parent, "resumed")
    assert files.read_json(config.folder / "run.json")["status"] == "trained"
    assert distill(config).report.exists()
    assert files.read_json(config.folder / "run.json")["status"] == "finished"
    assert not list(config.folder.rglob(f"{files.TEMPORARY}*"))


@pytest.mark.parametrize("method", ["minillm", "distillm"])
def test_a_checkpoint_with_the_policy_as_json_is_resumed_bitwise(tmp_path: Path, method: str, monkeypatch) -> None:
    """The format of commit 3d89816 and earlier versions, which also lack the sizes of the logs."""
    straight, resumed = run(tmp_path, "straight", method), run(tmp_path, "resumed", method)
    train_student(straight)
    train_until_interrupted(resumed, monkeypatch)
    folder = resumed.folder / "checkpoints"
    found = checkpoint.load_step(folder, INTERRUPTED)
    tensors = {group: dict(members) for group, members in found.tensors.items()}
    entries = found.state["policy_entries"]
    policy = restore(StoredState(tensors=tensors.pop("policy"), values=found.state["policy"], entries=entries))
    newer = {"policy_entries", "log_bytes"}
    state = {name: value for name, value in found.state.items() if name not in newer} | {"policy": as_json(policy)}
    checkpoint.save(folder, INTERRUPTED, tensors=tensors, state=state, keep=1)
    train_student(resumed)
    states = [checkpoint.load_step(config.folder / "checkpoints", UPDATES) for config in (straight, resumed)]
    assert states[0].state["policy"] == states[1].state["policy"] and "policy" in states[0].tensors
    for group, members in states[0].tensors.items():
        assert all(torch.equal(value, states[1].tensors[group][name]) for name, value in members.items()), group
    for name in ("metrics.jsonl", "revisions.jsonl"):
        lines = [without_times(files.read_lines(config.folder / name)) for config in (straight, resumed)]
        assert lines[0] == lines[1]


def test_corrections_of_an_interrupted_update_are_not_in_its_log_twice(tmp_path: Path, monkeypatch) -> None:
    """The signal arrives when the text of the update has been generated, and its corrections have been logged."""
    straight, resumed = run(tmp_path, "straight"), run(tmp_path, "resumed")
    train_student(straight)
    gradients, step_of_signal = training.gradients, INTERRUPTED + 1

    def interrupted(draw: Any, parts: Any, step: int) -> Any:
        if step == step_of_signal:
            raise Interrupted(15)
        return gradients(draw, parts, step)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training, "gradients", interrupted)
        train_student(resumed)
    lines = [files.read_lines(config.folder / "revisions.jsonl") for config in (straight, resumed)]
    assert lines[1] == [line for line in lines[0] if line["step"] <= step_of_signal] != lines[0]
    train_student(resumed)
    assert files.read_lines(resumed.folder / "revisions.jsonl") == lines[0]
