"""Parallel commands: order, needs, failures, interruptions."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from redistill.errors import Interrupted, OutputError
from redistill.processes import signals
from redistill.runs.executors.local import start_process
from redistill.runs.job_table import JobTable
from redistill.runs.jobs import Job, JobProgress, last_line, run_jobs
from redistill.storage.files import write_json
from redistill.storage.lock import LOCK

FAIL = "print('first'); print('it broke', flush=True); raise SystemExit(3)"


class Watch:
    """The callbacks of run_jobs, and the largest number of running jobs."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.running = self.most = 0

    def start(self, job: Job) -> None:
        self.told.append(("start", job.name))
        self.running += 1
        self.most = max(self.most, self.running)

    def end(self, job: Job, code: int, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(("end", job.name))
        self.running -= 1


def job(folder: Path, name: str, code: str = "", needs: Sequence[str] = ()) -> Job:
    return Job(name=name, command=(sys.executable, "-c", code), log=folder / name / "log.txt", needs=needs)


def run(jobs: Sequence[Job], limit: int = 2, watch: Watch | None = None, **environment: str) -> dict[str, int]:
    watch = watch or Watch()
    start = partial(start_process, environment={**os.environ, **environment})
    return run_jobs(jobs, limit, start=start, on_start=watch.start, on_end=watch.end)


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_all_jobs_run_and_at_most_limit_at_once(tmp_path: Path, limit: int) -> None:
    watch = Watch()
    assert run([job(tmp_path, f"j{i}") for i in range(5)], limit, watch) == {f"j{i}": 0 for i in range(5)}
    assert [name for what, name in watch.told if what == "start"] == [f"j{i}" for i in range(5)]
    assert watch.most <= limit and watch.running == 0


def test_a_job_starts_after_the_jobs_that_it_needs(tmp_path: Path) -> None:
    watch = Watch()
    run([job(tmp_path, "run", needs=["stage"]), job(tmp_path, "stage"), job(tmp_path, "free")], 2, watch)
    assert watch.told.index(("end", "stage")) < watch.told.index(("start", "run"))
    assert watch.told.index(("start", "free")) < watch.told.index(("start", "run"))


def test_a_failed_job_stops_only_the_jobs_that_need_it(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "stage", FAIL),
        job(tmp_path, "run", needs=["stage"]),
        job(tmp_path, "after", needs=["run"]),
        job(tmp_path, "free"),
    ]
    assert run(jobs, 1) == {"stage": 3, "free": 0}
    assert last_line(tmp_path / "stage" / "log.txt") == "it broke"


def test_a_log_is_appended_to_and_has_both_streams(tmp_path: Path) -> None:
    both = "import sys; print('out', flush=True); print('err', file=sys.stderr)"
    for _ in range(2):
        run([job(tmp_path, "a", both)])
    assert (tmp_path / "a" / "log.txt").read_text().split() == ["out", "err"] * 2
    assert last_line(tmp_path / "none.txt") == ""


def test_jobs_get_the_environment(tmp_path: Path) -> None:
    run([job(tmp_path, "a", "import os; print(os.environ['OMP_NUM_THREADS'])")], OMP_NUM_THREADS="7")
    assert last_line(tmp_path / "a" / "log.txt") == "7"


@pytest.fixture
def hangup_by_default():
    """The default disposition of SIGHUP, which `nohup` disables for the tests too."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("hangup_by_default")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_stops_running_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    started: list[int] = []
    made: list[subprocess.Popen] = []

    def interrupt(started_job: Job) -> None:
        started.append(1)
        if len(started) == 2:
            os.kill(os.getpid(), number)

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    endless = "import time\nwhile True: time.sleep(0.01)"
    jobs = [job(tmp_path, name, endless) for name in ("a", "b", "c")]
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 2, start=partial(start_process, environment=os.environ), on_start=interrupt, on_end=lambda *told: None)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == handlers
    assert not (tmp_path / "c").exists()
    assert [process.returncode for process in made] == [-signal.SIGTERM] * 2


def test_an_interruption_during_a_start_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen] = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run([job(tmp_path, "a", "import time\nwhile True: time.sleep(0.01)")])
    assert [process.returncode for process in made] == [-signal.SIGTERM]


def test_a_second_signal_kills_a_job_that_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job sends the first signal, and at once the second one when it is asked to stop, in the context of the command."""
    made: list[subprocess.Popen] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: made.append(popen(*given, **options)) or made[-1])
    endless = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGTERM))
os.kill(os.getppid(), signal.SIGINT)
while True: time.sleep(0.01)
"""
    with pytest.raises(Interrupted) as caught, signals.handled(at_once=True):
        run([job(tmp_path, "a", endless)])
    assert caught.value.exit_code == 128 + signal.SIGINT
    assert [process.returncode for process in made] == [-signal.SIGKILL]


def test_an_ignored_hangup_stops_nothing(tmp_path: Path) -> None:
    class Hangup(Watch):
        def start(self, job: Job) -> None:
            super().start(job)
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run([job(tmp_path, "a")], 1, Hangup()) == {"a": 0}
    finally:
        signal.signal(signal.SIGHUP, before)


def told(folder: Path, *, terminal: bool) -> str:
    """The output for four jobs, of which two have ended after 60 s."""
    seconds = iter([0.0, 60.0, 60.0])
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with JobProgress(4, console=console, clock=lambda: next(seconds)) as progress:
        progress.started("a", folder / "a")
        progress.ended("a", 30.4, "ROUGE-L 70.00")
        progress.ended("b", 60.0, "")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_in_a_log_is_a_line_for_each_job_with_the_time_left(tmp_path: Path) -> None:
    assert told(tmp_path, terminal=False).splitlines() == [
        "a: started",
        "a: 0:30  ROUGE-L 70.00  1/4  3:00 left",
        "b: 1:00  2/4  1:00 left",
    ]


def test_progress_on_a_terminal_has_a_table_and_a_bar_below_the_lines(tmp_path: Path) -> None:
    text = told(tmp_path, terminal=True)
    assert "a: 0:30  ROUGE-L 70.00" in text and "2/4  1:00 left" in text
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).split() for line in text.splitlines()]
    assert ["run", "status", "step", "loss", "time", "left"] in lines and ["a", "finished"] in lines


def test_the_table_has_the_figures_of_each_run(tmp_path: Path) -> None:
    """The figures are those of the files, so that the executor of a run does not matter; they are read once a second."""
    now = 0.0
    table = JobTable(height=24, clock=lambda: now)
    for name in ("a", "b", "c"):
        table.start(name, tmp_path / name)
    running = tmp_path / "b"
    write_json(running / "run.json", {"status": "training", "config": {"training": {"updates": 10}}})
    (running / LOCK).touch()
    log = [{"kind": "train", "step": step, "loss": 1 / step, "seconds": 2.0} for step in range(1, 4)]
    (running / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log[:2]))
    table.end("a", "failed")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "run.json").write_text("{")
    expected = [("b", "training", "2/10", "0.5", "0:16"), ("c", "running", "", "", ""), ("a", "failed", "", "", "")]
    assert table.rows() == expected
    (running / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    assert table.rows() == expected
    now = 1.0
    assert table.rows()[0] == ("b", "training", "3/10", "0.3333", "0:14")


def test_a_small_terminal_shows_running_jobs_first(tmp_path: Path) -> None:
    table = JobTable(height=8)
    for name in "abcd":
        table.start(name, tmp_path / name)
    for name in "abc":
        table.end(name, "finished")
    assert [row[0] for row in table.rows()] == ["d", "c"]


def test_one_signal_kills_jobs_that_are_stopped_because_of_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: made.append(popen(*given, **options)) or made[-1])
    endless = f"""
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))
open({str(tmp_path / "ready")!r}, "w").close()
while True: time.sleep(0.01)
"""

    def fail(started: Job) -> None:
        while not (tmp_path / "ready").exists():
            pass
        raise OutputError("full")

    with pytest.raises(OutputError):
        run_jobs(
            [job(tmp_path, "a", endless)],
            1,
            start=partial(start_process, environment=os.environ),
            on_start=fail,
            on_end=lambda *told: None,
        )
    assert [process.returncode for process in made] == [-signal.SIGKILL]
