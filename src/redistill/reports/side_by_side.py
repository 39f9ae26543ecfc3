"""Responses of all methods of a comparison to the same prompts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import escape

from redistill.records import Json
from redistill.reports.answers import MAX_CATEGORIES, category_of
from redistill.reports.folders import Evaluation, Measure, RunFolder, number, read_run
from redistill.reports.lineup import Lineup
from redistill.reports.pages import short
from redistill.reports.statistics import evenly, mean
from redistill.storage.redaction import plain

MAX_BYTES = 2_400_000
"""Maximum size of the prompts and responses on a page; with its tables and charts, the page has at most 3 MB."""
_PROMPT_BYTES, _RESPONSE_BYTES = 900, 260  # of the HTML around a prompt and around a response


@dataclass(frozen=True, kw_only=True)
class Response:
    """Response of one model to a prompt.

    Args:
        model: Label of the model.
        role: "teacher", "baseline" or "student".
        score: Score in the primary metric of the data set; None if it was not recorded.
        text: The response.
        truncated: Whether the response has no end token.
        length: Number of tokens of the response; None if it was not recorded.
    """

    model: str
    role: str
    score: float | None
    text: str
    truncated: bool
    length: float | None


@dataclass(frozen=True, kw_only=True)
class AnsweredPrompt:
    """A test prompt with the responses of all models.

    Args:
        dataset: Name of the data set.
        id: Id of the prompt in the data set.
        category: Category of the test row; "" if it has none.
        measure: Primary metric of the data set.
        prompt: Text of the prompt.  This and all other texts have at most 2000 characters.
        reference: First reference response; None if there is none.
        responses: One response for each model that has one.
    """

    dataset: str
    id: str
    category: str
    measure: Measure
    prompt: str
    reference: str | None
    responses: Sequence[Response]

    @property
    def scores(self) -> list[float]:
        """Scores of the methods, without that of the teacher."""
        return [each.score for each in self.responses if each.role != "teacher" and each.score is not None]

    def score_of(self, method: str) -> float | None:
        """Return the score of a method; None if the method has no score."""
        return next((each.score for each in self.responses if (each.model, each.role != "teacher") == (method, True)), None)

    @property
    def average(self) -> float | None:
        """Mean of `scores`; None if there is no score."""
        return mean(self.scores)

    @property
    def shown_score(self) -> float | None:
        """The average score as the page shows it; None if there is no score."""
        return self.measure.shown(self.average)

    @property
    def length(self) -> float | None:
        """Mean length of the methods' responses in tokens; None if none was recorded."""
        return mean(each.length for each in self.responses if each.role != "teacher" and each.length is not None)

    @property
    def disagreement(self) -> float | None:
        """Highest minus lowest score of the methods; None with fewer than two scores."""
        return max(self.scores) - min(self.scores) if len(self.scores) > 1 else None

    @property
    def num_bytes(self) -> int:
        """Estimated size of the prompt with its responses in an HTML page."""
        texts = [self.prompt, self.reference or "", *(each.text for each in self.responses)]
        names = [self.dataset, self.id, *(each.model for each in self.responses)]
        shown = sum(len(escape(text).encode()) for text in (*texts, *map(plain, names)))
        return _PROMPT_BYTES + _RESPONSE_BYTES * len(self.responses) + shown


@dataclass(frozen=True, kw_only=True)
class SideBySide:
    """Prompts of a comparison with the responses of all methods.

    Args:
        prompts: The prompts, grouped by data set.  Within a data set, the prompt with the largest disagreement of the methods
            is first.
        num_prompts: Number of prompts of the test sets.  `prompts` has fewer if their texts exceed the size limit.
        seeds: Training seeds and evaluation seed of the responses, as text.
    """

    prompts: Sequence[AnsweredPrompt]
    num_prompts: int
    seeds: str

    @property
    def methods(self) -> list[str]:
        """Labels of the methods that have a response, without the teacher."""
        found = (each for prompt in self.prompts for each in prompt.responses if each.role != "teacher")
        return list(dict.fromkeys(each.model for each in found))

    @property
    def categories(self) -> list[str]:
        """The categories of the prompts, sorted, at most `answers.MAX_CATEGORIES`."""
        return sorted({prompt.category for prompt in self.prompts if prompt.category})[:MAX_CATEGORIES]


def side_by_side(lineup: Lineup, max_bytes: int = MAX_BYTES) -> SideBySide:
    """Read the responses of all methods to the same prompts.

    The responses of a method are those of its lowest training seed for the lowest evaluation seed.  The responses of the
    teacher are read from the first run that has some.  Methods may have been evaluated on different prompts or references with
    the same id.  In this case, only the responses to the prompt of the first method are returned.

    Args:
        lineup: The runs of the comparison.
        max_bytes: Maximum size of the texts in an HTML page.  If all texts are larger, some prompts are left out.  The others
            are evenly spaced in the order of disagreement.

    Raises:
        CheckpointError: a run folder is damaged.
    """
    first = {label: min(lineup.of(label), key=lambda entry: entry.seed) for label in lineup.labels}
    runs = {label: read_run(entry.run.path) for label, entry in first.items()}
    models = _models(runs, lineup.baseline)
    prompts = list(_answered(models))
    kept = _limited(prompts, max_bytes)
    seeds = {entry.seed for entry in first.values()}
    return SideBySide(
        prompts=kept,
        num_prompts=len(prompts),
        seeds=f"training seed {', '.join(map(str, sorted(seeds)))}, lowest evaluation seed",
    )


def _models(runs: Mapping[str, RunFolder], baseline: str) -> list[tuple[str, str, Evaluation]]:
    """Return label, role and evaluation of the teacher and of each method."""
    teacher = next((run.teacher for run in runs.values() if run.teacher is not None), None)
    methods = [
        (label, "baseline" if label == baseline else "student", run.student)
        for label, run in runs.items()
        if run.student is not None
    ]
    return [*([] if teacher is None else [("teacher", "teacher", teacher)]), *methods]


def _answered(models: Sequence[tuple[str, str, Evaluation]]) -> Iterator[AnsweredPrompt]:
    """Yield the prompts of each data set, from the largest to the smallest disagreement."""
    methods = [evaluation for _, role, evaluation in models if role != "teacher"]
    for dataset in dict.fromkeys(name for method in methods for name in method.datasets):
        measure = next(method.measures(dataset)[0] for method in methods if dataset in method.datasets)
        sources = [(label, role, _lines(each, dataset), each.question_hashes(dataset)) for label, role, each in models]
        asked = [questions for _, role, _, questions in reversed(sources) if role != "teacher"]
        found = []
        for prompt, question in {prompt: question for each in asked for prompt, question in each.items()}.items():
            held = [
                (label, role, lines[prompt])
                for label, role, lines, questions in sources
                if prompt in lines and questions[prompt] == question
            ]
            if held:
                found.append(_prompt(dataset, prompt, measure, held))
        yield from sorted(found, key=lambda each: (-(each.disagreement or 0.0), each.id))


def _lines(evaluation: Evaluation, dataset: str) -> Mapping[str, Mapping[str, Json]]:
    """Return the responses for the lowest evaluation seed, by prompt id."""
    seeds = evaluation.answers.get(dataset, {})
    return seeds[min(seeds, key=int)] if seeds else {}


def _prompt(dataset: str, prompt: str, measure: Measure, held: Sequence[tuple[str, str, Mapping[str, Json]]]) -> AnsweredPrompt:
    line = held[0][2]
    references = line.get("references")
    return AnsweredPrompt(
        dataset=dataset,
        id=prompt,
        category=category_of(line),
        measure=measure,
        prompt=short(line.get("prompt") or ""),
        reference=short(references[0]) if isinstance(references, list) and references else None,
        responses=[
            Response(
                model=label,
                role=role,
                score=number(answered.get(measure.name)),
                text=short(answered.get("response") or ""),
                truncated=answered.get("finished") is False,
                length=number(answered.get("tokens")),
            )
            for label, role, answered in held
        ],
    )


def _limited(prompts: Sequence[AnsweredPrompt], max_bytes: int) -> list[AnsweredPrompt]:
    """Return all prompts, or evenly spaced ones whose estimated size is at most `max_bytes`."""
    sizes = [prompt.num_bytes for prompt in prompts]
    count, chosen = len(prompts), list(range(len(prompts)))
    while count and (size := sum(sizes[index] for index in chosen)) > max_bytes:
        count = min(count - 1, count * max_bytes // size)
        chosen = list(evenly(len(prompts), count))
    return [prompts[index] for index in chosen]
