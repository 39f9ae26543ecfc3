"""The test sets of the literature, one small file each, and any file of your own beside them."""

import difflib
from collections.abc import Mapping
from pathlib import Path

from redistill.data.reader import ReadReport
from redistill.data.tasks import dolly, self_instruct, super_natural, unnatural, vicuna
from redistill.data.tasks.task import Task, with_long_references
from redistill.errors import ConfigError
from redistill.records import Record

__all__ = ["TASKS", "Task", "check_source", "known_task", "load_task"]

TASKS: Mapping[str, Task] = {
    task.name: task for task in (dolly.TASK, self_instruct.TASK, vicuna.TASK, super_natural.TASK, unnatural.TASK)
}


def known_task(name: str) -> Task:
    """The test set of that name; any other name stands for a file of the recipe, without metrics of its own."""
    return TASKS.get(name) or Task(name=name, description="a file of your own")


def check_source(task: Task, path: str | Path | None) -> None:
    """See that the rows of a test set can be found.

    Raises:
        ConfigError: there is neither a path nor a place on the hub.
    """
    if path is None and task.hub_name is None:
        near = difflib.get_close_matches(task.name, TASKS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(TASKS)};"
        raise ConfigError(f"tests: no task '{task.name}'; {hint} give a path to use a file of your own")


def load_task(
    task: str | Task,
    path: str | Path | None = None,
    limit: int | None = None,
    *,
    min_reference_words: int | None = None,
    max_bad_rows: int = 0,
    rejected: Path | None = None,
) -> tuple[list[Record], ReadReport]:
    """The rows of a test set, and what was set aside.

    Args:
        task: A key of `TASKS`, any name at all where `path` is given, or a test set of your own.
        path: Read this file instead (or a folder with test.jsonl, or another hub name); None takes the task's own hub file.
        limit: Only the first rows that remain.
        min_reference_words: Leave out rows whose longest reference has fewer words; None keeps all.  The hub files of
            Super-Natural and Unnatural Instructions hold long references only, so this is for other files of theirs.
        max_bad_rows, rejected: As in `read_records`.

    Raises:
        ConfigError: no such task, or one that is not on the hub, and no path.
        DataError: the rows cannot be read, more than `max_bad_rows` of them cannot be used, or none is left.
    """
    found = known_task(task) if isinstance(task, str) else task
    check_source(found, path)
    records, report = found.load(path, max_bad_rows=max_bad_rows, rejected=rejected)
    if min_reference_words is not None:
        records = with_long_references(records, min_reference_words)
    return records[:limit], report
