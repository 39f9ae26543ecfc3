"""The lock of a folder: one holder, named; gone with its last process, however that one ended."""

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
with locked(Path(sys.argv[1])) as descriptor:
    if sys.argv[2:]:  # leave somebody behind who has inherited it
        subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=[descriptor])
    print("held", flush=True)
    input()
"""


def hold(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A process that holds the lock of `folder` until it gets a line, or its end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(redistill.__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(folder), *options]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    with pytest.raises(BusyError) as caught, locked(tmp_path):
        raise AssertionError("not reached")
    assert str(caught.value) == (
        f"{tmp_path}: process {holder.pid}, or one that it started, is at work here; "
        "let it end, or choose another output folder"
    )
    assert isinstance(caught.value, ConfigError) and caught.value.exit_code == 75
    holder.communicate("\n")
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_locks_nobody_out(tmp_path: Path) -> None:
    holder = hold(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_has_inherited_it_holds_it_on(tmp_path: Path) -> None:
    holder = hold(tmp_path, "and leave a child")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with pytest.raises(BusyError), locked(tmp_path):
        raise AssertionError("not reached")
    holder.communicate()  # the child reads the end of the same input, and leaves
    with locked(tmp_path):
        pass


def test_one_process_cannot_have_it_twice_and_two_folders_are_two_locks(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), locked(tmp_path / "b"), pytest.raises(BusyError), locked(tmp_path / "a"):
        raise AssertionError("not reached")
    with locked(tmp_path / "a"):
        pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(OutputError, match=r"\.lock: could not be written"), locked(tmp_path):
        raise AssertionError("not reached")
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_removed_file_of_the_holder_before_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened before it was removed, locked after: another process may have made and locked a new one."""
    import fcntl

    flock, removed = fcntl.flock, []

    def too_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with locked(tmp_path), pytest.raises(BusyError), locked(tmp_path):
        raise AssertionError("not reached")
