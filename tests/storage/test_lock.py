"""The lock of a folder: one holder, reported by id, and released when its last process exits, even after a crash."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import redistill
from redistill.errors import ConfigError, OutputError
from redistill.storage.lock import LOCK, BusyError, locked

HOLD = """
import subprocess, sys
from pathlib import Path
from redistill.storage.lock import locked
with locked(Path(sys.argv[1])) as descriptors:
    if sys.argv[2:]:  # start a child process that inherits the lock
        subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=descriptors)
    print("held", flush=True)
    input()
"""


def hold(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A process that holds the lock of `folder` until its input has a line or ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(redistill.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(folder), *options]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_rejected_with_the_id_of_the_first(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    with pytest.raises(BusyError) as caught, locked(tmp_path):
        raise AssertionError("not reached")
    assert str(caught.value) == (
        f"{tmp_path}: is in use by process {holder.pid} or one of its child processes; "
        "wait for it to finish, or choose another output folder"
    )
    assert isinstance(caught.value, ConfigError) and caught.value.exit_code == 75
    holder.communicate("\n")
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_released(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_child_process_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    holder = hold(tmp_path, "with a child")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with pytest.raises(BusyError), locked(tmp_path):
        raise AssertionError("not reached")
    holder.communicate()  # the child reads the end of the same input and exits
    with locked(tmp_path):
        pass


def test_the_lock_is_not_reentrant_and_independent_of_other_folders(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"), pytest.raises(BusyError), locked(tmp_path / "a"):
        raise AssertionError("not reached")
    with locked(tmp_path / "a"):
        pass


def test_a_lock_file_with_another_name_is_not_truncated(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK).hardlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match="several hard links"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"\.lock: could not be written"), locked(tmp_path):
        raise AssertionError("not reached")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_removed_lock_file_of_the_previous_holder_is_not_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before its removal, locked after: another process may have created and locked a new file."""
    import fcntl

    flock, removed = fcntl.flock, []

    def too_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with locked(tmp_path), pytest.raises(BusyError), locked(tmp_path):
        raise AssertionError("not reached")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_gets_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import fcntl

    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="does not support locks"), locked(tmp_path) as descriptors:
        assert list(descriptors) == []
    assert list(tmp_path.iterdir()) == []
