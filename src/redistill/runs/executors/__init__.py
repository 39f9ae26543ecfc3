"""Executors: where the runs of a sweep are executed.

`redistill sweep --on NAME` selects the module NAME of this package.  Each module defines one executor and a function `create`,
which returns it.  To add an executor, add a module.
"""

import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from redistill.errors import ConfigError
from redistill.runs.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one run of a sweep needs on a cluster; used by `--on ray` and `--on slurm`.

    Args:
        cpus: Number of processor cores.  A run uses this number of threads unless OMP_NUM_THREADS is set.
        gpus: Number of GPUs.  With a fraction, such as 0.5, several runs use one GPU; only Ray supports fractions.
        memory_gb: Main memory in units of 10^9 bytes.  If None, no memory is reserved.
        retries: Number of times that Ray restarts a run whose worker process or machine failed.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> Resources(cpus=4, gpus=1).memory_gb is None
        True
    """

    cpus: int = 1
    gpus: float = 0.0
    memory_gb: float | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ConfigError(f"cpus = {self.cpus}: must be >= 1")
        if not (0 <= self.gpus < 1 or (math.isfinite(self.gpus) and self.gpus == int(self.gpus) >= 1)):
            raise ConfigError(f"gpus = {self.gpus}: must be a fraction below 1, such as 0.5, or a whole number >= 0")
        if self.memory_gb is not None and not 0 < self.memory_gb < math.inf:
            raise ConfigError(f"memory_gb = {self.memory_gb}: must be > 0; omit it to reserve no memory")
        if self.retries < 0:
            raise ConfigError(f"retries = {self.retries}: must be >= 0")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The settings from which an executor is created.

    Args:
        address: The text after "=" in `--on NAME=ADDRESS`; None without "=".
        folder: Folder of the sweep.
        limit: Maximum number of concurrent runs, >= 1; None if the executor chooses it.
        resources: What one run needs.
    """

    address: str | None
    folder: Path
    limit: int | None
    resources: Resources


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an executor.

    Args:
        codes: Exit codes by name of the job.  A job that was not started is left out.
        commands: Shell commands with which the user starts the jobs.  If empty, the executor has run the jobs itself.
    """

    codes: dict[str, int]
    commands: Sequence[str] = ()


class Executor(Protocol):
    """Executes the jobs of a sweep on this machine or on a cluster."""

    def execute(
        self,
        jobs: Sequence[Job],
        *,
        lock: Sequence[int],
        on_start: Callable[[Job], None],
        on_end: Callable[[Job, int, float], None],
    ) -> Outcome:
        """Run all jobs, or write scripts that run them.

        Jobs start in the given order, except that a job waits for the jobs that it needs.  If a job fails, the jobs that need
        it are not started.

        Args:
            jobs: The jobs, each after the jobs that it needs.
            lock: File descriptors that hold the lock on the folder of the sweep; processes on this machine inherit them.
            on_start: Function that is called with each job that starts.
            on_end: Function that is called with each job that has ended, its exit code, and its duration in seconds.

        Raises:
            Interrupted: a signal arrived; all running jobs have ended.
            OutputError: a file cannot be written.
            TrainingError: the cluster failed.
        """
        ...


def executor_names() -> list[str]:
    """Return the names of the executors: the modules of this package.

    Example:
        >>> executor_names()
        ['local', 'ray', 'slurm']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make_executor(on: str, *, folder: Path, limit: int | None = None, resources: Resources | None = None) -> Executor:
    """Create the executor that `--on` selects.

    Args:
        on: NAME or NAME=ADDRESS, such as "local" or "ray=10.0.0.7:6379".
        folder: Folder of the sweep.
        limit: Maximum number of concurrent runs, >= 1; if None, the executor chooses it.
        resources: What one run needs; if None, the defaults of `Resources`.

    Raises:
        ConfigError: there is no such executor, a package that it needs is not installed, or it cannot provide the resources.
    """
    name, equals, address = on.partition("=")
    if name not in executor_names():
        raise ConfigError(f"--on {on}: no such executor; choose from {', '.join(executor_names())}")
    request = Request(
        address=address if equals else None,
        folder=folder,
        limit=limit,
        resources=Resources() if resources is None else resources,
    )
    executor: Executor = import_module(f"{__name__}.{name}").create(request)
    return executor
