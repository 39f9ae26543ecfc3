"""The tables of a comparison as text in cells, ready for any format.

What a table says is decided here; how it looks on a page, in LaTeX or on a terminal is not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.records import FRACTION, PERCENT
from redistill.reports.comparison import Column, Entrant, Estimate, Row
from redistill.reports.costs import SUMMED, Cost
from redistill.reports.folders import Measure
from redistill.reports.pages import NOTHING, difference, fixed, heading, large, percent, score
from redistill.reports.published import SOURCE, Published

Mark = Literal["", "best", "second"]
Kind = Literal["reference", "method"]
DIGITS = 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure.

    Args:
        detail: What stands behind it in small print, such as its spread.
        mark: Its rank in the column.
        tone: 1 where a difference is for the better by its whole interval, -1 where it is for the worse, else 0.
    """

    text: str
    detail: str = ""
    mark: Mark = ""
    tone: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table; references stand apart and are never ranked."""

    label: str
    kind: Kind
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with what a reader must know to read it.

    Args:
        key: Short and unique in a comparison: an anchor, a LaTeX label.
        columns: Headings; the first is that of the labels.
        measured: False for figures of the paper.
        is_detail: Whether it is left out where there is room for the essential tables only.
    """

    key: str
    title: str
    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    measured: bool = True
    is_detail: bool = False


def score_table(models: Sequence[Entrant], over: Sequence[Column], rows: Sequence[Row], *, apart: bool = False) -> Table:
    """The paper's kind of table: models by data sets, mean and spread, best and second best marked.

    Args:
        over: Columns of one primary metric.
        apart: Whether there is a table of another metric before this one.
    """
    measure, names = over[0].primary, {column.name for column in over}
    rows = [row for row in rows if row.column in names]
    found = {(row.is_method, row.model, row.column): row for row in rows}
    marks = {column.name: _ranks([row for row in rows if row.column == column.name]) for column in over}

    def cell(model: Entrant, column: Column) -> Cell:
        row = found.get((model.is_method, model.label, column.name))
        text = None if row is None else score(row.primary.mean, measure.unit, DIGITS)
        if row is None or text is None:
            return Cell(text=NOTHING)
        spread = score(row.primary.deviation, measure.unit, DIGITS)
        detail = "" if spread is None else f"± {spread}"
        return Cell(text=text, detail=detail, mark=marks[column.name].get(model.label, "") if model.is_method else "")

    prompts = [(column.name, row.num_prompts) for column in over if (row := _first(rows, column)) and not column.is_average]
    counted = ", ".join(f"{count:,} of {name}" for name, count in prompts)
    return Table(
        key=f"scores-{measure.name}" if apart else "scores",
        title=_sentence(heading(measure)),
        caption=f"{_sentence(heading(measure))}{_direction(measure)}. {_spread_told(models, rows)} Prompts: {counted}. Best in "
        "bold, second best underlined; the teacher and the student before training are not ranked.",
        columns=["", *(column.name for column in over)],
        lines=[Line(label=model.label, kind=_kind(model), cells=[cell(model, column) for column in over]) for model in models],
    )


def contrast_table(column: Column, rows: Sequence[Row], baseline: str, *, is_detail: bool = False) -> Table | None:
    """How each method differs from the baseline on one column; None where there is no other method."""
    others = [row for row in rows if row.column == column.name and row.role == "student" and row.versus is not None]
    if not others:
        return None
    tested, measure = sum(row.contrast is not None for row in others), column.primary
    unit = ", in percentage points" if measure.unit == FRACTION else ""
    return Table(
        key=f"difference-{column.name}",
        title=f"Difference to {baseline}, {column.name}",
        caption=f"{_sentence(heading(measure))} minus that of {baseline}{unit}{_direction(measure)}, {_where(column)}, "
        f"{max(row.num_prompts for row in others):,} prompts; "
        f"p (Holm) is corrected over {tested} {'method' if tested == 1 else 'methods'}.",
        columns=["", "difference", "95 % interval", "p", "p (Holm)", "better", "equal", "worse", "paired seeds"],
        lines=[Line(label=row.model, kind="method", cells=_contrast_cells(row)) for row in others],
        is_detail=is_detail,
    )


def other_scores_table(column: Column, rows: Sequence[Row], *, apart: bool = False) -> Table:
    """What was measured besides the primary metric, as the mean over data sets."""
    others = column.measures[1:]
    told = [f"{_sentence(measure.title)}: {_unit(measure)}{_direction(measure)}; " for measure in others]
    return Table(
        key=f"other-scores-{column.primary.name}" if apart else "other-scores",
        title="Other scores" + (f" beside {column.primary.title}" if apart else ""),
        caption=f"Means over seeds, {_where(column)}. {_sentence(''.join(told) + 'tokens')}: length of an answer; ends itself: "
        "share of answers with an end token; distinct-2: share of different bigrams. Cross entropy and KL(teacher, student) in "
        "nats per token, and agreement with the teacher's top token, are measured by reading the references.",
        columns=[
            "",
            *(heading(measure) for measure in others),
            *("tokens", "ends itself", "distinct-2", "cross entropy", "KL", "agreement"),
        ],
        lines=[
            Line(
                label=row.model,
                kind=_kind(row),
                cells=[
                    Cell(text=text or NOTHING)
                    for text in (
                        *(score(row.scores[measure.name], measure.unit) for measure in others),
                        fixed(row.scores["length_tokens"], 1),
                        percent(row.scores["eos_rate"]),
                        fixed(row.scores["distinct_2"], 3),
                        fixed(row.scores["cross_entropy"], 3),
                        fixed(row.scores["kl"], 3),
                        percent(row.scores["agreement"]),
                    )
                ],
            )
            for row in rows
            if row.column == column.name
        ],
        is_detail=True,
    )


def cost_table(
    costs: Mapping[str, Cost], teacher: Cost | None, column: Column, rows: Sequence[Row], machines: Sequence[str]
) -> Table:
    """What each method took, beside what it reached on a column."""
    measure = column.primary
    scores = {row.model: row.primary for row in rows if row.is_method and row.column == column.name}
    stages = [
        f"{label} counts {', '.join(f'{name} ({large(updates)} updates)' for name, updates in cost.stages.items())}"
        for label, cost in costs.items()
        if cost.stages
    ]
    told = [
        f"{_sentence(measure.title)} {_where(column)}. Costs of training are means over training seeds; peak memory is the "
        "most of any stage. "
        "Generated tokens differ by the nature of the methods and are not held equal."
    ]
    if stages:
        told.append(f"Stages before the method are part of its cost: {'; '.join(stages)}.")
    if teacher is not None:
        told.append("The teacher's fine-tuning stands apart and counts for no method.")
    if len(machines) > 1:
        told.append(f"The runs were made on different machines ({'; '.join(machines)}): their seconds cannot be compared.")
    apart = (
        [] if teacher is None else [Line(label="teacher, fine-tuning", kind="reference", cells=_cost_cells(teacher, None, ""))]
    )
    return Table(
        key="cost",
        title="Cost beside quality",
        caption=" ".join(told),
        columns=[
            "",
            heading(measure),
            "updates",
            "sequences",
            "trained tokens",
            "generated tokens",
            "seconds",
            "peak memory",
            "parameters",
        ],
        lines=[
            *apart,
            *(
                Line(label=label, kind="method", cells=_cost_cells(cost, scores.get(label), measure.unit))
                for label, cost in costs.items()
            ),
        ],
    )


def published_table(name: str, table: Published) -> Table:
    """Figures of the paper, labelled as such; nothing in it is marked."""
    return Table(
        key=f"published-{name}",
        title=f"Published, not measured here: {table.title}",
        caption=f"Figures of {SOURCE}; {table.score}. Models, data and settings are the paper's, so nothing here is ranked "
        f"with what was measured. {' '.join(table.notes)}".strip(),
        columns=["", *table.columns],
        lines=[
            Line(
                label=label,
                kind="reference" if label == "teacher" else "method",
                cells=[Cell(text=f"{figure:.{DIGITS}f}") for figure in figures],
            )
            for label, figures in table.rows.items()
        ],
        measured=False,
    )


def p_value(value: float | None) -> str:
    """A p-value with three digits behind the point.

    Example:
        >>> p_value(0.0001), p_value(0.04), p_value(None)
        ('< 0.001', '0.040', '–')
    """
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _contrast_cells(row: Row) -> list[Cell]:
    contrast, unit = row.contrast, row.measures[0].unit
    if contrast is None:
        return [Cell(text=row.note), *[Cell(text=NOTHING)] * 7]
    found = contrast.interval
    texts = (
        f"{difference(found.lower, unit)} to {difference(found.upper, unit)}",
        p_value(contrast.p),
        p_value(contrast.p_holm),
    )
    counts = (contrast.wins, contrast.ties, contrast.losses)
    return [
        Cell(text=difference(found.difference, unit), tone=row.tone),
        *(Cell(text=text) for text in texts),
        *(Cell(text=f"{count:,}") for count in counts),
        Cell(text=str(contrast.num_seeds) if contrast.num_seeds else "none shared"),
    ]


def _cost_cells(cost: Cost, reached: Estimate | None, unit: str) -> list[Cell]:
    seconds = cost.figures["seconds"]
    texts = [
        NOTHING if reached is None else score(reached.mean, unit, DIGITS) or NOTHING,
        *(large(cost.figures[name]) for name in SUMMED if name != "seconds"),
        NOTHING if seconds is None else f"{seconds:,.0f}",
        NOTHING if cost.figures["peak_bytes"] is None else f"{large(cost.figures['peak_bytes'], 'G')}B",
        large(cost.figures["parameters"]),
    ]
    return [Cell(text=text) for text in texts]


def _ranks(rows: Sequence[Row]) -> dict[str, Mark]:
    """Marks of the best and second best method by the digits shown; a second best of two would be the worst."""
    methods = [row for row in rows if row.primary.mean is not None and row.is_method]
    shown = {row.model: row.measures[0].sign * _as_shown(row.primary.mean, row.measures[0].unit) for row in methods}
    if len(shown) < 2:
        return {}
    ordered = sorted(set(shown.values()), reverse=True)
    best = [model for model, value in shown.items() if value == ordered[0]]
    second = [model for model, value in shown.items() if len(best) == 1 and len(shown) > 2 and value == ordered[1]]
    return {**dict.fromkeys(best, "best"), **dict.fromkeys(second, "second")}


def _as_shown(value: float | None, unit: str) -> float:
    """A score with the digits that tables show."""
    assert value is not None
    return round(value, DIGITS + 1 if unit == FRACTION else DIGITS)


def _sentence(text: str) -> str:
    """`text` as a sentence begins with it."""
    return text[:1].upper() + text[1:]


def _unit(measure: Measure) -> str:
    if measure.unit == FRACTION:
        return "share of answers"
    return "in percent" if measure.unit == PERCENT else measure.unit or "without unit"


def _direction(measure: Measure) -> str:
    """A remark where a lower value is better, which readers do not expect."""
    return ", lower is better" if measure.better == "lower" else ""


def _spread_told(models: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """What the figures are means of, and what ± is over, for whom."""
    groups: dict[str, list[str]] = {}
    for model in models:
        found = [row.primary for row in rows if (row.is_method, row.model) == (model.is_method, model.label)]
        if found:
            most = max(found, key=lambda each: (each.num_trainings, each.num_seeds))
            groups.setdefault(_over(most), []).append(model.label)
    told = [over if len(groups) == 1 else f"{over} ({', '.join(labels)})" for over, labels in groups.items() if over]
    if not told:
        return "One training and one evaluation seed each, hence no spread."
    alone = f" No spread, since one seed: {', '.join(groups[''])}." if "" in groups else ""
    return f"Means over seeds; ± is the standard deviation {'; '.join(told)}.{alone}"


def _over(found: Estimate) -> str:
    """What ± is over; "" where there is one seed of each kind."""
    each = "one evaluation seed" if found.num_seeds == 1 else f"{found.num_seeds} evaluation seeds"
    if found.num_trainings > 1:
        return f"over {found.num_trainings} training seeds, each the mean of {each}"
    return f"over {each}" if found.num_seeds > 1 else ""


def _where(column: Column) -> str:
    return "averaged over data sets" if column.is_average else f"on {column.name}"


def _kind(model: Entrant | Row) -> Kind:
    return "method" if model.is_method else "reference"


def _first(rows: Sequence[Row], column: Column) -> Row | None:
    return next((row for row in rows if row.column == column.name), None)
