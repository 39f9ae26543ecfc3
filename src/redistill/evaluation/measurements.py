"""Latency and memory of answers that are generated one at a time.

Latency and memory are measured on a small sample of the test prompts.  The answers are those of the first evaluation seed.
`redistill.evaluation.positions` computes divergences by token for the same answers.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from redistill.contracts import Generation
from redistill.errors import check_field
from redistill.evaluation.answers import Answerer, Row
from redistill.processes.memory import peak_growth
from redistill.randomness import generator
from redistill.records import Json, mean

PERCENTILES = (50, 95)
MEASURED = ("latency", "peak_bytes")
"""The entries of scores.json that this module measures."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What an evaluation measures on a sample of the test prompts.

    None of these settings changes a trained student, its answers or its scores.

    Args:
        prompts: Number of prompts in the sample, over all test sets; >= 0.  The main process answers each of them alone (batch
            size 1) and measures latency and memory.  With 0, nothing is measured.  If None, the sample has one prompt for 50
            answers of the evaluation, but at least 4 and at most 16 prompts: an answer that is generated alone can take as
            long as a whole batch.
        positions_bytes: Maximum size in bytes of positions.jsonl, the divergences from a local teacher by token of the sampled
            answers; >= 0.  Training with SCRG has the same limit for revision-positions.jsonl.  With 0, neither is written.

    Raises:
        ConfigError: a value is below 0.

    Example:
        >>> [MeasureConfig().number(answers) for answers in (10, 500, 2500)], MeasureConfig(prompts=32).number(2500)
        ([4, 10, 16], 32)
        >>> MeasureConfig(prompts=-1)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: prompts = -1: must be >= 0; 0 measures nothing
    """

    prompts: int | None = None
    positions_bytes: int = 2_000_000

    def __post_init__(self) -> None:
        check_field(self, "prompts", self.prompts is None or self.prompts >= 0, "must be >= 0; 0 measures nothing")
        check_field(self, "positions_bytes", self.positions_bytes >= 0, "must be >= 0; 0 writes no divergences by token")

    def number(self, answers: int) -> int:
        """Return the number of prompts in the sample.

        Args:
            answers: Number of answers of the evaluation, over all seeds.
        """
        return self.prompts if self.prompts is not None else min(16, max(4, answers // 50))


class Sampled(NamedTuple):
    """A sampled test prompt.

    Args:
        dataset: Name of its test set.
        row: The record, and the token ids of its prompt.
    """

    dataset: str
    row: Row


def sampled_prompts(datasets: Mapping[str, Sequence[Row]], number: int, seed: int) -> list[Sampled]:
    """Return a random sample of test prompts.

    Each prompt has a random number that depends only on the seed, the name of its test set and its id.  The sample has the
    prompts with the smallest numbers, in the order of these numbers.  It does not depend on the order of the prompts.

    Args:
        datasets: Rows by name of the test set.
        number: Number of prompts; all are returned if there are fewer.
        seed: The first seed of evaluation.
    """
    ranked = [
        (generator(seed, "measure", name, row[0].record_id).random(), Sampled(name, row))
        for name, rows in datasets.items()
        for row in (rows if number else ())
    ]
    return [sampled for _, sampled in sorted(ranked, key=lambda pair: pair[0])[:number]]


def measure(
    answerer: Answerer,
    sample: Sequence[Sampled],
    seed: int,
    *,
    weight_bytes: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[Generation], dict[str, Json]]:
    """Answer each prompt alone; return the answers, and their latency and memory.

    The latency of an answer is the time from the request to its last token.  The latency of the first token is the time of a
    separate request for one token.  Two tokens are generated before the measurements, so that they exclude one-time costs such
    as the loading of kernels.

    Args:
        answerer: Generates the answers.
        sample: The prompts, at least one.
        seed: The evaluation seed of the answers.
        weight_bytes: Size of the model's weights, in bytes.
        device: Device of the model.
        clock: Function that returns the time of a monotonic clock, in seconds.

    Returns:
        The generated answers, and the entries "latency" and "peak_bytes" of scores.json.  The times are percentiles over the
        prompts, with linear interpolation, in seconds.  peak_bytes is `weight_bytes` plus the growth of memory while answers
        are generated (see `peak_growth`); it is omitted if the growth cannot be measured.
    """

    def timed(sampled: Sampled, limit: int) -> tuple[Generation, float]:
        request = replace(answerer.request(sampled.dataset, sampled.row, seed), max_new_tokens=limit)
        began = clock()
        (generation,) = answerer.engine.generate([request], answerer.sampling)
        return generation, max(0.0, clock() - began)

    limit = answerer.max_new_tokens
    timed(sample[0], min(2, limit))
    first = [timed(sampled, 1)[1] for sampled in sample]
    answers, growth = peak_growth(lambda: [timed(sampled, limit) for sampled in sample], device)
    latency: dict[str, Json] = {"prompts": len(sample)}
    for name, seconds in (("", [duration for _, duration in answers]), ("first_token_", first)):
        for percentile in PERCENTILES:
            latency[f"{name}p{percentile}_s"] = rounded(float(np.percentile(seconds, percentile)))
    latency["mean_tokens"] = mean([len(generation.token_ids) for generation, _ in answers])
    memory = {} if growth is None else {"peak_bytes": weight_bytes + growth}
    return [generation for generation, _ in answers], {"latency": latency, **memory}


def rounded(value: float) -> float:
    """Round a number to four significant digits.

    Example:
        >>> rounded(0.123456), rounded(1234.56)
        (0.1235, 1235.0)
    """
    return float(f"{value:.4g}")
