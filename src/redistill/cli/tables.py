"""Tables of what the package provides: its methods and its test sets."""

from typing import Any

from rich.table import Table

from redistill.config.methods import METHODS
from redistill.data.tasks import TASKS
from redistill.reports.terminal import console


def print_methods() -> None:
    """Print every method, and every test set with its name on the hub."""
    methods = Table("method", "description", "source", title="methods", title_justify="left")
    for name, row in METHODS.items():
        methods.add_row(name, row.summary, row.source)
    tasks = Table("task", "description", "on the hub", title="test sets", title_justify="left")
    for name, task in TASKS.items():
        tasks.add_row(name, task.description, task.hub_name)
    console().print(methods)
    console().print(tasks)


def methods_as_json() -> dict[str, Any]:
    """The same for programs: a list of "methods" and a list of "tasks"."""
    return {
        "methods": [
            {"name": name, "summary": row.summary, "source": row.source, "start": row.start} for name, row in METHODS.items()
        ],
        "tasks": [{"name": name, "description": task.description, "hub_name": task.hub_name} for name, task in TASKS.items()],
    }
