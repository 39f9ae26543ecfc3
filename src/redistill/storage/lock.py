"""Exclusive use of a folder by one job, with a kernel lock, which is released even after a crash."""

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from redistill.errors import ConfigError
from redistill.storage import files

LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


class BusyError(ConfigError):
    """Another process is using the folder."""

    exit_code = files.TRY_AGAIN


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock `folder` for this process and for processes that inherit the descriptor.

    The folder is created if it does not exist.  The lock is released when the last process that holds it exits, even after a
    crash.  The file `.lock` contains the id of the first of these processes and is removed at the end; a file left by a killed
    process does not block other processes.

    Args:
        folder: The folder to lock.  The lock is not reentrant: this process cannot take it twice, either.

    Yields:
        The file descriptor that holds the lock.

    Raises:
        BusyError: the folder is locked already.
        OutputError: the folder cannot be written to.
    """
    path = files.make_folder(folder) / LOCK
    try:
        descriptor = _lock(path)
    except BlockingIOError as error:
        user = f"{_holder(path)} or one of its child processes"
        raise BusyError(f"{folder}: is in use by {user}; wait for it to finish, or choose another output folder") from error
    except OSError as error:
        raise files.write_failed(path, error) from error
    try:
        yield descriptor
    finally:
        path.unlink(
            missing_ok=True
        )  # under the lock: a process that opened the file before detects in `_lock` that it is removed
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Open and lock the lock file; retry if its holder removed it between the two steps."""
    import fcntl  # not available on Windows

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(
                    f"{path.parent}: this file system does not support locks; do not start a second process in this folder",
                    stacklevel=4,
                )
            if _is_at(path, descriptor):
                os.truncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text(encoding='utf-8'))}"
    except (OSError, ValueError):  # the holder is just creating or removing the file
        return "another process"
