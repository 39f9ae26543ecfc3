"""The numbers of a table: each model on each data set, and how sure its difference to a reference model is.

The report of one run and the comparison of many read the same rows; only the models in them differ.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from redistill.reports.folders import Evaluation, Measure, RunFolder
from redistill.reports.lineup import Lineup
from redistill.reports.statistics import (
    Interval,
    deviation,
    holm,
    mean,
    paired_bootstrap,
    paired_differences,
    prompt_means,
    sign_flip,
    win_tie_loss,
)

GENERATED = ("length_tokens", "eos_rate", "distinct_2")
TEACHER_FORCED = ("cross_entropy", "kl", "agreement")
METHOD_ROLES = (
    "baseline",
    "student",
)  # a teacher and an untrained student are shown, but neither ranked nor in a family of tests


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A row of the tables: one model, or a method's models from several training seeds.

    Args:
        role: "teacher", "before" (the student, untrained), "baseline" or "student".
        trainings: Training seed -> the scores of the model that came out.
    """

    label: str
    role: str
    trainings: Mapping[int, Evaluation]

    @property
    def is_method(self) -> bool:
        return self.role in METHOD_ROLES

    def measured_on(self, datasets: Sequence[str]) -> dict[int, Evaluation]:
        """The trainings that were evaluated on all of `datasets`."""
        return {seed: found for seed, found in self.trainings.items() if all(name in found.datasets for name in datasets)}


@dataclass(frozen=True)
class Column:
    """What a row is measured on: one data set, or several of equal weight.

    Args:
        measures: The metrics of the data sets. The first is the primary one: models are ranked and tested by it.
    """

    name: str
    datasets: tuple[str, ...]
    measures: tuple[Measure, ...]

    @property
    def is_average(self) -> bool:
        return len(self.datasets) > 1

    @property
    def primary(self) -> Measure:
        return self.measures[0]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its spread.

    Args:
        mean: Over training seeds, of the mean over evaluation seeds; None where it was not measured.
        deviation: Sample standard deviation over `over`; None with fewer than two.
        over: Training seeds where there are two or more, else the evaluation seeds of the one training.
        num_seeds: Evaluation seeds of each training; the most, where they differ.
    """

    mean: float | None
    deviation: float | None
    over: Literal["training seeds", "evaluation seeds"]
    num_trainings: int
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """How a model differs from the reference model on the same prompts.

    Args:
        interval: Of the primary metric, ours minus theirs, whichever direction is better.
        p: Of the sign-flip test over prompts.
        wins, ties, losses: Prompts on which the model is better, as good, and worse than the reference model.
        p_holm: Corrected over the methods of the column; None for a model that is no method.
        num_seeds: Training seeds that both have, paired and drawn anew with the prompts; 0 where they share none, and each
            prompt's score is the mean over all that the model has.
    """

    interval: Interval
    p: float
    p_holm: float | None
    wins: int
    ties: int
    losses: int
    num_seeds: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model on one column.

    Args:
        measures: The metrics of the column, its primary one first.
        primary: The primary metric's score.
        versus: The reference model's label; None for its own row.
        note: Why there is no contrast, where one would be expected.
        scores: Means over seeds of the other metrics, in their units, of the diagnostics of text, and the teacher-forced
            ones; EOS rate, distinct-2 and agreement are shares in [0, 1], cross entropy and KL are nats per token.
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
    scores: Mapping[str, float | None]

    @property
    def is_method(self) -> bool:
        return self.role in METHOD_ROLES

    @property
    def interval(self) -> Interval | None:
        """The difference to the reference model with its bounds."""
        return None if self.contrast is None else self.contrast.interval

    @property
    def tone(self) -> int:
        """1 where the model is better by the whole interval, -1 where it is worse by it, else 0."""
        if self.interval is None:
            return 0
        side = 1 if self.interval.lower > 0 else -1 if self.interval.upper < 0 else 0
        return side * self.measures[0].sign


def evaluations(run: RunFolder, baselines: Sequence[RunFolder]) -> list[Evaluation]:
    """All models to show of one run, in the order of the tables: teacher, student before, baselines, this run."""
    others = [replace(b.student, role="baseline") for b in baselines if b.student is not None]
    return [evaluation for evaluation in (run.teacher, run.before, *others, run.student) if evaluation is not None]


def report_rows(models: Sequence[Evaluation]) -> list[Row]:
    """A row for each data set and model; differences are to the first baseline, else to the student before training."""
    entrants = [Entrant(label=model.label, role=model.role, trainings={0: model}) for model in models]
    references = [entrant for role in ("baseline", "before") for entrant in entrants if entrant.role == role]
    columns = [Column(name, (name,), measures_of([name], models[::-1])) for name in dataset_names(models)]
    return compare(entrants, columns, references)


def dataset_names(models: Sequence[Evaluation]) -> list[str]:
    """Every data set that some model was measured on; the last model's first."""
    return list(dict.fromkeys(name for model in reversed(models) for name in model.datasets))


def measures_of(datasets: Sequence[str], models: Sequence[Evaluation]) -> tuple[Measure, ...]:
    """Every metric of these data sets; that which the first model names first is the primary one."""
    named = [measure for name in datasets for model in models if name in model.datasets for measure in model.measures(name)]
    return tuple({measure.name: measure for measure in reversed(named)}[name] for name in dict.fromkeys(m.name for m in named))


def entrants(lineup: Lineup) -> list[Entrant]:
    """The rows of a comparison: teachers, students before training, and a row for each label."""
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
    """A column for each data set that a method was measured on, and the average of those with the same primary metric.

    Those with the same primary metric stand together; see `by_primary`.
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
    """The columns of each primary metric, the average of several data sets last."""
    return [list(group) for _, group in itertools.groupby(over, key=lambda column: column.primary.name)]


def compare(models: Sequence[Entrant], over: Sequence[Column], references: Sequence[Entrant]) -> list[Row]:
    """A row for each column and each model that was measured on it.

    Args:
        references: The first of them that was measured on a column is what differences are to there.
    """
    return [row for column in over for row in _corrected(list(_rows(column, models, references)))]


def estimate(model: Entrant, datasets: Sequence[str], metric: str) -> Estimate:
    """A model's score by a metric as the mean over `datasets`, counting trainings that were evaluated on all of them."""
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
    for model in models:
        measured = list(model.measured_on(column.datasets).values())
        if not measured:
            continue
        contrast, note = (None, "") if reference is None or model is reference else _contrast(column, model, reference)
        others = (*(measure.name for measure in column.measures[1:]), *GENERATED, *TEACHER_FORCED)
        yield Row(
            column=column.name,
            measures=column.measures,
            model=model.label,
            role=model.role,
            primary=estimate(model, column.datasets, column.primary.name),
            num_prompts=sum(max(found.num_prompts(name) for found in measured) for name in column.datasets),
            contrast=contrast,
            versus=None if reference is None or model is reference else reference.label,
            note=note,
            scores={name: _score(measured, column.datasets, name) for name in others},
        )


def _score(trainings: Sequence[Evaluation], datasets: Sequence[str], name: str) -> float | None:
    """Mean of another score than the primary one over data sets and seeds; None where a data set has none."""
    found = [
        training.forced_score(dataset, name) if name in TEACHER_FORCED else mean(training.seed_scores(dataset, name).values())
        for training in trainings
        for dataset in datasets
    ]
    known = [score for score in found if score is not None]
    return mean(known) if len(known) == len(found) else None


def _contrast(column: Column, model: Entrant, reference: Entrant) -> tuple[Contrast | None, str]:
    """The difference, or why there is none."""
    ours, theirs = model.measured_on(column.datasets), reference.measured_on(column.datasets)
    metric = column.primary.name
    obstacles = [_obstacle(name, metric, [*theirs.values(), *ours.values()]) for name in column.datasets]
    if any(obstacles):
        return None, next(filter(None, obstacles))
    strata, num_seeds = _strata(column.datasets, metric, ours, theirs)
    wins, ties, losses = win_tie_loss([column.primary.sign * stratum for stratum in strata])
    contrast = Contrast(
        interval=paired_bootstrap(strata),
        p=sign_flip(strata),
        p_holm=None,
        wins=wins,
        ties=ties,
        losses=losses,
        num_seeds=num_seeds,
    )
    return contrast, ""


def _obstacle(dataset: str, metric: str, models: Sequence[Evaluation]) -> str:
    """Why the models' answers to a data set cannot be paired; "" where they can."""
    scores = [model.prompt_scores(dataset, metric) for model in models]
    if not all(any(of_model) for of_model in scores):
        return "no responses to compare"
    prompts = [of_seed.keys() for of_model in scores for of_seed in of_model]
    questions = [model.asked(dataset) for model in models]
    same = all(found == prompts[0] for found in prompts) and all(found == questions[0] for found in questions)
    return "" if same else "different prompts"


def _strata(
    datasets: Sequence[str], metric: str, ours: Mapping[int, Evaluation], theirs: Mapping[int, Evaluation]
) -> tuple[list[np.ndarray], int]:
    """Differences by data set, [training seeds, prompts], and how many training seeds could be paired."""
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
    """The rows of one column with Holm's correction over its methods."""
    family = [row for row in rows if row.contrast is not None and row.is_method]
    corrected = dict(zip(map(id, family), holm([row.contrast.p for row in family if row.contrast])))
    return [
        replace(row, contrast=replace(row.contrast, p_holm=corrected[id(row)]))
        if row.contrast and id(row) in corrected
        else row
        for row in rows
    ]


def _shared(lineup: Lineup, role: Literal["teacher", "before"], name: str) -> list[Entrant]:
    """Rows for a model that the runs have in common: one, unless different labels have different ones.

    A teacher that was fine-tuned anew for each training seed is one row with several trainings.
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
    """Each model once, under the first training seed that it was used with."""
    first = {found.identity: seed for seed, found in reversed(list(trainings.items()))}
    return {seed: found for seed, found in trainings.items() if first[found.identity] == seed}
