"""Truncates logs when a run resumes.

A log is a JSON Lines file to which a run appends lines; "step" in a line is the number of an update.
"""

from collections.abc import Mapping
from pathlib import Path

from redistill.records import Json
from redistill.storage import files


def num_bytes(path: Path) -> int:
    """Size of a log in bytes; 0 if the file is missing."""
    return path.stat().st_size if path.exists() else 0


def truncate(path: Path, size: int) -> bool:
    """Truncate a log to its first `size` bytes, without reading its lines.

    Args:
        path: The log, which exists.
        size: Size of the log in bytes up to the end of the last line to keep, >= 0.

    Returns:
        True if the log was truncated.  False if the log is shorter than `size` bytes, or if no line ends at byte `size`.  In
        this case, another program has changed the log, and the log is not truncated.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        with files.disk.open(path, "rb+") as file:
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    return False
            file.truncate(size)
            files.disk.sync(file.fileno())
    except OSError as error:
        raise files.write_failed(path, error) from error
    return True


def truncate_after(path: Path, step: int) -> None:
    """Remove the lines of updates after `step`, and an incomplete last line.

    All lines are read, one at a time.  The file is replaced atomically.

    Args:
        path: The log, which exists.
        step: Number of the last update whose lines are kept.

    Raises:
        DataError: a complete line is not JSON.
        OutputError: the file cannot be written.
    """
    kept = (line for line, value in files.scan_lines(path) if _step(value) <= step)
    files.write_parts(path, kept, num_bytes(path))


def _step(line: Json) -> float:
    """Return the number of the update that a log line belongs to.

    The result is 0 if the line has no number.
    """
    step = line.get("step") if isinstance(line, Mapping) else None
    return step if isinstance(step, int | float) else 0
