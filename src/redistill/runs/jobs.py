"""Schedules jobs: commands that run in parallel, each with its own log file.

This module decides when a job starts and when it must stop.  An executor (redistill.runs.executors) decides where it runs.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from redistill.processes import signals, streams
from redistill.runs.job_table import JobTable
from redistill.training.progress import TerminalBar, duration

_POLL_S = 0.1
_STOP_S = 60.0  # a child may be writing a checkpoint
_TAIL_BYTES = 8192


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command to run.

    Args:
        name: A name that no other job has.
        command: The program and its arguments.
        log: File to which the command's output is appended.
        needs: Names of jobs that must succeed before this job starts.
    """

    name: str
    command: Sequence[str]
    log: Path
    needs: Sequence[str] = ()


class Child(Protocol):
    """A job that has started; it may run on another machine."""

    def poll(self) -> int | None:
        """Return the exit code of the job, or None if the job has not ended."""
        ...

    def terminate(self) -> None:
        """Request that the job saves its state and ends; return immediately."""
        ...

    def kill(self) -> None:
        """End the job without saving its state."""
        ...


@dataclass(frozen=True)
class _Running:
    job: Job
    child: Child
    started: float


class JobProgress(TerminalBar):
    """Prints a line for each job that starts or ends.

    A terminal also shows a table and a bar.  The table has status, step, loss and remaining time of each run.  The bar shows an
    estimate of the time until all jobs have ended.  If the output is not a terminal, there is neither table nor bar, and the
    line of each ended job shows this estimate.  An instance is a context manager.

    Args:
        total: Number of jobs.
        console: The console to print to; if None, it is the standard error stream.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, total: int, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._ended, self._clock, self._start = total, 0, clock, clock()
        console = console or streams.console("stderr")
        self._table = JobTable(height=console.height)
        super().__init__(console, total, self._line(), above=self._table)

    def started(self, name: str, folder: Path) -> None:
        """Print that a job started; `folder` is its run folder."""
        self._table.start(name, folder)
        self._print(f"{name}: started")

    def ended(self, name: str, seconds: float, outcome: str, *, failed: bool = False) -> None:
        """Print that a job ended after `seconds`.

        The line ends with `outcome`, for example the score of the job or the reason why it failed.
        """
        self._ended += 1
        self._table.end(name, "failed" if failed else "finished")
        line = self._line()
        self._print("  ".join(filter(None, (f"{name}: {duration(seconds)}", outcome, "" if self._bar else line))))
        self.show(line, completed=self._ended)

    def _line(self) -> str:
        """Return the number of ended jobs and the estimated remaining time as text.

        An example is "2/5  3:00 left".
        """
        line = f"{self._ended}/{self._total}"
        if not 0 < self._ended < self._total:
            return line
        return f"{line}  {duration((self._clock() - self._start) / self._ended * (self._total - self._ended))} left"


def run_jobs(
    jobs: Sequence[Job],
    limit: int,
    *,
    start: Callable[[Job], Child],
    on_start: Callable[[Job], None],
    on_end: Callable[[Job, int, float], None],
) -> dict[str, int]:
    """Run all jobs, at most `limit` at a time.

    Jobs start in the given order, except that a job waits for the jobs that it needs.  If a job fails, the jobs that need
    it are not started, but all other jobs are.  When Ctrl-C, SIGTERM or SIGHUP arrives, the running jobs are terminated.
    They are killed at a second signal, or if they are still running after 60 seconds.

    Args:
        jobs: The jobs.
        limit: Maximum number of running jobs, >= 1.
        start: Function that starts a job.
        on_start: Function that is called with each job that starts.
        on_end: Function that is called with each job that has ended, its exit code, and its duration in seconds.

    Returns:
        Exit codes by name of the job.  A job that was not started, because a job that it needs failed, is left out.

    Raises:
        Interrupted: a signal arrived; all running jobs have ended.
        OutputError: a log cannot be written.
    """
    assert len({job.name for job in jobs}) == len(jobs)
    waiting, running, codes = list(jobs), list[_Running](), dict[str, int]()
    # Without `at_once`: an exception just after a start would leave a child that is not in `running` and is never stopped.
    with signals.handled(with_children=True):
        try:
            while waiting or running:
                signals.poll()
                ready = [job for job in waiting if all(codes.get(need) == 0 for need in job.needs)]
                for job in ready[: limit - len(running)]:
                    waiting.remove(job)
                    running.append(_Running(job, start(job), time.monotonic()))
                    on_start(job)
                ended = [(each, code) for each in running if (code := each.child.poll()) is not None]
                for each, code in ended:
                    running.remove(each)
                    codes[each.job.name] = code
                    on_end(each.job, code, time.monotonic() - each.started)
                if not ended and not running:
                    break  # the waiting jobs need failed jobs
                if not ended:
                    time.sleep(_POLL_S)
            signals.poll()
        finally:
            _stop(running)
    return codes


def last_line(log: Path) -> str:
    """Return the last non-blank line of a log; "" if the log has none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _stop(running: Sequence[_Running]) -> None:
    """Terminate all jobs, and wait until they have ended.

    Children that still run are killed after a timeout, or when this process receives another signal.
    """
    signals_before = min(signals.num_arrived(), 1)
    for each in running:
        each.child.terminate()
    deadline = time.monotonic() + _STOP_S
    while any(each.child.poll() is None for each in running):
        if signals.num_arrived() > signals_before or time.monotonic() > deadline:
            for each in running:
                each.child.kill()
        time.sleep(_POLL_S)
