"""The tables of the command `redistill methods`."""

from rich.table import Table

from redistill.config.capabilities import ENGINES, TEACHERS, mismatch
from redistill.config.methods import METHODS
from redistill.data.tasks import TASKS
from redistill.evaluation.metrics import METRICS
from redistill.processes.streams import console


def print_methods() -> None:
    """Print tables of the methods, test sets and metrics."""
    methods = Table("method", "description", "source", title="methods", title_justify="left")
    for name, row in METHODS.items():
        methods.add_row(name, row.summary, row.source)
    tasks = Table("task", "description", "on the hub", title="test sets", title_justify="left")
    for name, task in TASKS.items():
        tasks.add_row(name, task.description, task.hub_name)
    metrics = Table("metric", "title", "unit", "better", title="metrics of answers", title_justify="left")
    for name, metric in METRICS.items():
        metrics.add_row(name, metric.title, metric.unit, metric.better)
    for table in (methods, tasks, metrics):
        console().print(table)


def methods_as_json() -> dict[str, object]:
    """Return the methods, test sets and metrics as JSON values.

    The keys of the result are "methods", "tasks" (the test sets) and "metrics". Each value is a list of mappings.
    """
    return {
        "methods": [
            {"name": name, "summary": row.summary, "source": row.source, "start": row.start} for name, row in METHODS.items()
        ],
        "tasks": [{"name": name, "description": task.description, "hub_name": task.hub_name} for name, task in TASKS.items()],
        "metrics": [{"name": name, **metric.described} for name, metric in METRICS.items()],
    }


def matrix() -> list[dict[str, str | None]]:
    """Return all combinations of a method, a type of teacher and a type of engine.

    Each combination is a dict with the keys "method", "teacher", "engine" and "reason". The value of "reason" is None if the
    combination is supported; otherwise it is the reason why the combination is not supported.
    """
    return [
        {"method": name, "teacher": teacher, "engine": engine, "reason": mismatch(row, teacher_can, engine_can)}
        for name, row in METHODS.items()
        for teacher, teacher_can in TEACHERS.items()
        for engine, engine_can in ENGINES.items()
    ]


def print_matrix() -> None:
    """Print a table of the supported combinations of method, teacher and engine.

    The table has one column for each engine. It shows "yes" for a supported combination and a number for an
    unsupported one. The list below the table gives the reason for each number.
    """
    cells = {(cell["method"], cell["teacher"], cell["engine"]): cell["reason"] for cell in matrix()}
    reasons = list(dict.fromkeys(reason for reason in cells.values() if reason))
    table = Table("method", "teacher", *ENGINES, title="method x teacher x engine", title_justify="left")
    for name in METHODS:
        for teacher in TEACHERS:
            row = [cells[name, teacher, engine] for engine in ENGINES]
            table.add_row(name, teacher, *("yes" if reason is None else f"({reasons.index(reason) + 1})" for reason in row))
    console().print(table)
    for number, reason in enumerate(reasons, 1):
        console().print(f"({number}) {reason}", markup=False, highlight=False)
