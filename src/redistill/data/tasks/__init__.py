"""The test sets of the literature, one module each.

A test set with any other name is read from a local file.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path

from redistill.data.reader import ReadReport
from redistill.data.sources import Source
from redistill.data.tasks import dolly, gsm8k, self_instruct, super_natural, unnatural, vicuna
from redistill.data.tasks.task import Task
from redistill.errors import ConfigError, DataError
from redistill.records import Record

__all__ = ["TASKS", "Task", "check_source", "known_task", "load_task"]

TASKS: Mapping[str, Task] = {
    task.name: task for task in (dolly.TASK, self_instruct.TASK, vicuna.TASK, super_natural.TASK, unnatural.TASK, gsm8k.TASK)
}


def known_task(name: str) -> Task:
    """Return the test set called `name`.

    A name that is not in `TASKS` denotes a test set in a local file. The recipe sets the path of the file. Such a test set
    has no metrics of its own.

    Args:
        name: Name of the test set; a key of `TASKS` or any other name.

    Returns:
        The test set.

    Example:
        >>> known_task("dolly").hub_name, known_task("mine").description
        ('MiniLLM/dolly', 'a local file')
    """
    return TASKS.get(name) or Task(name=name, description="a local file")


def check_source(task: Task, path: str | Path | Source | None) -> None:
    """Check that a test set has a file or a hub data set.

    Args:
        task: The test set.
        path: The file that the recipe names; None if the recipe names no file.

    Raises:
        ConfigError: the test set has neither a file nor a hub data set.

    Example:
        >>> check_source(known_task("mine"), "mine.jsonl")
        >>> check_source(known_task("doly"), None)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: tests: no test set 'doly'; use 'dolly', or give the path of a local file
    """
    if path is None and task.hub_name is None:
        near = difflib.get_close_matches(task.name, TASKS, n=1)
        hint = f"use '{near[0]}'" if near else f"use one of {', '.join(TASKS)}"
        raise ConfigError(f"tests: no test set '{task.name}'; {hint}, or give the path of a local file")


def load_task(
    task: str | Task,
    path: str | Path | Source | None = None,
    limit: int | None = None,
    *,
    min_reference_words: int | None = None,
    max_bad_rows: int = 0,
    rejected: Path | None = None,
) -> tuple[list[Record], ReadReport]:
    r"""Read the rows of a test set.

    Args:
        task: A key of `TASKS`, any name if `path` is given, or a `Task`.
        path: A file, a folder with test.jsonl, a hub name or a `Source`. If None, the hub file of the task is read.
        limit: Maximum number of rows, applied after `min_reference_words`; if None, all rows are kept.
        min_reference_words: Minimum number of words of a row's longest reference; rows with shorter references are left out.
            Words are separated by white space.  If None, all rows are kept.  The hub files of Super-Natural and Unnatural
            Instructions do not need this argument: their rows were already selected by the length of the references.
        max_bad_rows: Maximum number of unusable rows, >= 0.
        rejected: A JSON Lines file that the unusable rows are written to; if None, no file is written.

    Returns:
        The records, and the report of `read_records`.

    Raises:
        ConfigError: the task has no hub data set, and no path is given.
        DataError: the rows cannot be read, more than `max_bad_rows` of them are unusable, or no row is left.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.jsonl"
        ...     _ = path.write_text('{"instruction": "Name a colour.", "output": "red"}\n')
        ...     records, report = load_task("mine", path)
        >>> records[0].record_id, records[0].references
        ('mine:1', ('red',))
    """
    found = known_task(task) if isinstance(task, str) else task
    check_source(found, path)
    records, report = found.load(path, max_bad_rows=max_bad_rows, rejected=rejected)
    if min_reference_words is not None:
        kept = [r for r in records if max((len(text.split()) for text in r.references), default=0) >= min_reference_words]
        if not kept:
            fault = f"none of {len(records)} rows has a reference of {min_reference_words} words or more"
            raise DataError(f"{fault}; lower min_reference_words")
        return kept[:limit], report
    return list(records[:limit]), report
