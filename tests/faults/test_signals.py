"""SIGTERM and SIGINT at any instant: every finished update is kept, and the same command ends as if nothing had been."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import redistill
from redistill import checkpoint, files, signals
from redistill.cli import main
from redistill.config import Run, encode_run
from redistill.errors import Interrupted
from tests.faults.counts import trials
from tests.faults.instants import at_call, spread
from tests.worlds import GPT2, tiny_run

SIGNALS = [signal.SIGTERM, signal.SIGINT]
UPDATES = 4
TIMES = ("seconds", "draw_seconds", "tokens_per_s", "peak_bytes")
WITH_DROPOUT = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
SECTIONS: dict[str, dict[str, Any]] = {  # a buffer that is drawn from, and a store of what the teacher wrote
    "mgsr": {"policy": {"kind": "adaptive", "threshold": 0.9, "capacity": 4, "source": {"kind": "revised"}}},
    "seqkd": {},
}
send: Callable[[signal.Signals], None] = partial(os.kill, os.getpid())

# --- the flag -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_answered_where_the_work_looks_and_not_before(number: signal.Signals, code: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted) as caught, signals.handled():
        signals.poll()
        send(number)
        signals.poll()
        raise AssertionError("not reached")
    assert (str(caught.value), caught.value.exit_code) == (number.name, code)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_gather_answers_as_well() -> None:
    with pytest.raises(Interrupted), signals.handled():
        assert signals.gather([1, 2]) == [1, 2]
        send(signal.SIGTERM)
        signals.gather([1, 2])


def test_work_that_may_be_left_anywhere_is_left_at_once() -> None:
    reached = []
    with pytest.raises(Interrupted), signals.handled(at_once=True):
        reached.append("begun")
        send(signal.SIGTERM)
        reached.append("ended")
    assert reached == ["begun"]


def test_inside_it_other_work_is_not() -> None:
    reached = []
    with pytest.raises(Interrupted), signals.handled(at_once=True), signals.handled():
        send(signal.SIGTERM)
        reached.append("ended")
        with signals.handled(at_once=True):
            reached.append("begun anew")
    assert reached == ["ended"]


def test_a_signal_that_comes_when_all_is_done_is_none() -> None:
    with signals.handled():
        send(signal.SIGTERM)
    with signals.handled():
        signals.poll()


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as the shell does for a command behind which an & stands
    try:
        with signals.handled():
            send(signal.SIGINT)
            signals.poll()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_no_handler_is_touched() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    seen: list[Any] = []

    def elsewhere() -> None:
        with signals.handled():
            signals.poll()
            seen.extend(signal.getsignal(each) for each in SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == before


TWICE = """
import os, signal, sys, time
from redistill import signals
clock = [100.0]
time.monotonic = lambda: clock[0]
with signals.handled():
    for passed in map(float, sys.argv[2:]):
        clock[0] += passed
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
print("still here")
"""


def sent(name: str, *waits: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process that sends itself a signal, again after each of `waits` seconds on its clock."""
    package = Path(redistill.__file__).parents[1]
    kept = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE"}}
    command = [sys.executable, "-c", TWICE, name, "0", *map(str, waits)]
    return subprocess.run(
        command,
        env={**kept, "PYTHONPATH": str(package), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_there_and_then(number: signal.Signals) -> None:
    done = sent(number.name, 0.2)
    assert done.returncode == -number and "still here" not in done.stdout
    assert done.stderr == f"redistill: {number.name}: stopping in order; a second one ends it now\n"


def test_what_a_launcher_passes_on_is_no_second_signal() -> None:
    job = {"RANK": "0", "WORLD_SIZE": "2"}
    assert sent("SIGINT", 0.5, **job).stdout == "still here\n"
    done = sent("SIGINT", 0.5, 1.0, **job)
    assert (done.returncode, done.stdout) == (130, "")


# --- whole runs ---------------------------------------------------------------------------------------------------------


def recipe(folder: Path, method: str) -> tuple[Run, list[str]]:
    """A run with all that can be interrupted, and the command for it."""
    settings = {"updates": UPDATES, "batch_size": 4, "micro_batch_size": 2, "evaluate_every": 2}
    config = tiny_run(folder, method, config=WITH_DROPOUT, training=settings, **SECTIONS[method])
    path = folder / f"{method}.yaml"
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return config, ["run", str(path)]


@pytest.fixture(scope="module", params=list(SECTIONS))
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, int]:
    """The command, the folder of the run that nothing interrupted, and how many calls it took."""
    folder = tmp_path_factory.mktemp(request.param)
    _, command = recipe(folder, request.param)
    with at_call(None, lambda: None) as calls:
        assert main([*command, "--out", str(folder / "straight")]) == 0
    return command, folder / "straight", calls.number


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind but for times: weights, states, logs, answers."""
    last = checkpoint.load_step(folder / "checkpoints", UPDATES)
    state = {**last.state, "training": without_times(last.state["training"])}
    answers = {path.name: files.read_lines(path) for path in sorted((folder / "responses").iterdir())}
    return {
        "state": state,
        "tensors": {f"{group}/{name}": t.clone() for group, tensors in last.tensors.items() for name, t in tensors.items()},
        "metrics": [without_times(line) for line in files.read_lines(folder / "metrics.jsonl")],
        "revisions": files.read_lines(folder / "revisions.jsonl"),
        "model": files.digest(folder / "model" / "model.safetensors"),
        "answers": answers,
    }


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in TIMES}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    tensors = found.pop("tensors"), expected.pop("tensors")
    assert found == expected
    assert tensors[0].keys() == tensors[1].keys()
    assert [name for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])] == []


def updates_logged(folder: Path) -> int:
    return sum(line["kind"] == "train" for line in files.read_lines(folder / "metrics.jsonl"))


def test_every_instant_can_be_interrupted_and_the_run_ends_as_if_it_had_not_been(
    straight: tuple[list[str], Path, int], tmp_path: Path
) -> None:
    command, untouched, total = straight
    instants = spread(total, trials(2, 15))
    for trial, instant in enumerate(instants):
        number, out = SIGNALS[trial % 2], tmp_path / str(trial)
        with at_call(instant, lambda number=number: send(number)) as calls:
            code = main([*command, "--out", str(out)])
        assert (code, calls.where is None) == (128 + number, False), calls
        finished = updates_logged(out)
        saved = checkpoint.load(out / "checkpoints") if finished else None
        assert (saved.step if saved else 0) == finished, f"{calls}: an update that was made is lost"
        assert main([*command, "--out", str(out)]) == 0, calls
        assert_same(outcome(out), outcome(untouched))


def test_a_finished_run_ends_well_again_and_changes_nothing(straight: tuple[list[str], Path, int]) -> None:
    command, folder, _ = straight
    before = {path: files.digest(path) for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "report.html"}
    assert main([*command, "--out", str(folder)]) == 0
    assert {path: files.digest(path) for path in before} == before
