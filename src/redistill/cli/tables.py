"""Tables of what the package holds: its methods, its test sets and its metrics."""

from rich.table import Table

from redistill.config.methods import METHODS
from redistill.data.tasks import TASKS
from redistill.evaluation.metrics import METRICS
from redistill.reports.terminal import console


def print_methods() -> None:
    """Every method, every test set with its place on the hub, and every metric."""
    methods = Table("method", "what it does", "source", title="methods", title_justify="left")
    for name, row in METHODS.items():
        methods.add_row(name, row.summary, row.source)
    tasks = Table("task", "what it holds", "on the hub", title="test sets", title_justify="left")
    for name, task in TASKS.items():
        tasks.add_row(name, task.description, task.hub_name)
    metrics = Table("metric", "title", "unit", "better", title="metrics of answers", title_justify="left")
    for name, metric in METRICS.items():
        metrics.add_row(name, metric.title, metric.unit, metric.better)
    console().print(methods)
    console().print(tasks)
    console().print(metrics)
