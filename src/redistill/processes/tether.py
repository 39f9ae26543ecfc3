"""Child processes that are killed when their parent process dies.

A run on a cluster is a child of a worker process.  If the worker is killed, the run must not continue, because the cluster
starts it again.  The module is a program, too: `python -m redistill.processes.tether PARENT COMMAND...` requests SIGKILL at
the death of its parent, and then replaces itself with COMMAND.  On systems other than Linux, the child is not killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, STDOUT

from redistill.processes.children import child_environment, python_module
from redistill.storage import files

_PR_SET_PDEATHSIG = 1
_STOP_S = 60.0  # the child may be writing a checkpoint


def run_tethered(command: Sequence[str], log: str, environment: Mapping[str, str], folder: str, umask: int) -> int:
    """Run a command that is killed if this process dies; wait until it ends.

    On KeyboardInterrupt, the command receives SIGTERM.  It is killed if it is still running after 60 seconds.

    Args:
        command: The program and its arguments.
        log: File to which the output of the command is appended.
        environment: Environment variables of the command, in addition to those of this process; they have precedence.  The
            variables of Ray (RAY_*) are removed.
        folder: The current folder of the command.
        umask: The permissions that files of the command do not have.

    Returns:
        The exit code; -N if signal N ended the command.

    Raises:
        OutputError: the log cannot be written.
    """
    variables = {**child_environment(), **environment}
    variables = {name: value for name, value in variables.items() if not name.startswith("RAY_")}
    tethered = python_module("redistill.processes.tether", str(os.getpid()), *command)
    with files.open_log(Path(log)) as output:
        process = subprocess.Popen(
            tethered,
            stdin=DEVNULL,
            stdout=output,
            stderr=STDOUT,
            env=variables,
            cwd=folder,
            start_new_session=True,
            umask=umask,
        )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=1.0)  # a wait without a timeout is not interrupted
    except KeyboardInterrupt:
        return _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _main(parent: int, command: Sequence[str]) -> None:
    """Request SIGKILL at the death of the parent process, and replace this process with a command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        raise SystemExit(128 + signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it in its workers
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
