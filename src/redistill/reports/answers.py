"""The responses of a report: every prompt with the answers of all models.

The texts are untrusted.  The page shows them as text, and its script only hides, shows and sorts elements of the page.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import escape

from redistill.records import Json
from redistill.reports.comparison import dataset_names
from redistill.reports.folders import Evaluation, Measure, number
from redistill.reports.pages import short
from redistill.reports.statistics import spread
from redistill.storage.redaction import plain_line

MAX_BYTES = 2_000_000
"""Texts of answers in a page; if there is more, evenly spaced prompts are shown."""
MARKUP_BYTES = 300
"""Approximate size of the elements of one answer."""
MAX_CATEGORIES = 100
MAX_NAME = 60

Lines = Mapping[str, Mapping[str, Json]]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt with the answers of all models.

    Args:
        dataset: Name of the data set.
        id: Identifier of the prompt.
        category: Category of the test row; "" if it has none.
        primary: Primary metric of the data set.
        line: The last model's line of the responses file.  It contains the prompt and the references.
        answers: Each model with its line of the responses file.
        sort_keys: Numbers by which the page can sort, about the last model; unknown numbers are missing.  "score" is its score;
            "teacher" and "baseline" are its differences to the teacher and to the reference model.  For all three, higher is
            better.  "length" is the length of its answer in tokens.
    """

    dataset: str
    id: str
    category: str
    primary: Measure
    line: Mapping[str, Json]
    answers: Sequence[tuple[Evaluation, Mapping[str, Json]]]
    sort_keys: Mapping[str, float]

    @property
    def shown_score(self) -> float | None:
        """Score of the last model, as shown on the page; None if there is no score."""
        return self.primary.shown(number(self.answers[-1][1].get(self.primary.name)))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The prompts that a page shows.

    Args:
        prompts: The prompts; within a data set, the lowest score is first.
        num_prompts: Number of prompts of all data sets.
        datasets: Names of the data sets.
        categories: The categories of the shown prompts.
        sort_keys: Names of the sort keys that at least one prompt has.
    """

    prompts: Sequence[Prompt]
    num_prompts: int
    datasets: Sequence[str]
    categories: Sequence[str]
    sort_keys: Sequence[str]


def answers_section(models: Sequence[Evaluation], versus: str | None, max_bytes: int = MAX_BYTES) -> Answers | None:
    """Return the prompts with the answers of all models.

    The answers are those of the lowest evaluation seed.  All prompts are shown if their texts have at most `max_bytes` bytes.
    Otherwise, only some are shown, evenly spaced in the ranking of each data set.

    Args:
        models: The evaluations; the last one is the student of the run.
        versus: Label of the reference model; None if there is none.
        max_bytes: Maximum size of the section.

    Returns:
        The section; None if no model has answers.
    """
    found = {dataset: list(_ranked(dataset, models, versus)) for dataset in dataset_names(models)}
    sizes = {dataset: [_size(prompt) for prompt in prompts] for dataset, prompts in found.items()}
    total, count = sum(map(sum, sizes.values())), sum(map(len, found.values()))
    kept: list[Prompt] = []
    for dataset, prompts in found.items():
        shown, budget = prompts, max_bytes * sum(sizes[dataset]) // max(total, 1)
        while total > max_bytes and shown and sum(_size(each) for each in shown) > budget:
            shown = [prompts[int(index)] for index in spread({str(i): i for i in range(len(prompts))}, len(shown) * 9 // 10)]
        kept += shown
    if not kept:
        return None
    return Answers(
        prompts=kept,
        num_prompts=count,
        datasets=list(dict.fromkeys(prompt.dataset for prompt in kept)),
        categories=sorted({prompt.category for prompt in kept if prompt.category})[:MAX_CATEGORIES],
        sort_keys=[
            key for key in ("score", "teacher", "baseline", "length") if any(key in prompt.sort_keys for prompt in kept)
        ],
    )


def category_of(line: Mapping[str, Json]) -> str:
    """Return the category in a line of a responses file; "" if there is none.

    The category is returned as one line of at most `MAX_NAME` characters.
    """
    category = line.get("category")
    return plain_line(category)[:MAX_NAME].strip() if isinstance(category, str) else ""


def _ranked(dataset: str, models: Sequence[Evaluation], versus: str | None) -> Iterator[Prompt]:
    """Yield the prompts of a data set, sorted by the score of the last model.

    The prompt with the worst score is first.
    """
    first: list[tuple[Evaluation, Lines]] = []
    for model in models:
        seeds = model.answers.get(dataset)
        if seeds and (lines := seeds[min(seeds, key=int)]):
            first.append((model, lines))
    if not first:
        return
    ranked, lines = first[-1]
    primary = ranked.measures(dataset)[0]
    goodness = {prompt: primary.sign * (number(line.get(primary.name)) or 0.0) for prompt, line in lines.items()}
    for prompt in spread(goodness, len(goodness)):
        answers = [(model, answered[prompt]) for model, answered in first if prompt in answered]
        yield Prompt(
            dataset=dataset,
            id=prompt,
            category=category_of(lines[prompt]),
            primary=primary,
            line=lines[prompt],
            answers=answers,
            sort_keys=_sort_keys(answers, primary, versus),
        )


def _sort_keys(
    answers: Sequence[tuple[Evaluation, Mapping[str, Json]]], primary: Measure, versus: str | None
) -> dict[str, float]:
    scores: dict[str, float | None] = {}
    for model, line in answers:
        value = number(line.get(primary.name))
        names = {"teacher"} if model.role == "teacher" else {"baseline"} if model.label == versus else set()
        scores |= dict.fromkeys([*names, *(["score"] if model is answers[-1][0] else [])], value)
    found = {"length": number(answers[-1][1].get("tokens"))}
    own = scores.get("score")
    if own is not None:
        found["score"] = primary.sign * own
        for name in ("teacher", "baseline"):
            other = scores.get(name)
            found[name] = None if other is None else primary.sign * (own - other)
    return {name: value for name, value in found.items() if value is not None}


def _size(prompt: Prompt) -> int:
    """Return the approximate size of a prompt in the page, in bytes."""
    references = prompt.line.get("references")
    first = references[0] if isinstance(references, list) and references else ""
    texts = [prompt.line.get("prompt"), first, *(line.get("response") for _, line in prompt.answers)]
    return sum(len(escape(short(text or "")).encode()) + MARKUP_BYTES for text in texts)
