"""Tables of a comparison as text cells, independent of the output format.

This module determines the content of tables; `terminal` and the templates determine their layout.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.records import FRACTION, PERCENT, PROPOSALS
from redistill.reports.comparison import Column, Entrant, Estimate, Row
from redistill.reports.costs import PEAK, SUMMED, Cost
from redistill.reports.folders import Measure
from redistill.reports.pages import NOTHING, difference, fixed, large, percent, score
from redistill.reports.published import SOURCE, Published

Mark = Literal["", "best", "second"]
Kind = Literal["reference", "method"]
DIGITS = 2
CONTRASTS = ("difference", "95 % interval", "p", "p (Holm)", "detectable", "better", "equal", "worse", "about")
"""Headings of the cells that `contrast_cells` returns."""
_OTHER_SCORES = ("tokens", "ended", "distinct-2", "cross entropy", "KL", "agreement")
_COSTS = ("updates", "sequences", "trained tokens", "generated tokens", "seconds", "peak memory", "parameters")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: The formatted value.
        detail: Additional text in small print, such as the standard deviation.
        mark: Rank in the column: "best", "second" or "".
        tone: For a difference of two models: 1 if the model is better than the reference model, -1 if it is worse, and 0 if the
            confidence interval of the difference contains 0.  For any other value: 0.
    """

    text: str
    detail: str = ""
    mark: Mark = ""
    tone: int = 0


@dataclass(frozen=True)
class Line:
    """A row of a table; only rows of the kind "method" are ranked."""

    label: str
    kind: Kind
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its title and caption.

    Args:
        key: Short identifier, unique in a comparison; used for anchors and LaTeX labels.
        title: Heading of the table.
        caption: Metric, units and other facts needed to read the table.
        columns: Column headings.  The first one is for the labels of the rows.
        lines: Rows of the table.
        measured: False if the values were published by the MGSR paper (arXiv 2407.10068), not measured here.
        is_detail: Whether the terminal omits the table.
    """

    key: str
    title: str
    caption: str
    columns: Sequence[str]
    lines: Sequence[Line]
    measured: bool = True
    is_detail: bool = False


def score_table(models: Sequence[Entrant], over: Sequence[Column], rows: Sequence[Row], *, apart: bool = False) -> Table:
    """Build the table of scores; the best and the second best model are marked.

    Cells contain the mean and the standard deviation over seeds.

    Args:
        models: Models in the order of the rows.
        over: Columns with the same primary metric.
        rows: Rows of the comparison.
        apart: Whether a table of another primary metric precedes this table.  If True, the `key` of this table contains the
            name of the metric, so that keys are unique.
    """
    measure, names = over[0].primary, {column.name for column in over}
    rows = [row for row in rows if row.column in names]
    found = {(row.is_method, row.model, row.column): row for row in rows}
    marks = {
        column.name: ranks({row.model: row.primary for row in rows if row.column == column.name and row.is_method}, measure)
        for column in over
    }

    def cell(model: Entrant, column: Column) -> Cell:
        row = found.get((model.is_method, model.label, column.name))
        mark = marks[column.name].get(model.label, "") if model.is_method else ""
        return Cell(NOTHING) if row is None else estimate_cell(row.primary, measure, mark)

    prompts = {row.column: row.num_prompts for row in reversed(rows)}
    counted = ", ".join(f"{prompts[column.name]:,} of {column.name}" for column in over if not column.is_average)
    return Table(
        key=f"scores-{measure.name}" if apart else "scores",
        title=sentence(measure.heading),
        caption=f"{sentence(measure.heading)}{direction(measure)}. {_spread_caption(models, rows)} Prompts: {counted}. "
        "Best in bold, second best underlined; the teacher and the student before training are not ranked.",
        columns=["", *(column.name for column in over)],
        lines=[Line(model.label, _kind(model), [cell(model, column) for column in over]) for model in models],
    )


def contrast_table(column: Column, rows: Sequence[Row], baseline: str, *, is_detail: bool = False) -> Table | None:
    """Build the table of differences between methods and the baseline in one column.

    `column` is a data set or an average, `rows` are all rows of the comparison, and `is_detail` is True if the terminal omits
    the table.  Returns None if there is no method to compare with the baseline.
    """
    others = [row for row in rows if row.column == column.name and row.role == "student" and row.versus is not None]
    if not others:
        return None
    tested, measure = sum(row.contrast is not None for row in others), column.primary
    unit = ", in percentage points" if measure.unit == FRACTION else ""
    return Table(
        key=f"difference-{column.name}",
        title=f"Difference to {baseline}, {column.name}",
        caption=f"{sentence(measure.heading)} minus that of {baseline}{unit}{direction(measure)}, {where(column)}, "
        f"{max(row.num_prompts for row in others):,} prompts; "
        f"p (Holm) is corrected over {tested} {'method' if tested == 1 else 'methods'}.",
        columns=["", *CONTRASTS],
        lines=[Line(row.model, "method", contrast_cells(row)) for row in others],
        is_detail=is_detail,
    )


def other_scores_table(column: Column, rows: Sequence[Row], *, apart: bool = False) -> Table:
    """Build the table of all scores except the primary metric, for one column.

    `rows` are all rows of the comparison.  The argument `apart` has the same meaning as in `score_table`.
    """
    others = column.measures[1:]
    described = [f"{sentence(measure.title)}: {_unit(measure)}{direction(measure)}; " for measure in others]
    return Table(
        key=f"other-scores-{column.primary.name}" if apart else "other-scores",
        title="Other scores" + (f" than {column.primary.title}" if apart else ""),
        caption=f"Means over seeds, {where(column)}. {sentence(''.join(described) + 'tokens')}: response length; ended: "
        "fraction of responses with an end token; distinct-2: fraction of distinct bigrams. Cross entropy and KL(teacher, "
        "student), in nats per token, and agreement with the teacher's top token are teacher-forced on the references.",
        columns=["", *(measure.heading for measure in others), *_OTHER_SCORES],
        lines=[Line(row.model, _kind(row), _cells(_other_scores(row))) for row in rows if row.column == column.name],
        is_detail=True,
    )


def acceptance_table(column: Column, rows: Sequence[Row], *, apart: bool = False) -> Table | None:
    """Build the table of acceptance in speculative decoding, for one column.

    The models are draft models.  The result is None if none was measured.  The arguments are those of `other_scores_table`.
    """
    found = [row for row in rows if row.column == column.name and row.scores["acceptance"] is not None]
    if not found:
        return None
    counts = range(1, PROPOSALS + 1)
    return Table(
        key=f"acceptance-{column.primary.name}" if apart else "acceptance",
        title="Acceptance as a draft model" + (f", {column.name}" if apart else ""),
        caption="Expected number of tokens that the teacher accepts in speculative decoding, of k that the model proposes, "
        f"{where(column)}; alpha is the probability that one token is accepted. On the references, at temperature 1.",
        columns=["", "alpha", *(f"k = {k}" for k in counts)],
        lines=[
            Line(
                row.model,
                _kind(row),
                _cells([percent(row.scores["acceptance"]), *(fixed(row.scores[f"accepted_length_{k}"]) for k in counts)]),
            )
            for row in found
        ],
    )


def cost_table(
    costs: Mapping[str, Cost], teacher: Cost | None, column: Column, rows: Sequence[Row], machines: Sequence[str]
) -> Table:
    """Build the table with the training costs and the score of each method.

    `costs` has the cost of each method by label.  `teacher` is the cost of fine-tuning the teacher; if it is None, the table
    has no row for it.  The score is the primary metric in `column`, taken from `rows`.  `machines` lists the machines that were
    used.
    """
    measure = column.primary
    scores = {row.model: row.primary for row in rows if row.is_method and row.column == column.name}
    stages = [
        f"{label}: {', '.join(f'{name} ({large(updates)} updates)' for name, updates in cost.stages.items())}"
        for label, cost in costs.items()
        if cost.stages
    ]
    caption = [
        f"{sentence(measure.title)} {where(column)}. Training costs are means over training seeds; peak memory is the "
        "maximum over stages. The number of generated tokens depends on the method and is not required to be equal."
    ]
    if stages:
        caption.append(f"Costs include the stages before the method: {'; '.join(stages)}.")
    if teacher is not None:
        caption.append("Fine-tuning of the teacher is listed separately and not included in the cost of any method.")
    if len(machines) > 1:
        caption.append(f"The runs used different machines ({'; '.join(machines)}): their seconds are not comparable.")
    apart = [] if teacher is None else [Line("teacher, fine-tuning", "reference", _cost_cells(teacher, None, ""))]
    methods = [Line(label, "method", _cost_cells(cost, scores.get(label), measure.unit)) for label, cost in costs.items()]
    return Table(
        key="cost",
        title="Cost and quality",
        caption=" ".join(caption),
        columns=["", measure.heading, *_COSTS],
        lines=[*apart, *methods],
    )


def published_table(name: str, table: Published) -> Table:
    """Build the table of published values of the MGSR paper; no value is ranked.

    `name` is the name of the published table, as in `published_names`.
    """
    return Table(
        key=f"published-{name}",
        title=f"Published, not measured here: {table.title}",
        caption=f"Values of {SOURCE}; {table.score}. Models, data and settings are those of the paper, so the values are not "
        f"ranked with measured ones. {' '.join(table.notes)}".strip(),
        columns=["", *table.columns],
        lines=[
            Line(label, "reference" if label == "teacher" else "method", _cells(f"{figure:.{DIGITS}f}" for figure in figures))
            for label, figures in table.rows.items()
        ],
        measured=False,
    )


def p_value(value: float | None) -> str:
    """Format a p-value with three decimal places; a dash for None.

    Example:
        >>> p_value(0.0001), p_value(0.04), p_value(None)
        ('< 0.001', '0.040', '–')
    """
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _cells(texts: Iterable[str]) -> list[Cell]:
    return [Cell(text) for text in texts]


def contrast_cells(row: Row) -> list[Cell]:
    """Return the cells with the difference of a row to its reference model.

    The headings are `CONTRASTS`.  Without a difference, the first cell has the reason.
    """
    found, unit = row.contrast, row.measures[0].unit
    if found is None:
        return _cells([row.note, *[NOTHING] * 8])
    lower, upper = difference(found.interval.lower, unit), difference(found.interval.upper, unit)
    counts = (f"{count:,}" for count in (found.wins, found.ties, found.losses))
    detectable = NOTHING if found.detectable is None else difference(found.detectable, unit).removeprefix("+")
    about = f"methods, {found.num_seeds} seeds" if found.about == "methods" else "these students"
    texts = (f"{lower} to {upper}", p_value(found.p), p_value(found.p_holm), detectable, *counts, about)
    return [Cell(difference(found.interval.difference, unit), tone=row.tone), *_cells(texts)]


def _other_scores(row: Row) -> list[str]:
    """Return the cells of one row in the table of other scores."""
    found = row.scores
    return [
        *(score(found[measure.name], measure.unit) for measure in row.measures[1:]),
        *(fixed(found["length_tokens"], 1), percent(found["eos_rate"]), fixed(found["distinct_2"], 3)),
        *(fixed(found["cross_entropy"], 3), fixed(found["kl"], 3), percent(found["agreement"])),
    ]


def _cost_cells(cost: Cost, reached: Estimate | None, unit: str) -> list[Cell]:
    """Return the cells of one row in the cost table: a score, then the costs.

    `reached` is the score of the method, in `unit`; if it is None, the cell has a dash.
    """
    *counts, seconds = (cost.figures[name] for name in SUMMED)
    peak = cost.figures[PEAK]
    return _cells(
        [
            score(None if reached is None else reached.mean, unit, DIGITS),
            *map(large, counts),
            NOTHING if seconds is None else f"{seconds:,.0f}",
            NOTHING if peak is None else f"{large(peak, 'G')}B",
            large(cost.figures["parameters"]),
        ]
    )


def estimate_cell(found: Estimate, measure: Measure, mark: Mark) -> Cell:
    """Return a cell with a mean and its standard deviation; a dash without a mean.

    Args:
        found: Mean and standard deviation.
        measure: The metric.
        mark: Rank of the mean in the column.
    """
    if found.mean is None:
        return Cell(NOTHING)
    detail = "" if found.deviation is None else f"± {score(found.deviation, measure.unit, DIGITS)}"
    return Cell(score(found.mean, measure.unit, DIGITS), detail=detail, mark=mark)


def ranks(scores: Mapping[str, Estimate], measure: Measure) -> dict[str, Mark]:
    """Return the marks of the best and the second best method, by label.

    The best of two or more methods, and the second best of three or more, are marked.  Scores are compared as displayed, that
    is, rounded.
    """
    digits = DIGITS + (measure.unit == FRACTION)
    shown = {label: measure.sign * round(found.mean, digits) for label, found in scores.items() if found.mean is not None}
    if len(shown) < 2:
        return {}
    ranked = sorted(shown.values(), reverse=True)
    marks: dict[float, Mark] = {ranked[1]: "second"} if len(shown) > 2 else {}
    marks[ranked[0]] = "best"
    return {model: marks[value] for model, value in shown.items() if value in marks}


def sentence(text: str) -> str:
    """Return `text` with its first letter capitalized."""
    return text[:1].upper() + text[1:]


def _unit(measure: Measure) -> str:
    if measure.unit == FRACTION:
        return "fraction of responses"
    return "in percent" if measure.unit == PERCENT else measure.unit or "no unit"


def direction(measure: Measure) -> str:
    """Return the note ", lower is better" for a caption; "" if higher is better."""
    return ", lower is better" if measure.better == "lower" else ""


def _spread_caption(models: Sequence[Entrant], rows: Sequence[Row]) -> str:
    """Return sentences that state over how many seeds means and deviations are taken.

    Models with the same numbers of seeds are listed together.
    """
    groups: dict[str, list[str]] = {}
    for model in models:
        found = [row.primary for row in rows if (row.is_method, row.model) == (model.is_method, model.label)]
        if found:
            most = max(found, key=lambda each: (each.num_trainings, each.num_seeds))
            groups.setdefault(_over(most), []).append(model.label)
    spreads = [over if len(groups) == 1 else f"{over} ({', '.join(labels)})" for over, labels in groups.items() if over]
    if not spreads:
        return "One training seed and one evaluation seed per model, so no standard deviation."
    alone = f" No standard deviation, because of a single seed: {', '.join(groups[''])}." if "" in groups else ""
    return f"Means over seeds; ± is the standard deviation {'; '.join(spreads)}.{alone}"


def _over(found: Estimate) -> str:
    """Describe the seeds of a mean: "over 5 evaluation seeds", or "" for one seed."""
    each = "one evaluation seed" if found.num_seeds == 1 else f"{found.num_seeds} evaluation seeds"
    if found.num_trainings > 1:
        return f"over {found.num_trainings} training seeds, each the mean of {each}"
    return f"over {each}" if found.num_seeds > 1 else ""


def where(column: Column) -> str:
    """Return a phrase for captions that names the data sets of a column."""
    return "averaged over data sets" if column.is_average else f"on {column.name}"


def _kind(model: Entrant | Row) -> Kind:
    return "method" if model.is_method else "reference"
