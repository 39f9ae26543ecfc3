"""Every write goes through here: a temporary name, fsync, then a rename, so that a reader sees the old file or the new one.

Paths are resolved against the folder they must stay in; a name that leads out (`..`, an absolute path, a link) is refused.
Nothing here knows what it writes.
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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from redistill.errors import DataError, OutputError

TEMPORARY = ".tmp-"
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # not on Windows
TRY_AGAIN = 75
"""The exit code for what may go well later without a change to the recipe (EX_TEMPFAIL of sysexits.h)."""


class DiskFullError(OutputError):
    """No space, or no more of it for this user."""

    exit_code = TRY_AGAIN


class Disk:
    """What changes the disk, one method each; tests put a disk with faults in its place."""

    def open(self, path: Path, mode: str) -> io.FileIO:
        """Without a buffer, so that a write that fails leaves nothing to be written later; a link is not followed."""
        return io.FileIO(path, mode, opener=lambda name, flags: os.open(name, flags | _NO_LINKS, 0o666))

    def write(self, file: io.FileIO, data: bytes | memoryview) -> int:
        """As many of the bytes as the system takes at once; how many those were."""
        return file.write(data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def make_folder(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """A file, a link or a whole folder, as far as that is possible; what is left is swept later."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """What this user may still write to the disk of `folder`, which exists; quotas are not seen."""
        return shutil.disk_usage(folder).free


disk = Disk()


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`, refused where it would lead out of it.

    Raises:
        OutputError: `name` is absolute, climbs with `..`, or passes through a link that leaves `folder`.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutputError(f"{folder}: '{name}' leads out of the folder; use a plain name")
    return path


def slug(text: str) -> str:
    """`text` as a file name of letters, digits, `.`, `_` and `-`; never empty, never starting with a dot."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def make_folder(folder: Path) -> Path:
    """`folder`, made with its parents and tried by writing to it.

    Raises:
        OutputError: it cannot be made or written to.
    """
    probe = folder / f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    try:
        _make_folders(folder)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _kind(error)(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
    return folder


def _make_folders(folder: Path) -> None:
    """`folder` and its parents where they are not there, each of them durable in the one above."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        disk.make_folder(folder)
        sync_folder(folder.parent)


# --- files --------------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> str:
    """Write `text` in UTF-8 so that `path` holds all of it or what it held before; returns its SHA-256."""
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> str:
    """Write `value` as indented JSON, refusing NaN and infinities, since JSON has none; returns its SHA-256."""
    return write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """What `write_json` writes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", errors="backslashreplace")


def write_bytes(path: Path, data: bytes) -> str:
    """Write `data` so that `path` holds all of it or what it held before; returns its SHA-256."""
    return write_parts(path, [data], len(data))


def write_parts(path: Path, parts: Iterable[bytes | memoryview], num_bytes: int) -> str:
    """Write `parts` one behind the other so that `path` holds all of them or what it held before.

    Args:
        parts: Asked for one at a time, so that a large file need not be in memory.
        num_bytes: Of all parts together, for the message where there is no room.

    Returns:
        The SHA-256 of what was handed in, in hexadecimal; a disk that stores something else is found by reading it back.

    Raises:
        OutputError: it could not be written; a `DiskFullError` where there is no room.
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
        sync_folder(path.parent)
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


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one line of JSON; the line is on disk when this returns."""
    append_lines(path, [value])


def append_lines(path: Path, values: list[Any]) -> None:
    """Append each of `values` as a line of JSON; all are on disk when this returns, or none is where it fails.

    A last line that a crash has cut is dropped first, else the next one would be glued to it.

    Raises:
        OutputError: they could not be written; a `DiskFullError` where there is no room.
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
            sync_folder(path.parent)
    except OSError as error:
        raise write_failed(path, error, len(data)) from error


def _lines(values: list[Any]) -> bytes:
    text = "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    return text.encode("utf-8", errors="backslashreplace")


def _end_of_lines(file: io.FileIO) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - io.DEFAULT_BUFFER_SIZE)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is no JSONDecodeError
        raise DataError(f"{path}: not JSON ({error})") from error


def read_lines(path: Path) -> list[Any]:
    """The values of a JSON Lines file that redistill wrote; a last line cut short by a crash is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    values = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            values.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):  # no newline behind it: the write was cut
                break
            raise DataError(f"{path}:{number}: not JSON ({error}); the file was changed by hand or damaged") from error
    return values


def rewrite_lines(path: Path, values: list[Any]) -> None:
    """Replace a JSON Lines file as a whole, so that it holds `values` and nothing else."""
    write_bytes(path, _lines(values))


# --- folders ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(target: Path, num_bytes: int = 0) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    All files are fsynced before the rename.  A folder that already stands at `target` is replaced.

    Args:
        target: The folder to be.
        num_bytes: What it will hold, for the message where there is no room; 0 where that is not known.

    Raises:
        OutputError: it could not be written, by this module or by a library in the block; a `DiskFullError` where there is no
            room.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex}")
    try:
        _make_folders(temporary)
        yield temporary
        _commit_folder(temporary, target)
    except Exception as error:
        refused = _system_error(error)
        if refused is None:
            raise
        raise write_failed(target, refused, num_bytes) from error
    finally:
        disk.remove(temporary)


def _commit_folder(temporary: Path, target: Path) -> None:
    for path in sorted(temporary.rglob("*")):
        _sync(path)
    sync_folder(temporary)
    old = None
    if target.exists():
        old = target.with_name(f"{TEMPORARY}old-{target.name}-{uuid.uuid4().hex}")
        disk.rename(target, old)
    disk.rename(temporary, target)
    sync_folder(target.parent)
    if old is not None:
        disk.remove(old)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that a crash in between leaves no half of it under its own name.

    Raises:
        OutputError: the system does not let it.
    """
    doomed = folder.with_name(f"{TEMPORARY}old-{folder.name}-{uuid.uuid4().hex}")
    try:
        disk.rename(folder, doomed)
        sync_folder(folder.parent)
    except OSError as error:
        raise write_failed(folder, error) from error
    finally:
        disk.remove(doomed)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in `folder`; only for a folder in which nobody else is at work."""
    for path in folder.glob(f"{TEMPORARY}*"):
        disk.remove(path)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: Exception) -> OSError | None:
    """What the system refused, where that is behind `error`; None where it is something else.

    Libraries in Rust raise kinds of their own, with the system's number in the text.
    """
    if isinstance(error, OutputError):
        return error.__cause__ if isinstance(error.__cause__, OSError) else None
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def write_failed(path: Path, error: OSError, num_bytes: int = 0) -> OutputError:
    """The error to raise where the system refused to write `num_bytes`, or 0 for an unknown number, to `path`."""
    size = f"{num_bytes:,} bytes " if num_bytes else ""
    way_out = "put no link in its place" if error.errno == errno.ELOOP else "free space or choose another folder"
    return _kind(error)(f"{path}: {size}could not be written ({error.strerror or error}); {way_out}")


def _kind(error: OSError) -> type[OutputError]:
    return DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else OutputError
