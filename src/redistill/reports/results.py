"""The results of a report: scores by data set, category and decoding."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from redistill.records import ACCEPTANCE, PROPOSALS
from redistill.reports.categories import category_table
from redistill.reports.comparison import GENERATED, TEACHER_FORCED, Row
from redistill.reports.folders import Evaluation, at, decoding_title, mapping, number
from redistill.reports.pages import NOTHING
from redistill.reports.statistics import deviation, mean
from redistill.reports.tables import Cell, Line, Table

MAX_SCORES = 40
"""A table has at most this number of other scores."""
_TITLES = {
    "distinct_1": "distinct-1",
    "ece": "calibration error",
    "student_entropy": "entropy of the student, nats",
    "teacher_entropy": "entropy of the teacher, nats",
    "top_overlap": "overlap of the top 10",
}


def results_section(models: Sequence[Evaluation], rows: Sequence[Row]) -> dict[str, object]:
    """Return the variables of the results in the template, by name.

    Args:
        models: The evaluations, that of the run last.
        rows: One row per data set and model.
    """
    drafts = [row for row in rows if row.scores["acceptance"] is not None]
    student = models[-1] if models and models[-1].role == "student" else None
    versus = {row.column: row.versus for row in rows if row.role == "student"}
    tables = [] if student is None else [category_table(name, models, versus.get(name)) for name in student.datasets]
    datasets = [list(found) for _, found in itertools.groupby(rows, key=lambda row: row.column)]
    return {
        "qualities": list(_qualities(rows)),
        "decodings": [] if student is None else list(_decodings(student)),
        "drafts": [list(found) for _, found in itertools.groupby(drafts, key=lambda row: row.column)],
        "proposals": range(1, PROPOSALS + 1),
        "datasets": datasets,
        "primaries": list(dict.fromkeys(row.measures[0].heading for row in rows)),
        "categories": [table for table in tables if table is not None],
        "others": _other_scores([found[0].column for found in datasets], models),
    }


def _qualities(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    """Yield one dict per primary metric, with the mean scores of student and teacher.

    Means are taken over the data sets with this primary metric.  The value of "gain" is the mean difference between the student
    and the reference model: the first baseline, or the student before training if there is no baseline.
    """
    for primary in dict.fromkeys(row.measures[0] for row in rows if row.role == "student"):
        scored = [row for row in rows if row.measures[0] == primary]
        student = [row for row in scored if row.role == "student"]
        compared = [row for row in student if row.interval is not None]
        yield {
            "primary": primary,
            "num_datasets": len(student),
            "student": mean(row.primary.mean for row in student if row.primary.mean is not None),
            "teacher": mean(row.primary.mean for row in scored if row.role == "teacher" and row.primary.mean is not None),
            "compared": compared,
            "gain": mean(row.interval.difference for row in compared if row.interval is not None),
            "num_ahead": sum(row.tone > 0 for row in compared),
        }


def _decodings(student: Evaluation) -> Iterator[dict[str, object]]:
    """Yield one dict for each data set with further decodings.

    A dict has the scores of the student for each decoding, with those of the main decoding first.
    """
    for dataset in student.datasets:
        if not (titles := student.decodings(dataset)):
            continue
        measures, rows = student.measures(dataset), []
        main = decoding_title(student.settings.get("sampling"))
        names = dict[str | None, str]({None: f"main ({main})"}) | titles
        for name, title in names.items():
            scores = (*(measure.name for measure in measures), *GENERATED)
            found = {each: list(student.seed_scores(dataset, each, name).values()) for each in scores}
            means = {each: mean(values) for each, values in found.items()}
            primary = found[measures[0].name]
            rows.append({"title": title, "means": means, "deviation": deviation(primary), "num_seeds": len(primary)})
        yield {"dataset": dataset, "measures": measures, "rows": rows}


def _other_scores(datasets: Sequence[str], models: Sequence[Evaluation]) -> Table | None:
    """Return the table of all scores in scores.json that no other table has; None if there are none."""
    found = [(model, dataset) for dataset in datasets for model in models if dataset in model.datasets]
    shown = {*GENERATED, *TEACHER_FORCED, *ACCEPTANCE, *(each.name for model, name in found for each in model.measures(name))}
    scores = [(f"{dataset}, {model.label}", _scores(model, dataset)) for model, dataset in found]
    names = [name for name in dict.fromkeys(name for _, held in scores for name in held) if name not in shown]
    names = [name for name in names if re.fullmatch(r"\w{1,60}", name, re.ASCII)][:MAX_SCORES]
    if not names:
        return None
    return Table(
        key="others",
        title="Other scores",
        caption="Means over evaluation seeds of all scores in scores.json that no other table has.",
        columns=["", *(_TITLES.get(name, name.replace("_", " ")) for name in names)],
        lines=[
            Line(label, "method", [Cell(f"{held[name]:.4g}" if name in held else NOTHING) for name in names])
            for label, held in scores
        ],
    )


def _scores(model: Evaluation, dataset: str) -> Mapping[str, float]:
    """Return all scores of a model on a data set by name, as means over evaluation seeds."""
    held = model.datasets.get(dataset)
    seeds = [mapping(seed) for seed in mapping(at(held, "seeds")).values()]
    found = {name: mean(model.seed_scores(dataset, name).values()) for name in dict.fromkeys(n for seed in seeds for n in seed)}
    forced = mapping(at(held, "teacher_forced"))
    return {name: value for name, value in (found | {n: number(v) for n, v in forced.items()}).items() if value is not None}
