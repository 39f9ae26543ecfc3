"""Generates and scores answers; each answer becomes a line of a responses file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from redistill.contracts import Engine, GenerationRequest, Processes, Sampling
from redistill.data.templates import turns_of
from redistill.data.tokenize import response_text
from redistill.evaluation.metrics.distinct import distinct_n
from redistill.interfaces import Tokenizer
from redistill.records import Conversation, Metric, Record, mean

Item = TypeVar("Item")
Row = tuple[Record, tuple[int, ...]]
"""A record and the token ids of its prompt."""

Line = dict[str, Any]
"""A line of a responses file: one answer with its prompt, its references and its score of each metric."""

_TYPES = {"id": str, "prompt": str, "response": str, "references": list, "tokens": int, "finished": bool}


@dataclass(frozen=True)
class Answerer:
    """Generates answers to prompts and scores them.

    Args:
        engine: Generates text with the evaluated model's weights.
        tokenizer: The tokenizer of the evaluated model.
        sampling: Sampling settings, such as the temperature.
        max_new_tokens: Length limit of an answer, in tokens.
        end_ids: Ids of the end tokens.
    """

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling
    max_new_tokens: int
    end_ids: tuple[int, ...]

    def lines(self, dataset: str, rows: Sequence[Row], seed: int, metrics: Sequence[Metric]) -> list[Line]:
        """Generate an answer to each prompt in `rows`; return one line per answer.

        A line of the responses file is a dict: it has the prompt, the answer, the references, the scores for `metrics`, and the
        number of generated tokens.
        """
        requests = [self.request(dataset, row, seed) for row in rows]
        lines = [
            {
                "id": record.record_id,
                "prompt": _prompt_text(record),
                "response": response_text(generation.token_ids, self.tokenizer, self.end_ids),
                "references": list(record.references),
                "tokens": len(generation.token_ids),
                "finished": generation.finished,
            }
            for (record, _), generation in zip(rows, self.engine.generate(requests, self.sampling), strict=True)
        ]
        return [with_metrics(line, record, metrics) for line, (record, _) in zip(lines, rows)]

    def request(self, dataset: str, row: Row, seed: int) -> GenerationRequest:
        """Return the request for the answer to one prompt.

        Its random numbers depend only on the seed, the name of the data set and the id of the record.
        """
        record, ids = row
        stream = ("evaluate", dataset, record.record_id)
        return GenerationRequest(prompt_ids=ids, max_new_tokens=self.max_new_tokens, seed=seed, stream=stream)


def is_answer(line: object, metrics: Sequence[Metric]) -> bool:
    """Return whether a value is a line of a responses file.

    Every key of an answer must have a value of its type. A score of one of `metrics` may be missing; otherwise it must be a
    number.

    Args:
        line: A JSON value.
        metrics: The metrics of the answers.
    """
    if not isinstance(line, dict) or not all(isinstance(line.get(name), kind) for name, kind in _TYPES.items()):
        return False
    are_texts = all(isinstance(text, str) for text in line["references"])
    return are_texts and all(isinstance(line[metric.name], int | float) for metric in metrics if metric.name in line)


def with_metrics(line: Line, record: Record, metrics: Sequence[Metric]) -> Line:
    """Return a line of a responses file with exactly the scores of `metrics`.

    Existing scores are kept, missing ones are computed from the response, and scores of other metrics are removed.  The line
    also has the category of the record, if the record has one.
    """
    scores = {m.name: line[m.name] if m.name in line else m.scored(line["response"], record) for m in metrics}
    before, after = ("id", "prompt", "response", "references"), ("tokens", "finished")
    category = {"category": record.category} if record.category else {}
    return {**{name: line[name] for name in before}, **category, **scores, **{name: line[name] for name in after}}


def response_scores(lines: Sequence[Line], metrics: Sequence[Metric]) -> dict[str, float]:
    """Return the scores of a set of answers, by the name of the score.

    In addition to `metrics`, the result has "length_tokens", "eos_rate", "distinct_1" and "distinct_2".
    `Evaluator.evaluate` documents the units.  Sums are exact (`math.fsum`), so that the scores do not depend on the order
    of the answers.

    Args:
        lines: The lines of the responses file for these answers.
        metrics: The metrics of the answers.
    """
    responses = [line["response"] for line in lines]
    return {
        **{metric.name: metric.aggregated([line[metric.name] for line in lines]) for metric in metrics},
        "length_tokens": mean([line["tokens"] for line in lines]),
        "eos_rate": mean([line["finished"] for line in lines]),
        "distinct_1": distinct_n(responses, 1),
        "distinct_2": distinct_n(responses, 2),
    }


def part(values: Sequence[Item], processes: Processes) -> Sequence[Item]:
    """Return those values that this process handles.

    The process with rank r of n processes handles the values with the indices r, r + n, r + 2n and so on.
    """
    return values[processes.rank :: processes.world]


def _prompt_text(record: Record) -> str:
    """Return the prompt as readable text, without the prompt template."""
    turns = turns_of(record.prompt)
    is_dialogue = isinstance(record.prompt, Conversation) or len(turns) > 1
    return "\n\n".join(f"{turn.role}: {turn.text}" for turn in turns) if is_dialogue else turns[0].text
