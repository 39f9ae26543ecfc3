"""SIGTERM and SIGINT at any instant: every finished update is kept, and the same command ends as if nothing had been."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import redistill
from redistill.cli.main import main
from redistill.config.run import Run, encode_run
from redistill.errors import Interrupted
from redistill.policies.teacher import FILE as TEACHER_STORE
from redistill.processes import signals
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults.counts import WHOLE, trials
from tests.faults.instants import at_call, spread, spread_over
from tests.faults.ranks_job import BUFFERED, UPDATES, WITH_DROPOUT
from tests.worlds import tiny_run

SIGNALS = [signal.SIGTERM, signal.SIGINT]
LEFT_S = 5.0
TIMES = ("seconds", "draw_seconds", "tokens_per_s", "latency", "peak_bytes")
SECTIONS: dict[str, dict[str, Any]] = {  # a buffer that is drawn from, and a store of what the teacher wrote
    "mgsr": {"policy": BUFFERED},
    "seqkd": {},
}


def send(number: signal.Signals) -> None:
    """To this very process."""
    os.kill(os.getpid(), number)


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
            reached.append("restarted")
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
from redistill.processes import signals
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
    assert done.stderr == f"redistill: {number.name}: stopping at the next safe point; a second signal exits immediately\n"


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


@dataclass(frozen=True)
class Straight:
    """A run that nothing interrupted: its command, its folder, and the phase of each of its calls."""

    command: list[str]
    folder: Path
    phases: list[str]


@pytest.fixture(scope="module", params=list(SECTIONS))
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    folder = tmp_path_factory.mktemp(request.param)
    _, command = recipe(folder, request.param)
    # The first run of a process makes further calls, whose results later runs take from memory, such as the code's own hash.
    assert main([*command, "--out", str(folder / "first")]) == 0
    with at_call(None, lambda: None, with_phases=True) as calls:
        assert main([*command, "--out", str(folder / "straight")]) == 0
    return Straight(command, folder / "straight", calls.phases)


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind but for times: weights, states, logs, answers.

    Nor is the number of tokens compared that were written for training: what an interrupted step has left in a teacher's store
    is read after the resume, and not counted.
    """
    last = checkpoint.load_step(folder / "checkpoints", UPDATES)
    state = {**last.state, "training": without_times(last.state["training"])}
    del state["log_bytes"]  # the lines have times
    if (folder / TEACHER_STORE).exists():
        del state["training"]["generated_tokens"]
    answers = {path.name: files.read_lines(path) for path in sorted((folder / "responses").iterdir())}
    return {
        "state": state,
        "tensors": {f"{group}/{name}": t.clone() for group, tensors in last.tensors.items() for name, t in tensors.items()},
        "metrics": [without_times(line) for line in files.read_lines(folder / "metrics.jsonl")],
        "revisions": [files.read_lines(folder / f"{name}.jsonl") for name in ("revisions", "revision-positions")],
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


def test_every_instant_can_be_interrupted_and_the_run_ends_as_if_it_had_not_been(straight: Straight, tmp_path: Path) -> None:
    for trial, instant in enumerate(spread_over(straight.phases, trials(2, 15))):
        number, out, sent_at = SIGNALS[trial % 2], tmp_path / str(trial), list[float]()

        def act(number: signal.Signals = number, sent_at: list[float] = sent_at) -> None:
            sent_at.append(time.monotonic())
            send(number)

        with at_call(instant, act) as calls:
            code = main([*straight.command, "--out", str(out)])
        assert (code, calls.phase) == (128 + number, straight.phases[instant - 1]), calls
        assert time.monotonic() - sent_at[0] < LEFT_S or not WHOLE, calls
        finished = updates_logged(out)
        saved = checkpoint.load(out / "checkpoints") if finished else None
        assert (saved.step if saved else 0) == finished, f"{calls}: an update that was made is lost"
        assert main([*straight.command, "--out", str(out)]) == 0, calls
        assert_same(outcome(out), outcome(straight.folder))


def interrupt_twice(command: list[str], instant: int, log: Path) -> None:
    """In a process of its own: run `command` with Ctrl-C, and Ctrl-C again, at an instant; leaves when that was in `log`."""
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest was started behind an &

    def act() -> None:
        log.write_text(str(time.monotonic()), encoding="utf-8")
        send(signal.SIGINT)
        send(signal.SIGINT)

    with at_call(instant, act):
        main(command)


def test_a_second_signal_corrupts_nothing(straight: Straight, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.forked", __name__])
    saves = [number for number, phase in enumerate(straight.phases, start=1) if phase == "save"]
    for place in spread(len(saves), trials(1, 5)):
        out, log = tmp_path / str(place), tmp_path / f"{place}.log"
        process = context.Process(target=interrupt_twice, args=([*straight.command, "--out", str(out)], saves[place - 1], log))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGINT
        assert time.monotonic() - float(log.read_text(encoding="utf-8")) < 1.0 or not WHOLE
        assert main([*straight.command, "--out", str(out)]) == 0, place
        assert_same(outcome(out), outcome(straight.folder))


def test_a_finished_run_ends_well_again_and_changes_nothing(straight: Straight) -> None:
    paths = [path for path in sorted(straight.folder.rglob("*")) if path.is_file() and path.name != "report.html"]
    before = {path: files.digest(path) for path in paths}
    assert main([*straight.command, "--out", str(straight.folder)]) == 0
    assert {path: files.digest(path) for path in before} == before
