"""The test sets of the literature, one small file each, and any file of your own beside them."""

import difflib
from collections.abc import Mapping
from pathlib import Path

from redistill.data.reader import ReadReport, read_records
from redistill.data.tasks import dolly, self_instruct, super_natural, unnatural, vicuna
from redistill.data.tasks.task import Task, with_long_references
from redistill.errors import ConfigError
from redistill.records import Record

__all__ = ["TASKS", "Task", "load_task"]

TASKS: Mapping[str, Task] = {
    task.name: task for task in (dolly.TASK, self_instruct.TASK, vicuna.TASK, super_natural.TASK, unnatural.TASK)
}


def load_task(
    name: str,
    path: str | Path | None = None,
    limit: int | None = None,
    *,
    min_reference_words: int | None = None,
    max_bad_rows: int = 0,
    rejected: Path | None = None,
) -> tuple[list[Record], ReadReport]:
    """The rows of a test set, and what was set aside.

    Args:
        name: A key of `TASKS`, or any name at all where `path` is given.
        path: Read this file instead (or a folder with test.jsonl, or another hub name); None takes the task's own hub file.
        limit: Only the first rows that remain.
        min_reference_words: Leave out rows whose longest reference has fewer words; None keeps all.  The hub files of
            Super-Natural and Unnatural Instructions hold long references only, so this is for other files of theirs.
        max_bad_rows, rejected: As in `read_records`.

    Raises:
        ConfigError: no such task, and no path.
        DataError: the rows cannot be read, more than `max_bad_rows` of them cannot be used, or none is left.
    """
    if name in TASKS:
        records, report = TASKS[name].load(path, max_bad_rows=max_bad_rows, rejected=rejected)
    elif path is not None:
        records, report = read_records(path, split="test", max_bad_rows=max_bad_rows, rejected=rejected)
    else:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(TASKS)};"
        raise ConfigError(f"tests: no task '{name}'; {hint} give a path to use a file of your own")
    if min_reference_words is not None:
        records = with_long_references(records, min_reference_words)
    return records[:limit], report
