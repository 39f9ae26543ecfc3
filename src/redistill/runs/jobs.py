"""Runs commands in parallel, each in its own process with its own log."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from redistill.errors import Interrupted, OutputError
from redistill.training.progress import TerminalBar, duration, error_console

_POLL_S = 0.1
_STOP_S = 60.0  # a child may be writing a checkpoint
_TAIL_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command to run.

    Args:
        name: A unique name.
        command: The program and its arguments.
        log: File to which its output is appended.
        needs: Names of jobs that must succeed before it starts.
    """

    name: str
    command: Sequence[str]
    log: Path
    needs: Sequence[str] = ()


@dataclass(frozen=True)
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    started: float


class JobProgress(TerminalBar):
    """A line for each job that starts or ends, with the remaining time of all jobs; on a terminal also a bar.

    A context manager.

    Args:
        total: Number of jobs.
        console: The output; None prints to the standard error stream.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, total: int, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._ended, self._clock, self._start = total, 0, clock, clock()
        super().__init__(console or error_console(), total, self._line())

    def started(self, name: str) -> None:
        self._print(f"{name}: started")

    def ended(self, name: str, seconds: float, outcome: str) -> None:
        """Print that a job ended after `seconds`, with its `outcome`, a phrase or ""."""
        self._ended += 1
        line = self._line()
        parts = [f"{name}: {duration(seconds)}", *([outcome] if outcome else []), *([] if self._bar else [line])]
        self._print("  ".join(parts))
        self._show(line, completed=self._ended)

    def _line(self) -> str:
        """Number of jobs that have ended, and the remaining time at the average duration so far."""
        line = f"{self._ended}/{self._total}"
        if not 0 < self._ended < self._total:
            return line
        return f"{line}  {duration((self._clock() - self._start) / self._ended * (self._total - self._ended))} left"


def run_jobs(
    jobs: Sequence[Job],
    limit: int,
    *,
    environment: Mapping[str, str],
    on_start: Callable[[Job], None],
    on_end: Callable[[Job, int, float], None],
    keep_open: Sequence[int] = (),
) -> dict[str, int]:
    """Run all jobs, at most `limit` at a time, in the given order as far as their needs allow.

    A failed job stops only the jobs that need it.  Ctrl-C, SIGTERM or SIGHUP sends SIGTERM to the running jobs and raises
    `Interrupted` when they have ended; a second signal kills them.

    Args:
        jobs: The jobs.
        limit: Maximum number of running jobs, >= 1.
        environment: Environment variables of the processes.
        on_start: Called with each job that starts.
        on_end: Called with each job that has ended, its exit code, and its duration in seconds.
        keep_open: File descriptors that the processes inherit.

    Returns:
        Exit codes by name; a job that was not started because one of its needs failed has none.

    Raises:
        Interrupted: a signal arrived.
        OutputError: a log cannot be written.
    """
    assert len({job.name for job in jobs}) == len(jobs)
    waiting, running, codes = list(jobs), list[_Child](), dict[str, int]()
    with _interruptible() as interruption:
        try:
            while waiting or running:
                interruption.check()
                for job in _ready(waiting, codes)[: limit - len(running)]:
                    waiting.remove(job)
                    running.append(_start(job, environment, keep_open))
                    on_start(job)
                ended = [child for child in running if child.process.poll() is not None]
                for child in ended:
                    running.remove(child)
                    codes[child.job.name] = child.process.returncode
                    on_end(child.job, child.process.returncode, time.monotonic() - child.started)
                if not ended and not running:
                    break  # the waiting jobs need failed ones
                if not ended:
                    time.sleep(_POLL_S)
            interruption.check()
        finally:
            interruption.is_urgent = True
            _stop(running)
    return codes


def last_line(log: Path) -> str:
    """The last line of a log that is not blank; "" if there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _ready(waiting: Sequence[Job], codes: Mapping[str, int]) -> list[Job]:
    return [job for job in waiting if all(codes.get(need) == 0 for need in job.needs)]


def _start(job: Job, environment: Mapping[str, str], keep_open: Sequence[int]) -> _Child:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            # A new session: Ctrl-C in a terminal signals only this process, which then stops each child once.
            process = subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=keep_open,
            )
    except OSError as error:
        raise OutputError(f"{job.log}: cannot be written ({error.strerror}); choose another output folder") from error
    return _Child(job, process, time.monotonic())


def _stop(children: Sequence[_Child]) -> None:
    """Terminate the children with SIGTERM, and kill them after a timeout or at a second signal."""
    try:
        for child in children:
            _signal(child, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for child in children:
            if child.process.poll() is None:
                _signal(child, signal.SIGKILL)
                child.process.wait()


def _signal(child: _Child, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, number)  # the first process of a session is the leader of its process group


@dataclass
class _Interruption:
    """A signal that has arrived, and whether another one raises `Interrupted` in the handler."""

    number: int | None = None
    is_urgent: bool = False

    def arrive(self, number: int, frame: FrameType | None) -> None:
        if self.is_urgent:
            raise Interrupted(number)
        # Not raised here: a child that has just been started is in no list yet, and would not be stopped.
        self.number = self.number or number

    def check(self) -> None:
        if self.number is not None:
            raise Interrupted(self.number)


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interruption]:
    """Record signals while the block runs; a signal that is ignored, as under nohup, stays ignored."""
    interruption = _Interruption()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interruption.arrive)
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
