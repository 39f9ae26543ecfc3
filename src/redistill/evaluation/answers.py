"""A model's answers to prompts and their scores: the lines of a responses file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from redistill.contracts import Engine, GenerationRequest, Processes, Sampling
from redistill.data.tokenize import response_text
from redistill.evaluation.metrics.distinct import distinct_n
from redistill.records import Conversation, Instruction, Metric, Record, mean

Item = TypeVar("Item")
Line = dict[str, Any]


@dataclass(frozen=True)
class Answerer:
    """Generates answers to prompts and scores them.

    Args:
        engine: Generates text with the evaluated model's weights.
        tokenizer: The tokenizer of that model.
        sampling: How a token is sampled.
        max_new_tokens: Length limit of an answer, in tokens.
        end_ids: Ids of the end tokens.
    """

    engine: Engine
    tokenizer: Any
    sampling: Sampling
    max_new_tokens: int
    end_ids: tuple[int, ...]

    def lines(
        self,
        dataset: str,
        records: Sequence[Record],
        prompts: Sequence[tuple[int, ...]],
        seed: int,
        metrics: Sequence[Metric],
    ) -> list[Line]:
        """A line of a responses file for each record."""
        requests = [
            GenerationRequest(
                prompt_ids=prompt_ids,
                max_new_tokens=self.max_new_tokens,
                seed=seed,
                stream=("evaluate", dataset, record.record_id),
            )
            for record, prompt_ids in zip(records, prompts, strict=True)
        ]
        generations = self.engine.generate(requests, self.sampling)
        lines = []
        for record, generation in zip(records, generations, strict=True):
            response = response_text(generation.token_ids, self.tokenizer, self.end_ids)
            lines.append(
                {
                    "id": record.record_id,
                    "prompt": _prompt_text(record),
                    "response": response,
                    "references": list(record.references),
                    **{metric.name: metric.scored(response, record) for metric in metrics},
                    "tokens": len(generation.token_ids),
                    "finished": generation.finished,
                }
            )
        return lines


def with_metrics(line: Line, record: Record, metrics: Sequence[Metric]) -> Line:
    """A line of a responses file with exactly the scores of `metrics`.

    Existing scores are kept, missing ones are computed from the response, and scores of other metrics are removed.
    """
    before = ("id", "prompt", "response", "references")
    after = ("tokens", "finished")
    scores = {
        metric.name: line[metric.name] if metric.name in line else metric.scored(line["response"], record) for metric in metrics
    }
    return {**{name: line[name] for name in before}, **scores, **{name: line[name] for name in after}}


def response_scores(lines: Sequence[Line], metrics: Sequence[Metric]) -> dict[str, float]:
    """Scores of a set of answers, from their lines in a responses file; `Evaluator.evaluate` lists the units.

    Sums are exact (`math.fsum`), so that the scores do not depend on the order in which answers of processes are gathered.
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
    """This process's part of the values: with n processes, every n-th value from its rank on."""
    return values[processes.rank :: processes.world]


def _prompt_text(record: Record) -> str:
    """The prompt as text for a reader, without its template."""
    prompt = record.prompt
    if isinstance(prompt, Instruction):
        return f"{prompt.instruction}\n\n{prompt.input}" if prompt.input else prompt.instruction
    if isinstance(prompt, Conversation):
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt.turns)
    return prompt.text
