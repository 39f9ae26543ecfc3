"""A folder for one job at a time, by a lock of the kernel's, which no crash leaves behind."""

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
    """Another process is at work in the folder."""

    exit_code = files.TRY_AGAIN


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """`folder`, made where it is not there, for this process and those that inherit the descriptor.

    The lock ends with the last process that holds it, however that one ends.  `.lock` names the first of them and is removed at
    the end; one that a killed process has left locks nobody out.

    Args:
        folder: What to lock; nobody can have it twice at once, this process neither.

    Raises:
        BusyError: another process holds the lock.
        OutputError: the folder cannot be written to.
    """
    path = files.make_folder(folder) / LOCK
    try:
        descriptor = _lock(path)
    except BlockingIOError as error:
        raise BusyError(
            f"{folder}: {_holder(path)}, or one that it started, is at work here; let it end, or choose another output folder"
        ) from error
    except OSError as error:
        raise files.write_failed(path, error) from error
    try:
        yield descriptor
    finally:
        path.unlink(missing_ok=True)  # while it is held: who opened it before finds below that it is gone
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The lock file's descriptor, locked; anew where its holder has removed the file in between."""
    import fcntl  # not on Windows

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(f"{path.parent}: this file system has no locks; start no second process here", stacklevel=4)
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
    except (OSError, ValueError):  # it is just coming or going
        return "another process"
