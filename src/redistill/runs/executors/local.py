"""The executor `local`: each run is a process on this machine."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from subprocess import DEVNULL, STDOUT

import torch

from redistill.errors import ConfigError
from redistill.processes.children import child_environment
from redistill.runs.executors import Outcome, Request
from redistill.runs.jobs import Job, run_jobs
from redistill.runs.record import cores
from redistill.storage import files


@dataclass(frozen=True)
class _Process:
    """A job that is the leader of its own process group on this machine."""

    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        return self.process.poll()

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)  # the first process of a session is the leader of its process group


class Local:
    """Runs jobs as processes on this machine.

    Args:
        limit: Maximum number of concurrent jobs, >= 1.

    Example:
        >>> Local(limit=2).limit
        2
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def execute(
        self,
        jobs: Sequence[Job],
        *,
        lock: Sequence[int],
        on_start: Callable[[Job], None],
        on_end: Callable[[Job, int, float], None],
    ) -> Outcome:
        start = partial(start_process, environment=run_environment(self.limit), keep_open=lock)
        return Outcome(codes=run_jobs(jobs, self.limit, start=start, on_start=on_start, on_end=on_end))


def create(request: Request) -> Local:
    """Create the executor.

    By default, it runs one job per core, or one job on a machine with an accelerator.

    Raises:
        ConfigError: an address is given.
    """
    if request.address is not None:
        raise ConfigError(f"--on local={request.address}: has no address; use --on local")
    return Local(request.limit or (1 if torch.accelerator.is_available() else cores()))  # an accelerator is not shared


def run_environment(limit: int) -> dict[str, str]:
    """Return the environment variables of a run.

    `limit` is the maximum number of parallel runs.  If `limit` is greater than 1, OMP_NUM_THREADS is the number of cores
    divided by `limit`.  A value of OMP_NUM_THREADS that the user has set is not changed.
    """
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // limit))} if limit > 1 else {}
    return child_environment(threads)


def start_process(job: Job, *, environment: Mapping[str, str], keep_open: Sequence[int] = ()) -> _Process:
    """Start a job on this machine.

    Args:
        job: The job.
        environment: Environment variables of the process.
        keep_open: File descriptors that the process inherits.

    Raises:
        OutputError: the log cannot be written.
    """
    with files.open_log(job.log) as log:
        # A new session: Ctrl-C in a terminal signals only this process, which then stops each child once.
        return _Process(
            subprocess.Popen(
                job.command,
                stdin=DEVNULL,
                stdout=log,
                stderr=STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=keep_open,
            )
        )
