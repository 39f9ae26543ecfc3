"""The result of a comparison in words: the best method, its lead, and whether the lead is settled."""

from collections.abc import Iterator, Sequence

from redistill.reports.comparison import Column, Row, by_primary, comparison_rows
from redistill.reports.inference import POWER
from redistill.reports.measured import Measured
from redistill.reports.pages import difference, score


def conclusions(measured: Measured) -> list[list[str]]:
    """Return the main results as sentences, one list for each primary metric.

    The sentences are about the average over data sets, or about the data set if there is only one.  They name the best method,
    its difference to the baseline and to the second best method, and the smallest difference that the comparison could detect.

    Args:
        measured: The compared runs.
    """
    return [list(_sentences(measured, group[-1])) for group in by_primary(measured.columns)]


def ranked(rows: Sequence[Row], column: Column) -> list[Row]:
    """Return the rows of the methods in one column, the best method first.

    A method without a score is left out.  Methods with equal scores keep their order.
    """
    found = [(row, row.primary.mean) for row in rows if row.column == column.name and row.is_method]
    known = [(row, value) for row, value in found if value is not None]
    return [row for row, _ in sorted(known, key=lambda pair: -column.primary.sign * pair[1])]


def _sentences(measured: Measured, column: Column) -> Iterator[str]:
    methods = ranked(measured.rows, column)
    if not methods:
        return
    best, others = methods[0], methods[1:]
    yield _leader(best, len(methods), column)
    if not others:
        return
    if best.role == "baseline":
        yield f"No other method is better than {best.model}, the baseline. The closest is {others[0].model}."
    yield from _differences(measured, column, best, others[0])
    shown = others[0] if best.role == "baseline" else best
    if shown.contrast is not None and shown.contrast.detectable is not None:
        found = difference(shown.contrast.detectable, column.primary.unit).removeprefix("+")
        yield (
            f"The smallest true difference between {shown.model} and {shown.versus} that this comparison finds with a probability "
            f"of {POWER:.0%} is {found}.".replace("%", " %")
        )


def _leader(best: Row, count: int, column: Column) -> str:
    """Return the sentence that names the best method and its score."""
    measure = column.primary
    where = f"averaged over {len(column.datasets)} data sets" if column.is_average else f"on {column.name}"
    value = score(best.primary.mean, measure.unit)
    if count == 1:
        return f"{best.model} is the only method: {measure.title} {value}, {where}."
    rank = "highest" if measure.sign > 0 else "lowest, which is the best,"
    return f"{best.model} has the {rank} {measure.title} of {count} methods: {value}, {where}."


def _differences(measured: Measured, column: Column, best: Row, second: Row) -> Iterator[str]:
    """Yield the sentences about the difference to the baseline, and about that to the second best method."""
    yield from _difference(second if best.role == "baseline" else best)
    if "baseline" in (best.role, second.role):
        return
    entrants = {model.label: model for model in measured.models if model.is_method}
    (row,) = comparison_rows([entrants[best.model]], [column], [entrants[second.model]])
    yield from _difference(row)


def _difference(row: Row) -> Iterator[str]:
    if row.contrast is None:
        yield f"{row.model} and {row.versus} are not compared: {row.note}."
        return
    found, unit = row.contrast.interval, row.measures[0].unit
    lower, upper = difference(found.lower, unit), difference(found.upper, unit)
    yield f"{row.model}: {difference(found.difference, unit)} over {row.versus} (95 % interval {lower} to {upper})."
