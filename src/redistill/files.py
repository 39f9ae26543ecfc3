"""Every write goes through here: a temporary name, fsync, then a rename, so that a reader sees the old file or the new one.

Paths are resolved against the folder they must stay in; a name that leads out (`..`, an absolute path, a link) is refused.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redistill.errors import DataError, OutputError

TEMPORARY = ".tmp-"


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
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 so that `path` holds all of it or what it held before."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinities are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or what it held before."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _write_failed(path, error, len(data)) from error


def append_line(path: Path, value: Any) -> None:
    """Append `value` as one line of JSON; the line is on disk when this returns."""
    append_lines(path, [value])


def append_lines(path: Path, values: list[Any]) -> None:
    """Append each of `values` as a line of JSON, in one write; they are on disk when this returns."""
    text = "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
    data = text.encode("utf-8", errors="backslashreplace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _write_failed(path, error, len(data)) from error


def read_json(path: Path) -> Any:
    """The JSON value in `path`.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
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
    write_text(path, "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values))


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    All files are fsynced before the rename.  A folder that already stands at `target` is replaced.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                _sync(path)
        sync_folder(temporary)
        old = None
        if target.exists():
            old = target.with_name(f"{TEMPORARY}old-{target.name}-{uuid.uuid4().hex}")
            target.replace(old)
        temporary.replace(target)
        sync_folder(target.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise error if isinstance(error, OutputError) else _write_failed(target, error, 0) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that a crash in between leaves no half of it under its own name."""
    doomed = folder.with_name(f"{TEMPORARY}old-{folder.name}-{uuid.uuid4().hex}")
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failed(path: Path, error: OSError, num_bytes: int) -> OutputError:
    size = f"{num_bytes} bytes " if num_bytes else ""
    return OutputError(f"{path}: {size}could not be written ({error.strerror or error}); free space or choose another folder")
