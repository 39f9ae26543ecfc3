"""Scores by decoding, and differences to the baseline with each decoding.

Differences are tested in the same way as with the main decoding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from redistill.records import FRACTION
from redistill.reports.comparison import Column, Entrant, Row, comparison_rows
from redistill.reports.folders import decoding_title
from redistill.reports.pages import NOTHING
from redistill.reports.tables import (
    CONTRASTS,
    Cell,
    Line,
    Table,
    contrast_cells,
    direction,
    estimate_cell,
    ranks,
    sentence,
    where,
)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Rows of a comparison with one decoding, for one column.

    Args:
        name: Name of the decoding in scores.json; None is the main decoding.
        title: Title of the decoding.
        rows: Rows of the methods that were evaluated with the decoding, with differences to the baseline.
    """

    name: str | None
    title: str
    rows: Sequence[Row]


def decodings_of(models: Sequence[Entrant], datasets: Sequence[str]) -> dict[str, str]:
    """Map the names of further decodings to their titles, in order of occurrence.

    A decoding is included if any method was evaluated with it on any of `datasets`.
    """
    trainings = (training for model in models if model.is_method for training in model.trainings.values())
    return {name: title for found in trainings for each in datasets for name, title in found.decodings(each).items()}


def decoded_rows(column: Column, models: Sequence[Entrant], baseline: str, rows: Sequence[Row]) -> list[Decoded]:
    """Return the rows of one column for each decoding, the main decoding first.

    Holm's correction is over the methods with the same decoding.  The result is empty if no method was evaluated with further
    decodings on a data set of the column.

    Args:
        column: The column of the comparison.
        models: The models; only methods are included.
        baseline: Label of the baseline.
        rows: All rows of the comparison, which are those of the main decoding.
    """
    titles, methods = decodings_of(models, column.datasets), [model for model in models if model.is_method]
    if not titles:
        return []
    main = dict.fromkeys(decoding_title(found.settings.get("sampling")) for m in methods for found in m.trainings.values())
    found = [
        Decoded(
            name=None,
            title=f"main ({'; '.join(main)})",
            rows=[row for row in rows if row.column == column.name and row.is_method],
        )
    ]
    only_primary = replace(column, measures=column.measures[:1])
    for name, title in titles.items():
        sampled = [_at(model, name) for model in methods]
        references = [model for model in sampled if model.label == baseline]
        found.append(Decoded(name=name, title=title, rows=comparison_rows(sampled, [only_primary], references)))
    return found


def decoding_table(column: Column, decoded: Sequence[Decoded], *, is_detail: bool = False) -> Table | None:
    """Build the table of scores by decoding, for one column of a comparison.

    The table has a row for each method and a column for each decoding, in which the best and the second best method are marked.
    The result is None if `decoded` is empty.

    Args:
        column: The column of the comparison.
        decoded: Rows by decoding, as `decoded_rows` returns them.
        is_detail: As in `contrast_table`.
    """
    if not decoded:
        return None
    measure = column.primary
    scores = [{row.model: row.primary for row in each.rows} for each in decoded]
    marks = [ranks(found, measure) for found in scores]
    lines = {
        label: Line(
            label,
            "method",
            [
                estimate_cell(found[label], measure, of.get(label, "")) if label in found else Cell(NOTHING)
                for found, of in zip(scores, marks, strict=True)
            ],
        )
        for label in dict.fromkeys(label for found in scores for label in found)
    }
    return Table(
        key=f"decoding-{column.name}",
        title=f"Decoding, {column.name}",
        caption=f"{sentence(measure.heading)}{direction(measure)}, {where(column)}. The same students sampled in different "
        "ways, which cost no training: a gain at T 1 that vanishes at a lower temperature is an effect of decoding. Means over "
        "seeds; ± is the standard deviation over training seeds, or else over evaluation seeds.",
        columns=["", *(each.title for each in decoded)],
        lines=list(lines.values()),
        is_detail=is_detail,
    )


def decoded_contrast_table(
    column: Column, decoded: Sequence[Decoded], baseline: str, *, is_detail: bool = False
) -> Table | None:
    """Build the table of differences with each decoding, for one column.

    The table has a line for each method and decoding, with the same columns as `contrast_table`.  The result is None if there
    is no method to compare with the baseline.

    Args:
        column: The column of the comparison.
        decoded: Rows by decoding, as `decoded_rows` returns them.
        baseline: Label of the baseline.
        is_detail: As in `contrast_table`.
    """
    compared = [(each, row) for each in decoded for row in each.rows if row.role == "student" and row.versus is not None]
    labels, measure = dict.fromkeys(row.model for _, row in compared), column.primary
    if not labels:
        return None
    unit = ", in percentage points" if measure.unit == FRACTION else ""
    return Table(
        key=f"decoding-difference-{column.name}",
        title=f"Difference to {baseline} by decoding, {column.name}",
        caption=f"{sentence(measure.heading)} minus that of {baseline} with the same decoding{unit}{direction(measure)}, "
        f"{where(column)}. Intervals, p-values and detectable differences are computed as with the main decoding; p (Holm) is "
        "corrected over the methods with the same decoding, but not over decodings.",
        columns=["", *CONTRASTS],
        lines=[
            Line(f"{label}, {each.title}", "method", contrast_cells(row))
            for label in labels
            for each, row in compared
            if row.model == label
        ],
        is_detail=is_detail,
    )


def _at(model: Entrant, decoding: str) -> Entrant:
    """Return the model as if a further decoding were the main decoding."""
    return replace(model, trainings={seed: found.at_decoding(decoding) for seed, found in model.trainings.items()})
