"""The executor `ray`: a Ray cluster, or a Ray that it starts on this machine.

Each run is a child process of a Ray worker.  It has the same command and environment as a run on this machine.  All machines
must have the same files under the same paths.  If a worker dies, Ray starts its run again, and the run resumes from its last
checkpoint.
"""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from redistill.errors import ConfigError, Interrupted, RedistillError, TrainingError, first_line
from redistill.processes.children import child_environment, current_umask
from redistill.processes.tether import run_tethered
from redistill.runs.executors import Outcome, Request, Resources
from redistill.runs.jobs import Job, run_jobs
from redistill.runs.record import cores
from redistill.storage import files
from redistill.storage.redaction import names_secret

if TYPE_CHECKING:
    import ray

PROBE_S = 120.0
"""Timeout in seconds of the check that all machines have the files of the sweep."""
_CONNECT_S = 10.0
_SHOWN = 200  # characters of a message of Ray
_OBJECT_STORE_BYTES = 100 * 2**20  # only commands and exit codes are stored
_LOCAL = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all servers of Ray listen on the loopback address, also on Linux
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables of a Ray that is started on this machine; RAY_AUTH_TOKEN is added."""
_CHOSEN_BY_RAY = ("RAY_", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR")


class _Task:
    """A job that was submitted to Ray."""

    def __init__(self, job: Job, reference: "ray.ObjectRef[int]") -> None:
        self._job, self._reference = job, reference

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self._reference))
        except ray.exceptions.TaskCancelledError:
            return -signal.SIGTERM
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RedistillError):
                raise error.cause from error
            why = f"a Ray worker cannot start it ({first_line(error.cause)[:_SHOWN]})"
            remedy = "install the same environment, with redistill, on all machines of the cluster"
            raise TrainingError(f"--on ray: {self._job.name}: {why}; {remedy}") from error
        except ray.exceptions.RayError as error:
            with files.open_log(self._job.log) as log:
                log.write(f"redistill: the Ray worker of this run failed: {first_line(error)}\n".encode())
            return files.TRY_AGAIN

    def terminate(self) -> None:
        import ray

        ray.cancel(self._reference)  # raises KeyboardInterrupt in the worker, whose child then receives SIGTERM

    def kill(self) -> None:
        import ray

        ray.cancel(self._reference, force=True)  # ends the worker, and with it its child


class Ray:
    """Runs jobs on a Ray cluster.

    Args:
        request: The address of the cluster, the resources of a run, and the folder of the sweep.  Without an address, Ray is
            started on this machine and stopped at the end.

    Example:
        >>> from redistill.runs.executors import Resources
        >>> Ray(Request(address=None, folder=Path("runs/a"), limit=2, resources=Resources())).request.limit
        2
    """

    def __init__(self, request: Request) -> None:
        self.request = request

    def execute(
        self,
        jobs: Sequence[Job],
        *,
        lock: Sequence[int],
        on_start: Callable[[Job], None],
        on_end: Callable[[Job, int, float], None],
    ) -> Outcome:
        if not jobs:
            return Outcome(codes={})
        resources, environment = self.request.resources, sent_environment(self.request.resources.cpus)
        with _connected(self.request.address):
            limit = self.request.limit
            if limit is None or self.request.address is None:  # another cluster may add machines on demand
                limit = min(limit or sys.maxsize, _capacity(resources))
            _check_files(self.request.folder)
            start = partial(_submit, resources=resources, environment=environment)
            return Outcome(codes=run_jobs(jobs, limit, start=start, on_start=on_start, on_end=on_end))


def create(request: Request) -> Ray:
    """Create the executor.

    Raises:
        ConfigError: the address is invalid, or Ray is not installed.
    """
    if request.address is not None and not re.fullmatch(r"auto|[\w.\[\]:-]+:\d+", request.address):
        rule = (
            "the address must be HOST:PORT, or auto for the cluster of this machine; use --on ray to start Ray on this machine"
        )
        raise ConfigError(f"--on ray={request.address}: {rule}")
    if find_spec("ray") is None:
        raise ConfigError("--on ray: needs the package ray, which is not installed; pip install 'redistill[ray]'")
    return Ray(request)


def sent_environment(cpus: int) -> dict[str, str]:
    """Return the environment variables that are sent to the workers.

    A run has the variables of its worker, and these.  Variables with secrets are not sent.  Variables that select GPUs are not
    sent either, because Ray sets them for each run.

    Args:
        cpus: Number of threads of a run, unless OMP_NUM_THREADS is set.
    """
    variables = child_environment({"OMP_NUM_THREADS": str(cpus)})
    return {name: value for name, value in variables.items() if not name.startswith(_CHOSEN_BY_RAY) and not names_secret(name)}


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Context in which this process is connected to a cluster.

    If `address` is None, a Ray is started on this machine, and stopped at the end of the context.

    Raises:
        ConfigError: a Ray must be started, but this process has imported the package ray before.
        TrainingError: Ray cannot be started, or the cluster cannot be reached.
    """
    if address is None and "ray" in sys.modules and not _token.cache_info().currsize:
        raise ConfigError(
            "--on ray: this program imported ray before it started the sweep, so that no token can be set; use the command "
            "`redistill sweep`, or give the address of a cluster"
        )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # Ray prints that it restarts a run
        stack.callback(_restore_environment, dict(os.environ))
        if address is None:
            # `child_environment` makes PYTHONPATH absolute, since Ray is started in another folder.
            os.environ.update({**child_environment(), **_LOCAL, "RAY_AUTH_TOKEN": _token()})
            temporary = tempfile.mkdtemp(prefix="redistill-ray-")  # only this user can read it
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            where: dict[str, object] = {
                "address": "local",
                "num_cpus": cores(),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": temporary,
            }
        else:
            where = {"address": address}
            _check_address(address)
        import ray

        stack.callback(ray.shutdown)
        try:
            with contextlib.chdir("/"):  # Ray adds the current folder to the import path of its workers
                ray.init(log_to_driver=False, logging_level="ERROR", **where)
        except Exception as error:  # Ray itself raises Exception, for example if its processes need more than 30 s to start
            what = "Ray cannot be started on this machine" if address is None else "the Ray cluster cannot be reached"
            raise TrainingError(f"--on ray: {what} ({first_line(error)})") from error
        except SystemExit:  # raised by Ray's handler of SIGTERM
            raise Interrupted(signal.SIGTERM) from None
        finally:
            for number, handler in handlers.items():  # Ray replaces the handler of SIGTERM
                signal.signal(number, handler)
        yield


def _check_address(address: str) -> None:
    """Raise TrainingError if nothing listens at the address of a cluster; Ray itself tries for minutes to connect."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise TrainingError(f"--on ray={address}: the Ray cluster cannot be reached ({error})") from error


@cache
def _token() -> str:
    """Return the secret with which other processes use the Ray of this process; Ray reads it once, when it is imported."""
    return secrets.token_hex(32)


def _restore_environment(before: Mapping[str, str]) -> None:
    """Remove the variables that were added to the environment, also by Ray, and restore those that were changed."""
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _capacity(resources: Resources) -> int:
    """Return the number of runs for which the cluster has resources.

    Raises:
        ConfigError: no machine has the resources that one run needs.
    """
    import ray

    needs = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": (resources.memory_gb or 0) * 1e9}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    runs = [int(min(machine.get(name, 0) / need for name, need in needs.items() if need)) for machine in machines]
    if not any(runs):
        has = "; ".join(
            f"{machine.get('CPU', 0):g} CPUs, {machine.get('GPU', 0):g} GPUs, {machine.get('memory', 0) / 1e9:.1f} GB"
            for machine in machines
        )
        wanted = f"cpus = {resources.cpus}, gpus = {resources.gpus:g}, memory_gb = {resources.memory_gb}"
        raise ConfigError(f"resources: no machine of the Ray cluster has {wanted}; the machines have {has}")
    return sum(runs)


def _check_files(folder: Path) -> None:
    """Check that each machine of the cluster has the folder of the sweep and this Python.

    Raises:
        ConfigError: a machine lacks one of them, or does not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = folder.absolute() / f".ray-{secrets.token_hex(8)}"
    files.write_text(probe, "")
    try:
        exists = ray.remote(os.path.isfile)
        for node in ray.nodes():
            if not node["Alive"]:
                continue
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            for path, what in ((str(probe), f"the folder {folder.absolute()}"), (sys.executable, sys.executable)):
                found = exists.options(num_cpus=0, scheduling_strategy=there).remote(path)
                if not ray.get(found, timeout=PROBE_S):
                    raise ConfigError(
                        f"--on ray: machine {node['NodeName']} does not have {what}; all machines must share a file system"
                    )
    except ray.exceptions.RayError as error:
        raise TrainingError(f"--on ray: a machine of the cluster does not answer ({first_line(error)})") from error
    finally:
        probe.unlink(missing_ok=True)


def _submit(job: Job, *, resources: Resources, environment: Mapping[str, str]) -> _Task:
    import ray

    task = ray.remote(run_tethered).options(
        name=job.name,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus,
        memory=None if resources.memory_gb is None else int(resources.memory_gb * 1e9),
        max_retries=resources.retries,
    )
    log, folder = str(job.log.absolute()), str(Path.cwd())
    return _Task(job, task.remote(list(job.command), log, dict(environment), folder, current_umask()))
