"""Folders: atomic replacement, removal, and detection of links to other folders."""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from redistill.errors import OutputError
from redistill.storage import files
from redistill.storage.files import TEMPORARY, create_with_parents, sync, write_failed

_COPIED_BYTES = 1 << 20  # read at once


def linked_folder(folder: Path) -> Path | None:
    """Return the path of a symbolic link to a folder; None if `folder` contains none.

    The link is in `folder` or in a subfolder.  Files that are written below such a link would be written to another folder.
    Links with the name of a temporary file are ignored.
    """
    for parent, names, _ in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(TEMPORARY)]
        for name in names:
            if (path := Path(parent, name)).is_symlink():
                return path
    return None


@contextlib.contextmanager
def new_folder(target: Path, num_bytes: int = 0) -> Iterator[Path]:
    """Context with a temporary folder that becomes `target`.

    The temporary folder is renamed on success and removed on failure.  All files are synced before the rename.  An existing
    folder `target` is replaced.

    Args:
        target: The final path of the folder.
        num_bytes: Total size of the files in the folder, which the error message states; 0 if unknown.

    Yields:
        The temporary folder.

    Raises:
        OutputError: the folder cannot be written, by this function or by the code in the context; `DiskFullError` if the disk
            is full.
    """
    number = uuid.uuid4().hex
    temporary, old = (target.with_name(f"{TEMPORARY}{name}-{number}") for name in (target.name, f"old-{target.name}"))
    try:
        create_with_parents(temporary)
        yield temporary
        for path in (*sorted(temporary.rglob("*")), temporary):
            sync(path)
        if target.exists():
            files.disk.rename(target, old)
        files.disk.rename(temporary, target)
        sync(target.parent)
        files.disk.remove(old)
    except Exception as error:
        if (cause := _system_error(error)) is None:
            raise
        raise write_failed(target, cause, num_bytes) from error
    finally:
        files.disk.remove(temporary)


def remove_folder(folder: Path) -> None:
    """Remove `folder`, which may also be a file.

    The folder is renamed first, so that a crash leaves no incomplete folder under the original name.

    Raises:
        OutputError: the folder cannot be renamed.
    """
    renamed = folder.with_name(f"{TEMPORARY}old-{folder.name}-{uuid.uuid4().hex}")
    try:
        files.disk.rename(folder, renamed)
        sync(folder.parent)
    except OSError as error:
        raise write_failed(folder, error) from error
    finally:
        files.disk.remove(renamed)


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with its files, to the new path `target`.

    Symbolic links are left out.

    Raises:
        OutputError: a file cannot be read or written; `DiskFullError` if the disk is full.
    """
    paths = sorted(source.rglob("*")) if source.is_dir() else [source]
    for path in paths:
        if path.is_file() and not path.is_symlink():
            copied = target / path.relative_to(source)
            try:
                with path.open("rb") as file:
                    files.write_parts(copied, iter(partial(file.read, _COPIED_BYTES), b""), path.stat().st_size)
            except OSError as error:
                raise write_failed(copied, error) from error


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that interrupted writes have left in `folder`.

    No process may use the folder during the call.
    """
    for path in folder.glob(f"{TEMPORARY}*"):
        files.disk.remove(path)


def _system_error(error: Exception) -> OSError | None:
    """Return the system error that caused `error`, or None if there is no such error.

    Libraries in Rust raise their own exceptions; the message contains the number of the system error.
    """
    if isinstance(error, OutputError):
        return error.__cause__ if isinstance(error.__cause__, OSError) else None
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
