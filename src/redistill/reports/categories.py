"""Scores by category of the test rows, and where a student is weakest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redistill.reports.folders import Evaluation, Measure
from redistill.reports.pages import NOTHING, difference, score
from redistill.reports.statistics import Interval, paired_bootstrap, prompt_means
from redistill.reports.tables import Cell, Line, Table
from redistill.reports.verdict import listed
from redistill.storage.redaction import plain_line

MAX_CATEGORIES = 40
"""A table has the weakest categories of a data set, and at most this number of them."""
MAX_NAME = 60
MIN_PROMPTS = 5
"""Categories with fewer prompts are not named as the weakest, since their scores are mostly chance."""
NUM_LOWEST = 3
"""Number of prompts that are named if there is nothing else to compare."""


@dataclass(frozen=True, kw_only=True)
class CategoryScore:
    """Scores of the models on the prompts of one category.

    Args:
        name: The category.
        num_prompts: Number of prompts in the category.
        scores: Mean score of each model over prompts and evaluation seeds, by label.
        interval: Student's score minus that of the reference model, with its 95 % interval; None if they are not compared.
        others: For each further metric, by name: the student's score, and the interval of its difference to the reference
            model.
    """

    name: str
    num_prompts: int
    scores: Mapping[str, float]
    interval: Interval | None
    others: Mapping[str, tuple[float, Interval | None]]


def category_table(dataset: str, models: Sequence[Evaluation], versus: str | None) -> Table | None:
    """Build the table of scores by category for one data set.

    The weakest category is the first.

    Args:
        dataset: Name of the data set.
        models: The evaluations; the last one is the student of the run.
        versus: Label of the reference model; None if there is none.

    Returns:
        The table; None if the answers have fewer than two categories.
    """
    found = category_scores(dataset, models, versus)
    if len(found) < 2:
        return None
    labels = [model.label for model in models if any(model.label in each.scores for each in found)]
    measure, *further = models[-1].measures(dataset)
    further = [other for other in further if any(other.name in each.others for each in found)]
    versus = versus or "a reference model"
    omitted = f" The {MAX_CATEGORIES} weakest of {len(found)} categories." if len(found) > MAX_CATEGORIES else ""
    return Table(
        key=f"categories-{dataset}",
        title=f"{dataset} by category",
        caption=f"{measure.heading}, mean over prompts and evaluation seeds. The difference is that of {models[-1].label} to "
        f"{versus}, with the 95 % interval of a bootstrap over the prompts of the category. Intervals are not corrected for "
        f"the number of categories.{_further(further, models[-1].label)}{omitted}",
        columns=["", "prompts", *labels, "difference", "95 % interval", *(other.heading for other in further)],
        lines=[
            Line(each.name, "method", [*_cells(each, labels, measure), *(_other_cell(each, other) for other in further)])
            for each in found[:MAX_CATEGORIES]
        ],
    )


def category_scores(dataset: str, models: Sequence[Evaluation], versus: str | None) -> list[CategoryScore]:
    """Return the scores by category, the weakest category of the last model first.

    The arguments are those of `category_table`.  A prompt belongs to the category that is recorded with the last model's
    answers; answers without a category are omitted.
    """
    student, (name, *further) = models[-1], [measure.name for measure in models[-1].measures(dataset)]
    groups: dict[str, list[str]] = {}
    for prompt, category in _categories(student, dataset).items():
        groups.setdefault(category, []).append(prompt)
    means = {model.label: _means(model, dataset, name) for model in models}
    in_other = {each: {model.label: _means(model, dataset, each) for model in models} for each in further}
    found = []
    for category, prompts in groups.items():
        scores = {
            label: float(np.mean([of[each] for each in prompts])) for label, of in means.items() if of.keys() >= set(prompts)
        }
        if student.label in scores:
            interval = _interval(prompts, means[student.label], means.get(versus or ""))
            others = {
                each: (float(np.mean([ours[prompt] for prompt in prompts])), _interval(prompts, ours, of.get(versus or "")))
                for each, of in in_other.items()
                if (ours := of[student.label]).keys() >= set(prompts)
            }
            found.append(
                CategoryScore(name=category, num_prompts=len(prompts), scores=scores, interval=interval, others=others)
            )
    sign = student.measures(dataset)[0].sign
    return sorted(found, key=lambda each: (sign * each.scores[student.label], each.name))


def _interval(prompts: Sequence[str], ours: Mapping[str, float], theirs: Mapping[str, float] | None = None) -> Interval | None:
    """Return the mean difference `ours` - `theirs`, with its 95 % interval.

    The mean is taken over `prompts`.  The result is None for fewer than two prompts, or if a prompt has no score in `theirs`.
    """
    if len(prompts) < 2 or theirs is None or not theirs.keys() >= set(prompts):
        return None
    return paired_bootstrap([np.array([[ours[prompt] - theirs[prompt] for prompt in prompts]])])


def has_categories(model: Evaluation) -> bool:
    """Return whether any answer of a model has a category."""
    return any(_categories(model, dataset) for dataset in model.datasets)


def weakest_sentence(models: Sequence[Evaluation], versus: str | None) -> str:
    """Return a sentence that names where the last model scores lowest.

    For each primary metric, the sentence names the category with the worst score.  Only categories with at least `MIN_PROMPTS`
    prompts are compared.  A data set with fewer than two such categories is compared as a whole.  If there is nothing else to
    compare, the sentence names the worst prompts of this data set.

    The sentence also states on how many prompts the model is worse than the teacher.  Without a teacher, the model is compared
    with the reference model.

    Args:
        models: The evaluations; may be empty.
        versus: Label of the reference model; None if there is none.
    """
    weakest = dict[str, list[tuple[float, str, str]]]()
    for student, dataset in ((model, dataset) for model in models[-1:] for dataset in model.datasets):
        measure, means = student.measures(dataset)[0], _means(student, dataset, student.measures(dataset)[0].name)
        groups = [each for each in category_scores(dataset, models, versus) if each.num_prompts >= MIN_PROMPTS]
        places = [(f"category {each.name} of {dataset}", each.num_prompts, each.scores[student.label]) for each in groups]
        if len(places) < 2:
            places = [(dataset, len(means), float(np.mean([*means.values()])))] if means else []
        found = weakest.setdefault(measure.name, [])
        found += [
            (measure.sign * value, place, f"on {place}: {score(value, measure.unit)} on {number} prompts")
            for place, number, value in places
        ]
    if not any(weakest.values()):
        return "The run folder has no scored answers, so it is unknown where the student fails."
    measures = {measure.name: measure for measure in (models[-1].measures(dataset)[0] for dataset in models[-1].datasets)}
    texts = []
    for name, found in weakest.items():
        measure, rank = measures[name], "lowest" if measures[name].sign > 0 else "highest (worst)"
        if len(found) == 1:
            texts.append(f"the {rank} scores ({measure.title}) of {models[-1].label} are {_lowest(models[-1], measure)}")
        elif found:
            texts.append(f"the {rank} {measure.title} of {models[-1].label} is {min(found)[2]}")
    return f"T{'; '.join(texts)[1:]}{_behind(models, versus)}."


def _lowest(model: Evaluation, measure: Measure) -> str:
    """Return the prompts on which a model has the worst scores in `measure`, as text.

    `measure` is the primary metric of exactly one data set with scores.
    """
    (dataset,) = [
        name for name in model.datasets if model.measures(name)[0].name == measure.name and _means(model, name, measure.name)
    ]
    means = _means(model, dataset, measure.name)
    worst = sorted(means, key=lambda prompt: (measure.sign * means[prompt], prompt))[:NUM_LOWEST]
    named = [f"{plain_line(prompt)[:MAX_NAME]} ({score(means[prompt], measure.unit)})" for prompt in worst]
    return f"those of {'prompt' if len(named) == 1 else 'the prompts'} {listed(named)} of {dataset}"


def _behind(models: Sequence[Evaluation], versus: str | None) -> str:
    """Return a phrase that states on how many prompts the last model is worse.

    The model is compared with the teacher.  Without a teacher, it is compared with the reference model.  The result is "" if
    there is nothing to compare.
    """
    student = models[-1]
    other = next((m for m in models[:-1] if m.role == "teacher"), None) or next((m for m in models if m.label == versus), None)
    if other is None:
        return ""
    lower, common = 0, 0
    for dataset in student.datasets:
        measure = student.measures(dataset)[0]
        ours, theirs = (_means(model, dataset, measure.name) for model in (student, other))
        shared = ours.keys() & theirs.keys()
        common += len(shared)
        lower += sum(measure.sign * (ours[prompt] - theirs[prompt]) < 0 for prompt in shared)
    return f"; it is worse than {other.label} on {lower} of {common} prompts" if common else ""


def _categories(model: Evaluation, dataset: str) -> dict[str, str]:
    """Return the category of each prompt that has one.

    Categories are untrusted: each is returned as one line of at most `MAX_NAME` characters.
    """
    found = {}
    for lines in model.answers.get(dataset, {}).values():
        for prompt, line in lines.items():
            category = line.get("category")
            if isinstance(category, str) and (name := plain_line(category)[:MAX_NAME].strip()):
                found[prompt] = name
    return found


def _means(model: Evaluation, dataset: str, name: str) -> dict[str, float]:
    """Return the mean score of each prompt over evaluation seeds.

    Prompts without a score for one of the seeds are left out.
    """
    seeds = model.prompt_scores(dataset, name)
    common = set.intersection(*(set(seed) for seed in seeds)) if seeds else set()
    return prompt_means([{prompt: seed[prompt] for prompt in sorted(common)} for seed in seeds])


def _cells(found: CategoryScore, labels: Sequence[str], measure: Measure) -> Iterator[Cell]:
    yield Cell(f"{found.num_prompts:,}")
    yield from (Cell(score(found.scores.get(label), measure.unit)) for label in labels)
    if found.interval is None:
        yield from (Cell(NOTHING), Cell(NOTHING))
        return
    lower, upper = found.interval.lower, found.interval.upper
    side = 1 if lower > 0 else -1 if upper < 0 else 0
    yield Cell(difference(found.interval.difference, measure.unit), tone=side * measure.sign)
    yield Cell(f"{difference(lower, measure.unit)} to {difference(upper, measure.unit)}")


def _further(measures: Sequence[Measure], label: str) -> str:
    """Return a sentence that explains the columns of further metrics in a caption.

    The result is "" if there are no further metrics.
    """
    titles = listed([measure.title for measure in measures])
    return f" The last columns have {titles} of {label}, with the difference and its interval." if measures else ""


def _other_cell(found: CategoryScore, measure: Measure) -> Cell:
    """Return the cell of a further metric.

    The cell has the student's score, and its difference to the reference model.
    """
    if measure.name not in found.others:
        return Cell(NOTHING)
    value, interval = found.others[measure.name]
    if interval is None:
        return Cell(score(value, measure.unit))
    middle, lower, upper = (difference(each, measure.unit) for each in (interval.difference, interval.lower, interval.upper))
    return Cell(score(value, measure.unit), f"{middle} [{lower}, {upper}]")
