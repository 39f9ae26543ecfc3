"""The result of a comparison in words.

The sentences name the best method, and its lead over the second best method.  `verdict.is_settled`
defines when a lead is called settled.
"""

from collections.abc import Iterator, Sequence

from redistill.reports.comparison import Column, Row, by_primary, comparison_rows
from redistill.reports.inference import POWER
from redistill.reports.measured import Measured
from redistill.reports.pages import counted, difference, large, score
from redistill.reports.speeds import ratios_of
from redistill.reports.verdict import difference_sentence, is_settled, kept_sentence, p_in_words, unconfirmed


def conclusions(measured: Measured) -> list[list[str]]:
    """Return the main results as sentences, one list for each primary metric.

    The sentences are about the average over data sets, or about the data set if there is only one.  They state, in this order:

    - the best method, its score, and whether its lead is settled (`verdict.is_settled`);
    - its differences to the baseline and to the second best method;
    - the smallest difference that the comparison could detect;
    - the fraction of the teacher's quality that it keeps;
    - its training cost.

    Args:
        measured: The compared runs.
    """
    return [list(_sentences(measured, group[-1])) for group in by_primary(measured.columns)]


def ranked(rows: Sequence[Row], column: Column) -> list[Row]:
    """Return the rows of the methods in one column, the best method first.

    A method without a score is left out.  Methods with equal scores keep their order.

    Args:
        rows: Rows of the comparison.
        column: A data set or an average.
    """
    found = [(row, row.primary.mean) for row in rows if row.column == column.name and row.is_method]
    known = [(row, value) for row, value in found if value is not None]
    return [row for row, _ in sorted(known, key=lambda pair: -column.primary.sign * pair[1])]


def _sentences(measured: Measured, column: Column) -> Iterator[str]:
    methods = ranked(measured.rows, column)
    if not methods:
        yield f"No method was evaluated on all data sets of {column.name}."
        return
    best, others = methods[0], methods[1:]
    lead = _lead(measured, column, best, others[0]) if others else None
    yield _leader(best, lead, len(methods), column)
    if lead is not None:
        yield from _differences(measured, column, best, others[0], lead)
    yield from _kept(measured, column, best)
    yield from _training(measured, best, others)


def _lead(measured: Measured, column: Column, best: Row, second: Row) -> Row:
    """Return the row with the difference of the best to the second best method.

    If one of the two methods is the baseline, the result is the row of the other method; its reference model is the baseline.
    """
    if "baseline" in (best.role, second.role):
        return second if best.role == "baseline" else best
    methods = {model.label: model for model in measured.models if model.is_method}
    (row,) = comparison_rows([methods[best.model]], [column], [methods[second.model]])
    return row


def _leader(best: Row, lead: Row | None, count: int, column: Column) -> str:
    """Return the sentence about the best method.

    It names the method, its score, and whether its lead is settled.
    """
    measure = column.primary
    where = f"averaged over {len(column.datasets)} data sets" if column.is_average else f"on {column.name}"
    value = score(best.primary.mean, measure.unit)
    if lead is None:
        return f"{best.model} is the only method: {measure.title} {value}, {where}."
    rank = "highest" if measure.sign > 0 else "lowest (best)"
    other = lead.model if lead.model != best.model else lead.versus
    over = f"its lead over {other}, the second best,"
    if lead.interval is None:
        doubt = f"but {over} is not tested"
    elif unconfirmed(lead) is not None:
        doubt = f"but {over} is not settled ({p_in_words(lead)})"
    elif not is_settled(lead):
        doubt = f"but {over} is not settled"
    elif lead.contrast is not None and lead.contrast.about == "students":
        doubt = f"and {over} is settled for these trained students"
    else:
        doubt = f"and {over} is settled"
    return f"{best.model} has the {rank} {measure.title} of {count} methods ({value}, {where}), {doubt}."


def _differences(measured: Measured, column: Column, best: Row, second: Row, lead: Row) -> Iterator[str]:
    """Yield the sentences about the differences to the baseline and to the second best method."""
    to_baseline = second if best.role == "baseline" else best
    if to_baseline.versus is not None:
        yield difference_sentence(to_baseline)
        yield from _limits(column, to_baseline)
    if "baseline" not in (best.role, second.role):
        yield f"Against the second best method: {difference_sentence(lead)}"


def _limits(column: Column, row: Row) -> Iterator[str]:
    """Yield the sentences about the limits of the difference to the baseline.

    The limits are few common training seeds, and differences that are too small to detect.
    """
    found = row.contrast
    if found is None:
        return
    if found.about == "students":
        yield (
            f"This is about the trained students: {row.model} and {row.versus} have fewer than two training seeds in common. "
            "A statement about the methods needs two or more."
        )
    if found.detectable is not None:
        smallest = difference(found.detectable, column.primary.unit).removeprefix("+")
        yield (
            f"The smallest true difference between {row.model} and {row.versus} that this comparison finds with a probability "
            f"of {100 * POWER:.0f} % is {smallest}."
        )


def _kept(measured: Measured, column: Column, best: Row) -> Iterator[str]:
    """Yield a sentence about the quality, size and speed of the best method.

    They are relative to those of the teacher.  Nothing is yielded if there is no teacher, or more than one.
    """
    teachers = [row for row in measured.rows if row.column == column.name and row.role == "teacher"]
    if len(teachers) != 1:
        return
    yield kept_sentence(best, teachers[0], ratios_of(measured, best.model))


def _training(measured: Measured, best: Row, others: Sequence[Row]) -> Iterator[str]:
    """Yield a sentence about the training cost of the best method.

    The sentence also has the cost of the baseline.  If the baseline is the best method, it has that of the second best method.
    """
    baseline = [row for row in others if row.role == "baseline"]
    spent = [(row.model, measured.costs[row.model].figures) for row in (best, *(baseline or others)[:1])]
    known = [(label, of) for label, of in spent if of["seconds"] is not None and of["trained_tokens"] is not None]
    texts = [
        f"{counted(large(of['seconds']), 'second')} and {counted(large(of['trained_tokens']), 'trained token')} for {label}"
        for label, of in known
    ]
    if texts:
        yield f"Training took {', and '.join(texts)}."
