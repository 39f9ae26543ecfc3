"""What a run leaves behind, so that two runs can be compared bitwise, except for times."""

from pathlib import Path
from typing import Any

from redistill.storage import files

TIMES = {"seconds", "draw_seconds", "tokens_per_s", "latency", "peak_bytes", "log_bytes"}  # the size of a log with times varies
OF_THE_DAY = {"manifest.json", "manifest.sha256"}  # hashes of what holds times


def remains(folder: Path) -> dict[str, Any]:
    """Each file of a run folder by its path: its content without times, or its hash."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in OF_THE_DAY)
    return {str(path.relative_to(folder)): _content(path) for path in paths}


def _content(path: Path) -> Any:
    if path.name == "run.json":
        return files.read_json(path)["status"]
    if path.suffix == ".json":
        return _without_times(files.read_json(path))
    if path.suffix == ".jsonl":
        return _without_times(files.read_lines(path))
    return files.digest(path)


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(item) for name, item in value.items() if name not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
