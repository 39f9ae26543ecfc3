"""Means over seeds, and how sure a difference between two models is: a paired bootstrap over prompts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redistill.errors import DataError
from redistill.randomness import generator

LEVEL = 0.95
_BLOCK = 4_000_000  # random indices drawn at a time, so that 10,000 prompts do not need 160 MB


@dataclass(frozen=True)
class Interval:
    """A difference and the bounds that hold it with probability `LEVEL`."""

    difference: float
    lower: float
    upper: float


def mean(values: Iterable[float]) -> float | None:
    """Arithmetic mean; None of nothing."""
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else None


def deviation(values: Iterable[float]) -> float | None:
    """Sample standard deviation, with n - 1; None of fewer than two values."""
    numbers = list(values)
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def prompt_means(seeds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean over seeds of each prompt's score.

    Args:
        seeds: For each seed, prompt id to score.

    Raises:
        DataError: the seeds do not answer the same prompts.

    Example:
        >>> prompt_means([{"a": 10.0, "b": 0.0}, {"a": 20.0, "b": 4.0}])
        {'a': 15.0, 'b': 2.0}
    """
    scores = list(seeds)
    for other in scores[1:]:
        _require_same_prompts(scores[0], other)
    return {prompt: float(np.mean([seed[prompt] for seed in scores])) for prompt in scores[0]} if scores else {}


def paired_bootstrap(
    scores_a: Mapping[str, float], scores_b: Mapping[str, float], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """How much better a is than b: mean difference over prompts, with its percentile bootstrap interval.

    Prompts are drawn with replacement; each keeps its pair of scores, so that prompts which are hard for both models do not
    widen the interval.  The sampling of responses enters through scores that are means over seeds.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        scores_a: Prompt id to score, each score the mean over seeds (see `prompt_means`).
        scores_b: The same prompts, in any order.
        resamples: How many times the prompts are drawn anew.
        seed: Of the drawing.

    Returns:
        The difference a - b in the unit of the scores, and the bounds of its 95 % interval.

    Raises:
        DataError: there are no prompts, or the two do not answer the same ones.
    """
    _require_same_prompts(scores_a, scores_b)
    if not scores_a:
        raise DataError("comparison: no prompts to compare; evaluate at least one")
    difference = np.array([scores_a[prompt] - scores_b[prompt] for prompt in sorted(scores_a)], dtype=np.float64)
    random = generator(seed, "bootstrap")
    means: list[np.ndarray] = []
    block = max(1, _BLOCK // len(difference))
    for first in range(0, resamples, block):
        drawn = random.integers(len(difference), size=(min(block, resamples - first), len(difference)))
        means.append(difference[drawn].mean(axis=1))
    lower, upper = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(difference.mean()), float(lower), float(upper))


def spread(scores: Mapping[str, float], count: int) -> list[str]:
    """At most `count` prompts, evenly spread from the lowest to the highest score; ties go by prompt id."""
    ranked = sorted(scores, key=lambda prompt: (scores[prompt], prompt))
    return [ranked[place] for place in evenly(len(ranked), count)]


def evenly(total: int, count: int) -> Sequence[int]:
    """At most `count` places out of `total`, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, total - 1, min(count, total))}) if total else []


def _require_same_prompts(scores_a: Mapping[str, float], scores_b: Mapping[str, float]) -> None:
    odd = sorted(scores_a.keys() ^ scores_b.keys())
    if odd:
        where = "first" if odd[0] in scores_a else "second"
        raise DataError(
            f"comparison: {len(odd)} prompts were answered by one model only, such as '{odd[0]}' by the {where}; "
            "compare evaluations of the same prompts"
        )
