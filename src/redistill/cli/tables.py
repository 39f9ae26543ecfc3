"""Tables of what the package holds: its methods and its test sets."""

from rich.table import Table

from redistill.config.methods import METHODS
from redistill.data.tasks import TASKS
from redistill.reports.terminal import console


def print_methods() -> None:
    """Every method, and every test set with its place on the hub."""
    methods = Table("method", "what it does", "source", title="methods", title_justify="left")
    for name, row in METHODS.items():
        methods.add_row(name, row.summary, row.source)
    tasks = Table("task", "what it holds", "on the hub", title="test sets", title_justify="left")
    for name, task in TASKS.items():
        tasks.add_row(name, task.description, task.hub_name)
    console().print(methods)
    console().print(tasks)
