"""The results of a report: scores by data set, category and decoding."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from redistill.records import ACCEPTANCE, PROPOSALS, Json
from redistill.reports.categories import category_table
from redistill.reports.comparison import GENERATED, TEACHER_FORCED, Row
from redistill.reports.folders import Evaluation, at, decoding_title, mapping, number
from redistill.reports.pages import NOTHING
from redistill.reports.statistics import deviation, mean
from redistill.reports.tables import Cell, Line, Table
from redistill.storage.redaction import plain_line

MAX_SCORES = 40
"""A table has at most this number of other scores."""
MAX_NUMBERS = 400
"""The table of all numbers has at most this number of lines."""
MAX_PATH = 160
"""The path of a number is cut to this number of characters."""
_TITLES = {
    "distinct_1": "distinct-1",
    "ece": "calibration error",
    "student_entropy": "entropy of the student, nats",
    "teacher_entropy": "entropy of the teacher, nats",
    "top_overlap": "overlap of the top 10",
}


def results_section(models: Sequence[Evaluation], rows: Sequence[Row]) -> dict[str, object]:
    """Return the template variables for the results, by name.

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
        "decodings": [] if student is None else list(_decodings(models, versus)),
        "drafts": [list(found) for _, found in itertools.groupby(drafts, key=lambda row: row.column)],
        "proposals": range(1, PROPOSALS + 1),
        "datasets": datasets,
        "primaries": list(dict.fromkeys(row.measures[0].heading for row in rows)),
        "categories": [table for table in tables if table is not None],
        "others": [
            table
            for table in (_other_scores([found[0].column for found in datasets], models), _numbers_table(models))
            if table is not None
        ],
    }


def _qualities(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    """Yield one dict per primary metric, with the mean scores of student and teacher.

    Means are taken over the data sets with this primary metric.  The value of "gain" is the mean difference between the student
    and the reference model.  The reference model is the first baseline.  Without baselines, it is the student before training.
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


def _decodings(models: Sequence[Evaluation], versus: Mapping[str, str | None]) -> Iterator[dict[str, object]]:
    """Yield one dict for each data set on which the last model has further decodings.

    A dict has the scores of each model for each decoding, with those of the main decoding first.  A model is included if it has
    further decodings.  The value of "difference" is the student's score minus that of the reference model.

    Args:
        models: The evaluations, that of the student last.
        versus: Label of the reference model, by name of the data set.
    """
    student = models[-1]
    for dataset in student.datasets:
        titles, measures = student.decodings(dataset), student.measures(dataset)
        names = (*(measure.name for measure in measures), *GENERATED)
        rows = []
        for decoding in (None, *titles) if titles else ():
            scores = {
                model.label: {name: list(model.seed_scores(dataset, name, decoding).values()) for name in names}
                for model in models
                if model.decodings(dataset)
            }
            means = {label: {name: mean(values) for name, values in found.items()} for label, found in scores.items()}
            for model in models:
                primary = scores.get(model.label, {}).get(measures[0].name)
                if primary:
                    main = f"main ({decoding_title(model.settings.get('sampling'))})"
                    other = means.get(versus.get(dataset) or "", {}).get(measures[0].name) if model is student else None
                    row = {"title": main if decoding is None else titles[decoding], "model": model, "means": means[model.label]}
                    gap = None if other is None else float(np.mean(primary)) - other
                    rows.append({**row, "deviation": deviation(primary), "num_seeds": len(primary), "difference": gap})
        if rows:
            yield {"dataset": dataset, "measures": measures, "rows": rows, "versus": versus.get(dataset)}


def _other_scores(datasets: Sequence[str], models: Sequence[Evaluation]) -> Table | None:
    """Return the table of scores that no other table of the report contains.

    An example is pass@k.  The result is None if there are no such scores.
    """
    found = [(model, dataset) for dataset in datasets for model in models if dataset in model.datasets]
    shown = {*GENERATED, *TEACHER_FORCED, *ACCEPTANCE, *(each.name for model, name in found for each in model.measures(name))}
    scores = [(f"{dataset}, {model.label}", _scores(model, dataset)) for model, dataset in found]
    names = [name for name in dict.fromkeys(name for _, held in scores for name in held) if name not in shown]
    names = [name for name in names if re.fullmatch(r"\w{1,60}( pass@\d{1,6})?", name, re.ASCII)][:MAX_SCORES]
    if not names:
        return None
    return Table(
        key="others",
        title="Other scores",
        caption="Scores that the tables above lack, as means over evaluation seeds. pass@k is the estimated probability that "
        "at least one of k sampled answers to a prompt is correct.",
        columns=["", *(_TITLES.get(name, name.replace("_", " ")) for name in names)],
        lines=[
            Line(label, "method", [Cell(f"{held[name]:.4g}" if name in held else NOTHING) for name in names])
            for label, held in scores
        ],
    )


def _scores(model: Evaluation, dataset: str) -> Mapping[str, float]:
    """Return all scores of a model on a data set by name, as means over seeds.

    The seeds are evaluation seeds.  A pass@k score is named after its metric, such as "METRIC pass@5".
    """
    held = model.datasets.get(dataset)
    seeds = [mapping(seed) for seed in mapping(at(held, "seeds")).values()]
    found = {name: mean(model.seed_scores(dataset, name).values()) for name in dict.fromkeys(n for seed in seeds for n in seed)}
    forced = mapping(at(held, "teacher_forced"))
    passed = {
        f"{metric} pass@{k}": number(value)
        for metric, by_k in mapping(at(held, "pass_at")).items()
        for k, value in mapping(by_k).items()
    }
    known = found | {name: number(value) for name, value in forced.items()} | passed
    return {name: value for name, value in known.items() if value is not None}


def _numbers_table(models: Sequence[Evaluation]) -> Table | None:
    """Return the table of all numbers in the scores.json of each model; None without models."""
    columns = [_numbers(model.scores) for model in models]
    names = list(dict.fromkeys(name for held in columns for name in held))
    if not names:
        return None
    omitted = f" The first {MAX_NUMBERS} of {len(names):,} lines." if len(names) > MAX_NUMBERS else ""
    return Table(
        key="numbers",
        title="All numbers of scores.json",
        caption="Every number in the file scores.json of each model, by the path of its key. The values of several evaluation "
        f"seeds are in one cell, in the order of the file; seeds stands for the seed.{omitted}",
        columns=["", *(model.label for model in models)],
        lines=[
            Line(plain_line(name)[:MAX_PATH], "method", [Cell(", ".join(held.get(name, [NOTHING]))) for held in columns])
            for name in names[:MAX_NUMBERS]
        ],
    )


def _numbers(scores: Json) -> dict[str, list[str]]:
    """Return all numbers in a JSON value as texts, by path.

    A path consists of the keys that lead to a number.  Evaluation seeds are left out of the path, so the values of all seeds
    have the same path.
    """
    found: dict[str, list[str]] = {}
    waiting: list[tuple[tuple[str, ...], Json]] = [((), scores)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [((*path, str(key)), each) for key, each in reversed(list(value.items()))]
        elif isinstance(value, Sequence) and not isinstance(value, str):
            waiting += [(path, each) for each in reversed(value)]
        elif not isinstance(value, bool) and (known := number(value)) is not None:
            is_of_seed = "datasets" in path and "seeds" in path[:-1]
            name = " · ".join(
                each for place, each in enumerate(path) if not (is_of_seed and place and path[place - 1] == "seeds")
            )
            found.setdefault(name, []).append(str(value) if isinstance(value, int) else f"{known:.6g}")
    return found
