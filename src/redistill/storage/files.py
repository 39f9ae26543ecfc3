"""Atomic file writes: a temporary file, fsync, then a rename.

A reader thus sees either the old file or the new one. All modules write files through this module. `inside` rejects names that
resolve to a path outside of their folder (`..`, an absolute path, a link).
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from redistill.errors import DataError, OutputError
from redistill.records import Json

TEMPORARY = ".tmp-"
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # not available on Windows
TRY_AGAIN = 75
"""Exit code of retryable errors, which need no change to the recipe (EX_TEMPFAIL of sysexits.h)."""


class DiskFullError(OutputError):
    """The disk is full, or the quota of the user is exhausted."""

    exit_code = TRY_AGAIN


class Disk:
    """The operations that change the disk; tests replace it to inject faults."""

    def open(self, path: Path, mode: str) -> io.FileIO:
        """Open without buffer and without following a symbolic link.

        A failed write thus leaves no buffered data that is written later.
        """
        return io.FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | _NO_LINKS, 0o666))

    def write(self, file: io.FileIO, data: bytes | memoryview) -> int:
        """Write as many bytes as one system call accepts, and return their number."""
        return file.write(data)

    def sync(self, descriptor: int) -> None:
        """Write the data of an open file to the disk."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or folder; an existing file is replaced."""
        source.replace(target)

    def make_folder(self, folder: Path) -> None:
        """Create a folder, whose parent exists."""
        folder.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file, link or folder tree; errors are ignored."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """Free bytes for this user on the disk of an existing folder; quotas are ignored."""
        return shutil.disk_usage(folder).free


disk = Disk()


def inside(folder: Path, name: str) -> Path:
    """Return the path of `name` in `folder`, if it does not lead out of the folder.

    Raises:
        OutputError: `name` leads out of `folder`: it is absolute, contains `..`, or passes through a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder}: '{name}' leads out of the folder; use a name without '..', links or a leading '/'")
    return path


def slug(text: str) -> str:
    """Convert `text` into a file name.

    The name consists of letters, digits, `.`, `_` and `-`; it is not empty and has no leading dot.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def make_folder(folder: Path) -> Path:
    """Create `folder` with its parents, and check that it is writable.

    Raises:
        OutputError: the folder cannot be created or written to.
    """
    probe = folder / f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        _make_folders(folder)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _kind(error)(f"{folder}: cannot be written to ({error.strerror}); choose another output folder") from error
    return folder


def _make_folders(folder: Path) -> None:
    """Create `folder` and its missing parents, and sync the parent of each."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        disk.make_folder(folder)
        _sync(folder.parent)


# --- files --------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> str:
    """Write `text` in UTF-8 atomically, and return the SHA-256 of the bytes."""
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: object) -> str:
    """Write `value` as indented JSON atomically, and return the SHA-256 of the bytes.

    Raises:
        ValueError: `value` contains NaN or an infinity, which JSON does not support.
        OutputError: the file cannot be written.
    """
    return write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """The bytes that `write_json` writes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` atomically, and return its SHA-256."""
    return write_parts(path, [data], len(data))


def write_parts(path: Path, parts: Iterable[bytes | memoryview], num_bytes: int) -> str:
    """Write `parts` atomically: `path` holds all of them, or is unchanged.

    Args:
        path: The file; missing parent folders are created.
        parts: The contents, consumed one part at a time, so that a large file need not be in memory.
        num_bytes: Total size, for the error message.

    Returns:
        The SHA-256 of `parts`, in hexadecimal.  The file is not read back.

    Raises:
        OutputError: the file cannot be written; `DiskFullError` if the disk is full.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    hashed = hashlib.sha256()
    try:
        _make_folders(path.parent)
        with disk.open(temporary, "xb") as file:
            for part in parts:
                hashed.update(part)
                _write_all(file, part)
            disk.sync(file.fileno())
        disk.rename(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise write_failed(path, error, num_bytes) from error
    finally:
        disk.remove(temporary)
    return hashed.hexdigest()


def _write_all(file: io.FileIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(file, rest) :]


# --- lines --------------------------------------------------------------------------------------------------------------


def append_line(path: Path, value: object) -> None:
    """Append `value` as one line of JSON, and sync it to disk."""
    append_lines(path, [value])


def append_lines(path: Path, values: Sequence[object]) -> None:
    """Append `values` as lines of JSON, and sync them to disk.

    If a write fails, none of the lines is kept.  A last line that a crash has truncated is removed first.

    Raises:
        OutputError: the lines cannot be written; `DiskFullError` if the disk is full.
    """
    data = _lines(values)
    try:
        _make_folders(path.parent)
        is_new = not path.exists()
        with disk.open(path, "ab+") as file:
            end = _end_of_lines(file)
            file.truncate(end)
            try:
                _write_all(file, data)
                disk.sync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        if is_new:
            _sync(path.parent)
    except OSError as error:
        raise write_failed(path, error, len(data)) from error


def _lines(values: Sequence[object]) -> bytes:
    text = "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    return text.encode("utf-8", errors="backslashreplace")


def _end_of_lines(file: io.FileIO) -> int:
    """Offset of the end of the last complete line of a file."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - io.DEFAULT_BUFFER_SIZE)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0


def read_json(path: Path) -> Any:
    """Read the JSON value in `path`.

    Raises:
        DataError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits raises ValueError, not JSONDecodeError
        raise DataError(f"{path}: not JSON ({error})") from error


def read_lines(path: Path) -> list[Any]:
    """Read the values of a JSON Lines file written by redistill.

    The list is empty if the file is missing.  A last line truncated by a crash is skipped.

    Raises:
        DataError: a complete line is not JSON.
    """
    return [value for _, value in scan_lines(path)]


def scan_lines(path: Path) -> Iterator[tuple[bytes, Json]]:
    """Yield the lines of a JSON Lines file with their values, one at a time.

    Missing files, truncated last lines and errors are handled as in `read_lines`.  Each line ends with a newline, and an empty
    line is skipped.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removesuffix(b"\n")
            try:
                value = json.loads(text) if text else None
            except ValueError as error:
                if text == line:  # no newline follows: the write was interrupted
                    return
                fault = f"not JSON ({error}); the file was edited or is damaged; restore or remove it"
                raise DataError(f"{path}:{number}: {fault}") from error
            if text:
                yield text + b"\n", value


def rewrite_lines(path: Path, values: Sequence[object]) -> None:
    """Replace a JSON Lines file atomically by one that holds `values`."""
    write_bytes(path, _lines(values))


# --- folders ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(target: Path, num_bytes: int = 0) -> Iterator[Path]:
    """Context with a temporary folder that becomes `target`.

    The temporary folder is renamed on success and removed on failure.  All files are synced before the rename.  An existing
    folder `target` is replaced.

    Args:
        target: The final path of the folder.
        num_bytes: Total size of its files, for the error message; 0 if unknown.

    Yields:
        The temporary folder.

    Raises:
        OutputError: the folder cannot be written, by this module or by a library in the block; `DiskFullError` if the disk is
            full.
    """
    number = uuid.uuid4().hex
    temporary, old = (target.with_name(f"{TEMPORARY}{name}-{number}") for name in (target.name, f"old-{target.name}"))
    try:
        _make_folders(temporary)
        yield temporary
        for path in (*sorted(temporary.rglob("*")), temporary):
            _sync(path)
        if target.exists():
            disk.rename(target, old)
        disk.rename(temporary, target)
        _sync(target.parent)
        disk.remove(old)
    except Exception as error:
        if (cause := _system_error(error)) is None:
            raise
        raise write_failed(target, cause, num_bytes) from error
    finally:
        disk.remove(temporary)


def remove_folder(folder: Path) -> None:
    """Remove `folder`.

    The folder is renamed first, so that a crash leaves no incomplete folder under the original name.

    Raises:
        OutputError: the folder cannot be renamed.
    """
    renamed = folder.with_name(f"{TEMPORARY}old-{folder.name}-{uuid.uuid4().hex}")
    try:
        disk.rename(folder, renamed)
        _sync(folder.parent)
    except OSError as error:
        raise write_failed(folder, error) from error
    finally:
        disk.remove(renamed)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of interrupted writes; no process may be using `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        disk.remove(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Sync the content of a file, or the renames in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


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


def write_failed(path: Path, error: OSError, num_bytes: int = 0) -> OutputError:
    """Build the exception for a failed write to `path`; `num_bytes` 0 means unknown."""
    size = f"{num_bytes:,} bytes " if num_bytes else ""
    remedy = "remove the symbolic link" if error.errno == errno.ELOOP else "free space or choose another folder"
    return _kind(error)(f"{path}: {size}could not be written ({error.strerror or error}); {remedy}")


def _kind(error: OSError) -> type[OutputError]:
    return DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else OutputError
