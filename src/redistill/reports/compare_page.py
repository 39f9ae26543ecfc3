"""Content of the HTML page of a comparison."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from redistill.reports.comparison import Column, Row, by_primary
from redistill.reports.comparison_charts import Chart, Point, forest_plot, quality_plot
from redistill.reports.costs import SUMMED
from redistill.reports.measured import Measured
from redistill.reports.settings import commands, different_settings
from redistill.reports.sheet import Comparison
from redistill.reports.side_by_side import side_by_side
from redistill.reports.speeds import figures_of, ratios_of, size_table

_AXES = {
    "seconds": "training seconds",
    "trained_tokens": "trained tokens",
    "generated_tokens": "generated tokens",
    "parameters": "parameters",
    "tokens_per_s": "throughput in batches, divided by the teacher's",
    "p50_s": "median latency, divided by the teacher's",
}
_RELATIVE = ("tokens_per_s", "p50_s")
"""Figures that are comparable only with those of the teacher in the same run."""


def page_of(measured: Measured, comparison: Comparison) -> dict[str, object]:
    """Return the variables of the template compare.html.

    Args:
        measured: The compared runs.
        comparison: The comparison of these runs.

    Raises:
        CheckpointError: a responses file is damaged.
    """
    groups = by_primary(measured.columns)
    forests = [[_forest(measured, column) for column in (group[-1], *group[:-1])] for group in groups]
    return {
        "comparison": comparison,
        "forests": [chart for first, *_ in forests if (chart := first) is not None],
        "more_forests": [chart for _, *others in forests for chart in others if chart is not None],
        "quality": [chart for group in groups for chart in _quality(measured, group[-1])],
        "sizes": size_table(measured, groups[0][-1]),
        "responses": side_by_side(measured.lineup),
        "settings": different_settings(measured.lineup),
        "commands": commands(measured.lineup),
    }


def _forest(measured: Measured, column: Column) -> Chart | None:
    return forest_plot(column, measured.rows, measured.lineup.baseline)


def _quality(measured: Measured, column: Column) -> list[Chart]:
    """Return the charts of quality against costs, and against size and speed."""
    rows = [row for row in measured.rows if row.column == column.name and row.role != "before"]
    figures = {(model.is_method, model.label): figures_of(model) for model in measured.models}
    relative = {row.model: ratios_of(measured, row.model) for row in rows if row.is_method}

    def cost_of(row: Row, name: str) -> float | None:
        if name in SUMMED:
            return measured.costs[row.model].figures.get(name) if row.is_method else None
        if name in _RELATIVE:
            return relative[row.model].get(name) if row.is_method else 1.0
        return figures[row.is_method, row.model].get(name)

    charts = []
    for name, title in _AXES.items():
        points = []
        for row in rows:
            cost = cost_of(row, name)
            if cost is not None and row.primary.mean is not None:
                points.append(Point(row.model, row.role, cost, row.primary.mean, row.primary.deviation))
        charts.append(quality_plot(title, column.primary, points))
    return [chart for chart in charts if chart is not None]


def repeat_command(folders: Sequence[Path], baseline: str | None, labels: Sequence[str], published: Sequence[str]) -> str:
    """Return the command that builds the comparison again, quoted for a shell.

    The arguments are those of `compare.build_comparison`.

    Example:
        >>> repeat_command([Path("runs/my sft"), Path("runs/mgsr")], "sft", [], [])
        "redistill compare 'runs/my sft' runs/mgsr --baseline sft -o compare.html"
    """
    options = [("--baseline", [baseline] if baseline is not None else []), ("--rows", labels), ("--published", published)]
    chosen = [word for option, values in options if values for word in (option, *values)]
    return shlex.join(["redistill", "compare", *map(str, folders), *chosen, "-o", "compare.html"])
