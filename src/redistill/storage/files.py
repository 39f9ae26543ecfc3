"""Atomic file writes: a temporary file, fsync, then a rename.

A reader therefore sees either the old file or the new one. All modules write files through this module. `inside` rejects names
that lead out of a folder: names with `..`, absolute paths and links.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from redistill.errors import DataError, OutputError
from redistill.records import Json
from redistill.storage.json_text import JsonError, parse_json
from redistill.storage.paths import check_path

TEMPORARY = ".tmp-"
MAX_NAME = 100
"""Maximum length of a name that becomes a part of file names. File systems limit a whole file name to 255 bytes."""
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # not available on Windows
TRY_AGAIN = 75
"""Exit code of retryable errors, which need no change to the recipe (EX_TEMPFAIL of sysexits.h)."""


class DiskFullError(OutputError):
    """The disk is full, or the quota of the user is exhausted."""

    exit_code = TRY_AGAIN


class Disk:
    """The operations that change the disk; tests replace `disk` to inject faults."""

    def open(self, path: Path, mode: str) -> io.FileIO:
        """Open a file for writing, without a buffer.

        A buffer would keep the data of a failed write, and try to write it again when the file is closed.

        Raises:
            OSError: the file cannot be opened; the path is a symbolic link; the file is not a regular file; or the file has
                several hard links.
        """
        file = io.FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | _NO_LINKS, 0o666))
        try:
            check_own_file(file.fileno())
        except OSError:
            file.close()
            raise
        return file

    def write(self, file: io.FileIO, data: bytes | memoryview) -> int:
        """Write as many bytes as one system call accepts, and return their number."""
        return file.write(data)

    def sync(self, descriptor: int) -> None:
        """Write the data of an open file to the disk."""
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Rename the file or folder `source` to `target`; an existing file is replaced."""
        source.replace(target)

    def make_folder(self, folder: Path) -> None:
        """Create a folder if it does not exist; its parent must exist."""
        folder.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Remove a file, link or folder tree; errors are ignored."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """Return the free space, in bytes, of the disk on which `folder` is.

        `folder` must exist.  Quotas of the user are ignored.
        """
        return shutil.disk_usage(folder).free


disk = Disk()


def check_own_file(descriptor: int) -> None:
    """Check that an open file is a regular file with only one hard link.

    A write to such a file changes no file under another path.

    Raises:
        OSError: the file is not a regular file, or it has several hard links.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if found.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has several hard links")


def inside(folder: Path, name: str) -> Path:
    """Return the path `folder / name`, which must not lead out of `folder`.

    Raises:
        OutputError: `name` leads out of `folder`: it is absolute, contains `..`, or passes through a link.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder}: '{name}' leads out of the folder; use a name without '..', links or a leading '/'")
    return path


def slug(text: str) -> str:
    """Return a valid file name that resembles `text`.

    The name consists of letters, digits, `.`, `_` and `-`; it is not empty, has no leading dot, and has at most 100 characters
    (`MAX_NAME`).
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:MAX_NAME] or "unnamed"


def make_folder(folder: Path) -> Path:
    """Create `folder` with its parents, check that it is writable, and return it.

    Raises:
        OutputError: the path is invalid (see `check_path`), or the folder cannot be created or written to.
    """
    check_path(folder)
    probe = folder / f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        create_with_parents(folder)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _kind(error)(f"{folder}: cannot be written to ({error.strerror}); choose another output folder") from error
    return folder


def create_with_parents(folder: Path) -> None:
    """Create `folder` and its missing parents; sync the parent of each new folder."""
    if not folder.is_dir():
        create_with_parents(folder.parent)
        disk.make_folder(folder)
        sync(folder.parent)


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
    """Return `value` as indented JSON in UTF-8; `write_json` writes these bytes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` atomically, and return its SHA-256 in hexadecimal."""
    return write_parts(path, [data], len(data))


def write_parts(path: Path, parts: Iterable[bytes | memoryview], num_bytes: int) -> str:
    """Write `parts` to `path` atomically: either all parts are written, or none.

    Args:
        path: The file; missing parent folders are created.
        parts: The contents of the file, in order.  They are read one at a time, so that a large file need not be in memory.
        num_bytes: Total size of `parts`, for the error message.

    Returns:
        The SHA-256 of `parts`, in hexadecimal.  The file is not read back.

    Raises:
        OutputError: the file cannot be written; `DiskFullError` if the disk is full.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    hashed = hashlib.sha256()
    try:
        create_with_parents(path.parent)
        with disk.open(temporary, "xb") as file:
            for part in parts:
                hashed.update(part)
                _write_all(file, part)
            disk.sync(file.fileno())
        disk.rename(temporary, path)
        sync(path.parent)
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
        create_with_parents(path.parent)
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
            sync(path.parent)
    except OSError as error:
        raise write_failed(path, error, len(data)) from error


def open_log(path: Path) -> io.FileIO:
    """Return an open file to which a child process can append its output.

    Missing parent folders are created.

    Raises:
        OutputError: the file cannot be opened, or it is a link.
    """
    try:
        create_with_parents(path.parent)
        return disk.open(path, "ab+")
    except OSError as error:
        raise write_failed(path, error) from error


def line_size(value: object) -> int:
    """Return the number of bytes that `value` takes as one line of JSON."""
    return len(_lines([value]))


def _lines(values: Sequence[object]) -> bytes:
    text = "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    return text.encode("utf-8", errors="backslashreplace")


def _end_of_lines(file: io.FileIO) -> int:
    """Return the offset in bytes at which the last complete line of a file ends."""
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
        return parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except JsonError as error:
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

    Missing files, truncated last lines and errors are handled as in `read_lines`. Each yielded line ends with a newline. Empty
    lines are skipped.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removesuffix(b"\n")
            try:
                value = parse_json(text) if text else None
            except JsonError as error:
                if text == line:  # no newline follows: the write was interrupted
                    return
                fault = f"not JSON ({error}); the file was edited or is damaged; restore or remove it"
                raise DataError(f"{path}:{number}: {fault}") from error
            if text:
                yield text + b"\n", value


def rewrite_lines(path: Path, values: Sequence[object]) -> None:
    """Replace a JSON Lines file atomically by a file that contains `values`."""
    write_bytes(path, _lines(values))


# --- shared ------------------------------------------------------------------------------------------------------------


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Write the content of a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def write_failed(path: Path, error: OSError, num_bytes: int = 0) -> OutputError:
    """Return the exception to raise after a write to `path` failed with `error`.

    It is a `DiskFullError` if the disk is full or the quota is exhausted, otherwise an `OutputError`. The message states
    `num_bytes`, the number of bytes to be written, unless it is 0 (unknown).
    """
    size = f"{num_bytes:,} bytes " if num_bytes else ""
    is_link = error.errno in {errno.ELOOP, errno.EMLINK}
    remedy = "remove the link" if is_link else "free space or choose another folder"
    return _kind(error)(f"{path}: {size}could not be written ({error.strerror or error}); {remedy}")


def _kind(error: OSError) -> type[OutputError]:
    return DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else OutputError
