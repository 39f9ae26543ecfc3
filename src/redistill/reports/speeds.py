"""Size and speed of the models of a comparison, and the quality that they keep."""

from collections.abc import Sequence

from redistill.reports.comparison import Column, Entrant
from redistill.reports.measured import Measured
from redistill.reports.pages import percent, score
from redistill.reports.sizes import (
    COLUMNS,
    EXPLAINED,
    FIGURES,
    Figures,
    figure_cells,
    measured_figures,
    ratios,
    teacher_figures,
)
from redistill.reports.statistics import mean
from redistill.reports.tables import Cell, Kind, Line, Table


def figures_of(model: Entrant) -> Figures:
    """Return size, speed and memory of a model, as means over its training seeds.

    The keys are names in `sizes.FIGURES`.  A value is missing if no evaluation has recorded it.
    """
    return _means([measured_figures(each) for each in model.trainings.values()])


def ratios_of(measured: Measured, label: str) -> Figures:
    """Return size, speed and memory of a method, divided by those of its teachers.

    The keys are names in `sizes.FIGURES`.  The mean over the method's runs is divided by the mean over the teachers of these
    runs. Runs that did not measure both models are left out.

    Args:
        measured: The compared runs.
        label: Label of the method.
    """
    pairs = _pairs(measured, label)
    return {name: sum(own for own, _ in found) / sum(other for _, other in found) for name, found in pairs.items()}


def _teachers_of(measured: Measured, label: str) -> Figures:
    """Return the mean size, speed and memory of the teachers used in `ratios_of`."""
    return {name: sum(other for _, other in found) / len(found) for name, found in _pairs(measured, label).items()}


def _pairs(measured: Measured, label: str) -> dict[str, list[tuple[float, float]]]:
    """Return the values of student and teacher in each run of a method.

    The keys are names in `sizes.FIGURES`.  Runs that did not measure both models are left out.
    """
    pairs: dict[str, list[tuple[float, float]]] = {}
    for entry in measured.lineup.of(label):
        teacher = teacher_figures(entry.run)
        for name, ratio in ratios(entry.run).items():
            pairs.setdefault(name, []).append((ratio * teacher[name], teacher[name]))
    return pairs


def kept_quality(measured: Measured, column: Column) -> dict[str, float]:
    """Return the fraction of the teacher's score that each method reaches, by label.

    The result is empty if lower scores are better, or if there is not exactly one teacher.  It is also empty if the score of
    the teacher is not positive.
    """
    rows = [row for row in measured.rows if row.column == column.name]
    teachers = [row.primary.mean for row in rows if row.role == "teacher"]
    if len(teachers) != 1 or teachers[0] is None or teachers[0] <= 0 or column.primary.sign < 0:
        return {}
    scores = {row.model: row.primary.mean for row in rows if row.is_method}
    return {label: value / teachers[0] for label, value in scores.items() if value is not None}


def size_table(measured: Measured, column: Column) -> Table:
    """Build the table of quality, size and speed of teachers and methods.

    Args:
        measured: The compared runs.
        column: A data set or an average, whose primary metric is the quality.
    """
    measure, kept = column.primary, kept_quality(measured, column)
    scores = {(row.is_method, row.model): row.primary.mean for row in measured.rows if row.column == column.name}
    lines = []
    for model in measured.models:
        if model.role == "before":
            continue
        part = kept.get(model.label) if model.is_method else None
        quality = [Cell(score(scores.get((model.is_method, model.label)), measure.unit)), Cell(percent(part))]
        kind: Kind = "method" if model.is_method else "reference"
        relative = ratios_of(measured, model.label) if model.is_method else {}
        theirs = _teachers_of(measured, model.label) if model.is_method else {}
        lines.append(Line(model.label, kind, [*quality, *figure_cells(figures_of(model), relative, theirs)]))
    where = "averaged over data sets" if column.is_average else f"on {column.name}"
    return Table(
        key="size",
        title="Size and speed",
        caption=f"{measure.title} {where}, and its fraction of the teacher's score. {EXPLAINED} Figures are means "
        "over training seeds.",
        columns=["", measure.heading, "of the teacher", *COLUMNS],
        lines=lines,
    )


def _means(found: Sequence[Figures]) -> Figures:
    """Return the mean of each figure over the models for which it is known."""
    means = {name: mean(held[name] for held in found if name in held) for name in FIGURES}
    return {name: value for name, value in means.items() if value is not None}
