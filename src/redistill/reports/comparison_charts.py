"""Charts of a comparison, as SVG.

They show differences to the baseline, and quality against cost, size and speed. Every number of a chart is also in a table of
the page.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from redistill.records import FRACTION
from redistill.reports.comparison import Column, Row
from redistill.reports.drawing import INK, drawn
from redistill.reports.folders import Measure
from redistill.reports.labels import name_points
from redistill.reports.pages import NOTHING, difference, large, score
from redistill.storage.redaction import plain_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

MAX_LABEL = 22
_WIDTH_INCHES = 4.4
_TONES = {1: "#2f8f5f", -1: "#cf5a48", 0: "#7d8590"}
_REFERENCE, _BASELINE, _METHOD = "#8a8f98", "#d97a2b", "#3b82c4"
_LINE_INCHES = 0.16  # of the height of a chart for each point, so that there is a line for its label
_LOGARITHMIC_FROM = 20  # ratio of the largest to the smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Chart:
    """A chart with its title and caption.

    Args:
        title: What the chart shows.
        caption: How to read the chart; "" if it needs no caption.
        svg: The <svg> element.
    """

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Point:
    """A model in a chart of quality against cost.

    Args:
        label: Name of the model.
        role: Role of the model, as in `comparison.Entrant`.
        cost: Value on the horizontal axis.
        quality: Mean score in the primary metric.
        deviation: Standard deviation of the score over seeds; None if unknown.
    """

    label: str
    role: str
    cost: float
    quality: float
    deviation: float | None


def forest_plot(column: Column, rows: Sequence[Row], baseline: str) -> Chart | None:
    """Draw the differences to the baseline in one column, with their 95 % intervals.

    The method with the best difference is at the top.  A marker is filled if its interval excludes 0.

    Args:
        column: A data set or an average.
        rows: Rows of the comparison.
        baseline: Label of the baseline.

    Returns:
        The chart; None if no method was compared with the baseline in this column.
    """
    measure = column.primary
    found = [(row, row.interval) for row in rows if row.column == column.name and row.role == "student" and row.interval]
    if not found:
        return None
    found.sort(key=lambda pair: measure.sign * pair[1].difference)
    times = 100 if measure.unit == FRACTION else 1

    def paint(axes: "Axes") -> None:
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
        for height, (row, interval) in enumerate(found):
            colour = _TONES[row.tone]
            axes.plot([times * interval.lower, times * interval.upper], [height, height], color=colour, linewidth=1.6)
            fill = colour if row.tone else "none"
            axes.plot([times * interval.difference], [height], marker="o", markersize=6, color=colour, markerfacecolor=fill)
        axes.set_ylim(-0.6, len(found) - 0.4)
        axes.locator_params(axis="x", nbins=5)
        _set_labels(axes, measure, f"difference to {_label(baseline)}", [row.model for row, _ in found])

    words = "; ".join(_in_words(row) for row, _ in reversed(found))
    return Chart(
        title=f"Difference to {baseline}, {column.name}",
        caption=f"{measure.title} minus that of {baseline}, with the 95 % interval. "
        f"{'Left' if measure.sign < 0 else 'Right'} of 0 is better. A filled point has an interval without 0.",
        svg=drawn(paint, f"Differences to {baseline} on {column.name}: {words}", (_WIDTH_INCHES, 0.9 + 0.3 * len(found))),
    )


def quality_plot(title: str, measure: Measure, points: Sequence[Point]) -> Chart | None:
    """Draw quality against a cost, a size or a speed, one point for each model.

    Args:
        title: Quantity on the horizontal axis, such as "training seconds".
        measure: Metric on the vertical axis.
        points: The models.

    Returns:
        The chart; None if fewer than two different values of the quantity would be displayed.
    """
    if len({large(point.cost) for point in points}) < 2:
        return None
    times = 100 if measure.unit == FRACTION else 1

    def paint(axes: "Axes") -> None:
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        for point in points:
            colour = {"student": _METHOD, "baseline": _BASELINE}.get(point.role, _REFERENCE)
            spread = None if point.deviation is None else times * point.deviation
            marker = {"student": "o", "baseline": "s"}.get(point.role, "D")
            place = ([point.cost], [times * point.quality])
            axes.errorbar(*place, yerr=spread, fmt=marker, color=colour, markersize=5, elinewidth=1)
        smallest, largest = min(point.cost for point in points), max(point.cost for point in points)
        if smallest > 0 and largest / smallest > _LOGARITHMIC_FROM:
            axes.set_xscale("log")
        axes.margins(x=0.12, y=0.12)
        axes.set_xlabel(title)
        unit = ", %" if measure.unit == FRACTION else ""
        axes.set_ylabel(f"{_label(measure.heading)}{unit}{', lower is better' if measure.sign < 0 else ''}")
        _as_text([axes.yaxis.label])
        if axes.get_xscale() == "linear":
            axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda value, _: large(value))
        places = [(point.cost, times * point.quality) for point in points]
        name_points(axes, places, [_label(point.label) for point in points], (_WIDTH_INCHES, _height(points)))

    words = "; ".join(f"{point.label}: {score(point.quality, measure.unit)} at {large(point.cost)}" for point in points)
    return Chart(
        title=f"Quality and {title}",
        caption="",
        svg=drawn(paint, f"{measure.title} and {title}: {words}", (_WIDTH_INCHES, _height(points))),
    )


def _set_labels(axes: "Axes", measure: Measure, quantity: str, models: Sequence[str]) -> None:
    """Label the axes of a forest plot."""
    axes.set_yticks(range(len(models)), [_label(model) for model in models])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    unit = ", percentage points" if measure.unit == FRACTION else ""
    axes.set_xlabel(f"{quantity}, {_label(measure.heading)}{unit}")
    _as_text([axes.xaxis.label, *axes.get_yticklabels()])


def _height(points: Sequence[Point]) -> float:
    """Return the height of a chart with one line of text per point, in inches."""
    return max(3.0, 1 + _LINE_INCHES * len(points))


def _in_words(row: Row) -> str:
    """Return a text with the difference in `row` and the interval of this difference."""
    unit = row.measures[0].unit
    if row.interval is None:
        return f"{row.model} {NOTHING}"
    lower, upper = difference(row.interval.lower, unit), difference(row.interval.upper, unit)
    return f"{row.model} {difference(row.interval.difference, unit)} ({lower} to {upper})"


def _label(text: str) -> str:
    """Return an untrusted text as a short line."""
    line = plain_line(text)  # first: the end of a secret could be cut off
    return line if len(line) <= MAX_LABEL else f"{line[: MAX_LABEL - 1]}…"


def _as_text(texts: Iterable["Text"]) -> None:
    """Turn off matplotlib's markup for formulas, since the texts are untrusted."""
    for text in texts:
        text.set_parse_math(False)
