"""Exclusive use of a folder by one job, with a lock of the kernel."""

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from redistill.errors import ConfigError
from redistill.storage import files

LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}
_RETRY_S = 0.2  # filelock retries if the previous holder removes the file between its opening and its locking


class BusyError(ConfigError):
    """Another process is using the folder."""

    exit_code = files.TRY_AGAIN


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Sequence[int]]:
    """Lock `folder` for this process and for subprocesses that inherit the lock.

    The folder is created if it does not exist.  The lock is released when the last process that holds it exits, even after a
    crash. A forked child (`os.fork`) does not hold it. The file `.lock` contains the id of the process that acquired the lock,
    and is removed when the context ends. A file that a killed process has left does not block other processes.  Tested on Linux
    only.

    Args:
        folder: The folder to lock.  A process that holds the lock cannot acquire it again.

    Yields:
        A list with the file descriptor that holds the lock, for `pass_fds` of subprocess.  If the file system does not support
        locks, a warning is issued and the list is empty.

    Raises:
        BusyError: the folder is locked already.
        OutputError: the folder cannot be written to.
    """
    path = files.make_folder(folder) / LOCK
    descriptors: list[int] = []

    def acquired(descriptor: int) -> None:
        files.check_own_file(descriptor)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        descriptors.append(descriptor)

    lock = FileLock(path, timeout=_RETRY_S, on_acquired=acquired)
    try:
        lock.acquire()
    except Timeout as error:
        user = f"{_holder(path)} or one of its child processes"
        raise BusyError(f"{folder}: is in use by {user}; wait for it to finish, or choose another output folder") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise files.write_failed(path, error) from error
        warning = f"{folder}: this file system does not support locks; do not start a second process in this folder"
        warnings.warn(warning, stacklevel=3)
    try:
        yield descriptors
    finally:
        path.unlink(missing_ok=True)  # removed under the lock, so that a process that has opened the file detects this
        lock.release()


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text(encoding='utf-8'))}"
    except (OSError, ValueError):  # the holder is just creating or removing the file
        return "another process"
