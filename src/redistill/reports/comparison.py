"""Scores of each model on each data set, and differences to a reference model.

A `Row` has the scores of one model on one data set.  The report of a run and the comparison of runs are built from rows.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from redistill.records import ACCEPTANCE
from redistill.reports.folders import Evaluation, Measure, RunFolder, distinct_labels
from redistill.reports.inference import Contrast, contrast
from redistill.reports.lineup import Lineup
from redistill.reports.statistics import (
    Interval,
    deviation,
    holm,
    mean,
    mean_of_all,
    paired_differences,
    prompt_means,
)

GENERATED = ("length_tokens", "eos_rate", "distinct_2")
TEACHER_FORCED = ("cross_entropy", "kl", "agreement")
FORCED = frozenset((*TEACHER_FORCED, *ACCEPTANCE))
"""Names of the teacher-forced scores.  They are computed on the references, and do not depend on an evaluation seed."""
METHOD_ROLES = ("baseline", "student")
"""Roles of the models that are ranked and tested.  The teacher and the student before training are only shown."""


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A row of the tables: one model, or the models of a method.

    Args:
        label: Name of the row.
        role: "teacher", "before" (the student before training), "baseline" or "student".
        trainings: Evaluation of each model, by the training seed of its run.
    """

    label: str
    role: str
    trainings: Mapping[int, Evaluation]

    @property
    def is_method(self) -> bool:
        """Whether the model is ranked: True for baselines and trained students."""
        return self.role in METHOD_ROLES

    def measured_on(self, datasets: Sequence[str]) -> dict[int, Evaluation]:
        """Return the evaluations that cover all of `datasets`, by training seed."""
        return {seed: found for seed, found in self.trainings.items() if all(name in found.datasets for name in datasets)}


@dataclass(frozen=True)
class Column:
    """A column of the tables: one data set, or the unweighted mean of several.

    Args:
        name: Heading of the column.
        datasets: Names of the data sets.
        measures: Metrics of the data sets. The first is the primary one: models are ranked and tested by it.
    """

    name: str
    datasets: tuple[str, ...]
    measures: tuple[Measure, ...]

    @property
    def is_average(self) -> bool:
        """Whether the column is the mean over several data sets."""
        return len(self.datasets) > 1

    @property
    def primary(self) -> Measure:
        """The metric by which models are ranked, and tested for significant differences."""
        return self.measures[0]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean score with its standard deviation.

    Args:
        mean: Mean score in the metric's unit, over evaluation seeds and then over training seeds; None if not measured.
        deviation: Sample standard deviation over the seeds that `over` names; None for fewer than two seeds.
        over: Seeds over which `deviation` is taken: "training seeds" if there are two or more, else "evaluation seeds".
        num_trainings: Number of training seeds.
        num_seeds: Number of evaluation seeds per training seed.  If it differs between training seeds, it is the largest
            number.
    """

    mean: float | None
    deviation: float | None
    over: Literal["training seeds", "evaluation seeds"]
    num_trainings: int
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one model in one table column (a data set, or a mean over several).

    Args:
        column: Name of the column.
        measures: Metrics of the column, the primary one first.
        model: Label of the model.
        role: Role of the model, as in `Entrant`.
        primary: Score in the primary metric.
        num_prompts: Number of prompts, summed over the column's data sets.
        contrast: Difference to the reference model; None if there is no such model or the models cannot be compared.
        versus: Label of the reference model; None if there is none or this model is the reference model.
        note: Reason why the model cannot be compared with the reference model; else "".
        others: Difference to the reference model in each further metric of the column, by name.  Metrics without a score per
            prompt are missing.
        scores: All scores except the primary metric, by name, as means over seeds; None if not measured.  "length_tokens" is
            the length of responses in tokens.  "eos_rate", "distinct_2" and "agreement" (with the teacher) are in [0, 1].
            "cross_entropy" and "kl" are teacher-forced, in nats per token.  The scores in `records.ACCEPTANCE` rate the model
            as a draft model.  Other metrics have their own units.
    """

    column: str
    measures: tuple[Measure, ...]
    model: str
    role: str
    primary: Estimate
    num_prompts: int
    contrast: Contrast | None
    versus: str | None
    note: str
    others: Mapping[str, Interval]
    scores: Mapping[str, float | None]

    @property
    def is_method(self) -> bool:
        """Whether the model is ranked: True for baselines and trained students."""
        return self.role in METHOD_ROLES

    @property
    def interval(self) -> Interval | None:
        """Difference to the reference model with its 95 % interval; None if not compared."""
        return None if self.contrast is None else self.contrast.interval

    @property
    def tone(self) -> int:
        """Whether the model is better (1) or worse (-1) than the reference model, else 0.

        The result is 0 if the confidence interval of the difference contains 0, or if the models are not compared.
        """
        if self.interval is None:
            return 0
        side = 1 if self.interval.lower > 0 else -1 if self.interval.upper < 0 else 0
        return side * self.measures[0].sign


def evaluations(run: RunFolder, baselines: Sequence[RunFolder]) -> list[Evaluation]:
    """Collect the evaluations of the models in a run's report.

    The order is teacher, student before training, baselines, student. Missing evaluations are omitted.
    """
    own, *labels = distinct_labels([run, *baselines])
    others = [replace(b.student, role="baseline", label=label) for b, label in zip(baselines, labels) if b.student is not None]
    student = None if run.student is None else replace(run.student, label=own)
    return [evaluation for evaluation in (run.teacher, run.before, *others, student) if evaluation is not None]


def report_rows(models: Sequence[Evaluation], *, overall: bool = False) -> list[Row]:
    """Build one row per data set and model, or one per primary metric and model.

    The reference model on a data set is the first baseline evaluated on it, else the student before training.

    Args:
        models: The evaluations, that of the run last.
        overall: If True, data sets with the same primary metric are averaged.
    """
    entrants = [Entrant(label=model.label, role=model.role, trainings={0: model}) for model in models]
    references = [entrant for role in ("baseline", "before") for entrant in entrants if entrant.role == role]
    singles = [Column(name, (name,), measures_of([name], models[::-1])) for name in dataset_names(models)]
    return comparison_rows(entrants, [group[-1] for group in by_primary(columns(entrants))] if overall else singles, references)


def dataset_names(models: Sequence[Evaluation]) -> list[str]:
    """List the data sets of all evaluations; data sets of the last model come first."""
    return list(dict.fromkeys(name for model in reversed(models) for name in model.datasets))


def measures_of(datasets: Sequence[str], models: Sequence[Evaluation]) -> tuple[Measure, ...]:
    """List the metrics of `datasets`, each once; the primary metric is the first."""
    named = [measure for name in datasets for model in models if name in model.datasets for measure in model.measures(name)]
    return tuple({measure.name: measure for measure in reversed(named)}[name] for name in dict.fromkeys(m.name for m in named))


def entrants(lineup: Lineup) -> list[Entrant]:
    """Return the rows of the tables: teachers, students before training, methods."""
    methods = [
        Entrant(
            label=label,
            role="baseline" if label == lineup.baseline else "student",
            trainings={entry.seed: entry.run.student for entry in lineup.of(label) if entry.run.student is not None},
        )
        for label in lineup.labels
    ]
    return [*_shared(lineup, "teacher", "teacher"), *_shared(lineup, "before", "before training"), *methods]


def columns(models: Sequence[Entrant]) -> list[Column]:
    """Build the columns: data sets that a method was evaluated on, and averages.

    Columns with the same primary metric are adjacent. Two or more such data sets are followed by a column with their mean.
    """
    found = [training for model in models if model.is_method for training in model.trainings.values()]
    groups: dict[str, list[Column]] = {}
    for name in dict.fromkeys(name for training in found for name in training.datasets):
        column = Column(name, (name,), measures_of([name], found))
        groups.setdefault(column.primary.name, []).append(column)
    for singles in groups.values():
        if len(singles) > 1:
            names = tuple(column.name for column in singles)
            title = "average" if len(groups) == 1 else f"average {singles[0].primary.title}"
            singles.append(Column(title, names, measures_of(names, found)))
    return [column for group in groups.values() for column in group]


def by_primary(over: Sequence[Column]) -> list[list[Column]]:
    """Group columns by primary metric; an average is the last column of its group."""
    return [list(group) for _, group in itertools.groupby(over, key=lambda column: column.primary.name)]


def comparison_rows(models: Sequence[Entrant], over: Sequence[Column], references: Sequence[Entrant]) -> list[Row]:
    """Build one row for each column and each model that has scores in this column.

    Args:
        models: Models to compare, in the order of the rows.
        over: Columns to compare on.
        references: Candidates for the reference model. In each column, the first candidate that was evaluated on all data
            sets of the column is used.
    """
    return [row for column in over for row in _corrected(list(_rows(column, models, references)))]


def estimate(model: Entrant, datasets: Sequence[str], metric: str) -> Estimate:
    """Compute the mean score of a model over `datasets`.

    A training seed or evaluation seed is used only if
    it has a score on each of the data sets.
    """
    by_training = []
    for training in model.measured_on(datasets).values():
        scores = [training.seed_scores(name, metric) for name in datasets]
        seeds = [seed for seed in scores[0] if all(seed in found for found in scores)]
        if seeds:
            by_training.append([sum(found[seed] for found in scores) / len(scores) for seed in seeds])
    of_trainings = [value for found in by_training if (value := mean(found)) is not None]
    several = len(by_training) > 1
    return Estimate(
        mean=mean(of_trainings),
        deviation=deviation(of_trainings if several else [score for found in by_training for score in found]),
        over="training seeds" if several else "evaluation seeds",
        num_trainings=len(by_training),
        num_seeds=max((len(found) for found in by_training), default=0),
    )


def _rows(column: Column, models: Sequence[Entrant], references: Sequence[Entrant]) -> Iterator[Row]:
    reference = next((found for found in references if found.measured_on(column.datasets)), None)
    others = (*(measure.name for measure in column.measures[1:]), *GENERATED, *TEACHER_FORCED, *ACCEPTANCE)
    for model in models:
        measured = list(model.measured_on(column.datasets).values())
        if not measured:
            continue
        other = None if model is reference else reference
        found = {m.name: (None, "") if other is None else _difference(column, m, model, other) for m in column.measures}
        difference, note = found[column.primary.name]
        yield Row(
            column=column.name,
            measures=column.measures,
            model=model.label,
            role=model.role,
            primary=estimate(model, column.datasets, column.primary.name),
            num_prompts=sum(max(each.num_prompts(name) for each in measured) for name in column.datasets),
            contrast=difference,
            versus=None if other is None else other.label,
            note=note,
            others={name: about.interval for name, (about, _) in found.items() if about and name != column.primary.name},
            scores={name: _score(measured, column.datasets, name) for name in others},
        )


def _score(trainings: Sequence[Evaluation], datasets: Sequence[str], name: str) -> float | None:
    """Average the score `name` over models and data sets; None if one is missing."""
    return mean_of_all(
        training.forced_score(dataset, name) if name in FORCED else mean(training.seed_scores(dataset, name).values())
        for training in trainings
        for dataset in datasets
    )


def _difference(column: Column, measure: Measure, model: Entrant, reference: Entrant) -> tuple[Contrast | None, str]:
    """Return the contrast of two models in a metric, or the reason why there is none.

    The result is (contrast, "") or, if the models cannot be compared, (None, reason).
    """
    ours, theirs = model.measured_on(column.datasets), reference.measured_on(column.datasets)
    obstacles = (_obstacle(name, measure.name, [*theirs.values(), *ours.values()]) for name in column.datasets)
    if obstacle := next(filter(None, obstacles), ""):
        return None, obstacle
    strata, num_seeds = _strata(column.datasets, measure.name, ours, theirs)
    return contrast(strata, num_seeds, measure.sign), ""


def _obstacle(dataset: str, metric: str, models: Sequence[Evaluation]) -> str:
    """Return why responses cannot be compared prompt by prompt; "" if they can."""
    scores = [model.prompt_scores(dataset, metric) for model in models]
    if not all(any(of_model) for of_model in scores):
        return "no responses to compare"
    prompts = [of_seed.keys() for of_model in scores for of_seed in of_model]
    questions = [model.question_hashes(dataset) for model in models]
    same = all(found == prompts[0] for found in prompts) and all(found == questions[0] for found in questions)
    return "" if same else "different prompts"


def _strata(
    datasets: Sequence[str], metric: str, ours: Mapping[int, Evaluation], theirs: Mapping[int, Evaluation]
) -> tuple[list[np.ndarray], int]:
    """Return the score differences of two models on each data set.

    The second result is the number of common training seeds.

    Arrays have the shape [common training seeds, prompts].  If there is no common seed, each model's scores are averaged over
    its training seeds first.  Each array then has one row.
    """
    shared = sorted(ours.keys() & theirs.keys())
    strata = []
    for dataset in datasets:
        mine, other = (
            {seed: prompt_means(found.prompt_scores(dataset, metric)) for seed, found in models.items()}
            for models in (ours, theirs)
        )
        pairs = [(mine[seed], other[seed]) for seed in shared]
        strata.append(paired_differences(pairs or [(prompt_means(mine.values()), prompt_means(other.values()))]))
    return strata, len(shared)


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Return copies of the rows of one column, with `p_holm` set by Holm's correction."""
    corrected = iter(holm([row.contrast.p for row in rows if row.contrast is not None and row.is_method]))
    return [
        replace(row, contrast=replace(row.contrast, p_holm=next(corrected))) if row.contrast and row.is_method else row
        for row in rows
    ]


def _shared(lineup: Lineup, role: Literal["teacher", "before"], name: str) -> list[Entrant]:
    """Return the table rows of all teachers, or of all students before training.

    Methods that used the same model share a row. If a teacher was fine-tuned for each training seed, its row has one evaluation
    per seed.
    """
    groups: list[tuple[list[str], dict[int, Evaluation]]] = []
    for label in lineup.labels:
        runs = {entry.seed: entry.run for entry in lineup.of(label)}
        held = {seed: run.teacher if role == "teacher" else run.before for seed, run in runs.items()}
        found = {seed: evaluation for seed, evaluation in held.items() if evaluation is not None}
        if not found:
            continue
        for labels, trainings in groups:
            if all(trainings[seed].identity == found[seed].identity for seed in trainings.keys() & found.keys()):
                labels.append(label)
                trainings |= {seed: evaluation for seed, evaluation in found.items() if seed not in trainings}
                break
        else:
            groups.append(([label], found))
    return [
        Entrant(
            label=name if len(groups) == 1 else f"{name} ({', '.join(labels)})",
            role=role,
            trainings=_distinct(trainings),
        )
        for labels, trainings in groups
    ]


def _distinct(trainings: Mapping[int, Evaluation]) -> dict[int, Evaluation]:
    """Return one evaluation per distinct model: that of its first training seed."""
    first = {found.identity: seed for seed, found in reversed(list(trainings.items()))}
    return {seed: found for seed, found in trainings.items() if first[found.identity] == seed}
