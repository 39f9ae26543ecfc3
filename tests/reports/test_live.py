"""The state of a run in progress: incremental reading, truncated logs, phases, and the view of `redistill watch`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.cli.main import main
from redistill.reports.live import LiveRun, LogTail
from redistill.reports.live_frame import BARS, spark
from redistill.storage import files, logs

REDISTILL = [sys.executable, "-P", "-m", "redistill"]


def update(step: int, **values: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1 / step, "seconds": 2.0, "tokens_per_s": 100.0, **values}


def write_run(folder: Path, status: str = "running", updates: int | str = 10, steps: int = 4) -> Path:
    """A run folder with the files that a view reads."""
    config = {"training": {"updates": updates, "batch_size": 8}}
    described = {
        "schema": 2,
        "name": "first",
        "method": "kd",
        "status": status,
        "config": config,
        "data": {"kept": {"train": 80}},
    }
    files.write_json(folder / "run.json", described)
    files.append_lines(folder / "metrics.jsonl", [update(step) for step in range(1, steps + 1)])
    return folder


# --- reading ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(), max_size=4), max_size=6))
@settings(max_examples=25, deadline=None)
def test_every_line_is_returned_once(tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("tail") / "log.jsonl"
    tail, found = LogTail(path), list[Mapping[str, Any]]()
    for part in parts:
        if part:
            files.append_lines(path, [{"n": n} for n in part])
        assert not tail.has_changed()
        found += tail.lines()
    assert found == [{"n": n} for part in parts for n in part]


def test_a_line_without_its_end_is_returned_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    tail = LogTail(path)
    path.write_bytes(b'{"n": 1}\n{"n"')
    assert list(tail.lines()) == [{"n": 1}]
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n')
    assert list(tail.lines()) == [{"n": 2}] and list(tail.lines()) == []


def test_lines_that_are_not_json_objects_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'[1]\nnot json\n\xff\xfe\n{"n": 1}\n')
    assert list(LogTail(path).lines()) == [{"n": 1}]


@pytest.mark.parametrize("how", ["shorter", "longer", "replaced", "removed"])
def test_a_log_that_a_resume_truncates_is_read_again(tmp_path: Path, how: str) -> None:
    folder = write_run(tmp_path / "run", steps=4)
    run, log = LiveRun(folder), folder / "metrics.jsonl"
    assert run.state().step == 4
    size = sum(len(line) + 1 for line in log.read_bytes().splitlines()[:2])
    if how == "removed":
        log.unlink()
    elif how == "replaced":
        logs.truncate_after(log, 2)
    else:
        assert logs.truncate(log, size)
    expected = 0 if how == "removed" else 2
    if how == "longer":
        files.append_lines(log, [update(step, loss=7.0) for step in range(3, 9)])
        expected = 8
    state = run.state()
    assert state.step == expected and len(state.curves.get("loss", ())) == expected
    if how == "longer":
        assert state.curves["loss"][2:] == [7.0] * 6


# --- the state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "locked", "phase"),
    [
        ("running", True, "training"),
        ("running", False, "stopped"),
        ("trained", True, "evaluating"),
        ("trained", False, "trained"),
        ("finished", False, "finished"),
    ],
)
def test_the_phase_follows_from_run_json_and_the_lock(tmp_path: Path, status: str, locked: bool, phase: str) -> None:
    folder = write_run(tmp_path / "run", status)
    if locked:
        (folder / ".lock").touch()
    state = LiveRun(folder).state()
    assert state.phase == phase and (state.left_s == 12.0 if phase == "training" else state.left_s is None)


@pytest.mark.parametrize(("updates", "number"), [(10, 10), ("2 epochs", 20), ("x", None), (True, None), (None, None)])
def test_the_length_of_the_run_may_be_in_epochs(tmp_path: Path, updates: Any, number: int | None) -> None:
    assert LiveRun(write_run(tmp_path / "run", updates=updates)).state().updates == number


def test_a_folder_that_is_created_later_is_found(tmp_path: Path) -> None:
    run = LiveRun(tmp_path / "run")
    assert run.state().phase == "waiting"
    write_run(tmp_path / "run")
    assert run.state().step == 4


@given(st.lists(st.floats(-1e9, 1e9), max_size=200), st.integers(1, 60))
def test_a_curve_of_bars_has_its_extremes_at_the_extremes(values: list[float], width: int) -> None:
    bars = spark(values, width)
    assert len(bars) == min(len(values), width) and set(bars) <= set(BARS)
    if 1 < len(values) <= width and max(values) - min(values) > 1:
        assert bars[values.index(max(values))] == BARS[-1] and bars[values.index(min(values))] == BARS[0]


# --- the command --------------------------------------------------------------------------------------------------------


def test_one_frame_shows_progress_scores_events_and_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    (folder / ".lock").touch()
    event = {"kind": "event", "step": 4, "event": "loss_spike", "text": "step 4: \x1b[31ma spike\x1b[0m [bold]"}
    files.append_lines(folder / "metrics.jsonl", [{"kind": "validation", "step": 4, "rouge_l": 12.5, "kl": None}, event])
    assert main(["watch", str(folder), "--once"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "first (kd): training",
        "step 4/10",
        "0:12 left",
        "100 tokens/s",
        "rouge_l 12.5",
        "event: step 4: a spike [bold]",
    ):
        assert text in " ".join(printed.split()), text
    assert "█▃▂▁" in printed and "\x1b" not in printed
    assert main(["watch", str(folder), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["step"], document["left_s"], document["validation"]["rouge_l"]) == (4, 12.0, 12.5)


def test_the_view_ends_when_the_run_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(write_run(tmp_path / "run", "finished"))]) == 0
    assert "first (kd): finished" in capsys.readouterr().out


def test_a_damaged_run_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "run.json").write_text("{")
    assert main(["watch", str(folder), "--once"]) == 2
    assert "run.json: not JSON" in capsys.readouterr().err
    assert [main(["watch", str(folder), "--interval", text]) for text in ("0", "1e300")] == [2, 2]


def test_the_view_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from redistill.cli.main import main; main(['watch', sys.argv[1], '--once']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(write_run(tmp_path / "run"))], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_a_closed_pipe_ends_the_view_quietly(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    watching = subprocess.Popen(
        [*REDISTILL, "watch", folder, "--interval", "0.1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None and watching.stderr is not None
    assert watching.stdout.readline().startswith("first (kd): stopped")
    watching.stdout.close()
    files.append_line(folder / "metrics.jsonl", update(5))
    assert watching.wait(timeout=60) == 0 and watching.stderr.read() == ""
    watching.stderr.close()


def test_ctrl_c_ends_the_view_as_any_command(tmp_path: Path) -> None:
    watching = subprocess.Popen(
        [*REDISTILL, "watch", tmp_path / "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None and "waiting for run.json" in watching.stdout.readline()
    os.kill(watching.pid, signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 130 and "Traceback" not in errors
