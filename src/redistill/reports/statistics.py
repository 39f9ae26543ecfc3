"""Means over seeds, and how sure a difference between two models is.

Differences come as strata: one array [training seeds, prompts] for each data set, a prompt's score being its mean over
evaluation seeds.  What is estimated is the mean over data sets of the mean over seeds and prompts: with one stratum the mean
of a data set, with several the average column of a table.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redistill.errors import DataError
from redistill.randomness import generator

LEVEL = 0.95
RESAMPLES = 2000
FLIPS = 9999
TIE = 1e-9
_BLOCK = 4_000_000  # random numbers drawn at a time, so that 10,000 prompts do not need 160 MB
_ROUNDING = 1e-12  # sums that differ by less than this share of their terms are the same sum in another order


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


def paired_differences(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> np.ndarray:
    """One stratum: how much better a is than b, [training seeds, prompts], prompts in the order of their ids.

    Args:
        pairs: For each training seed, a's and b's prompt id to score; all answer the same prompts.

    Raises:
        DataError: there are no prompts, or not the same ones everywhere.

    Example:
        >>> paired_differences([({"p": 3.0, "q": 1.0}, {"q": 1.0, "p": 2.0})])
        array([[1., 0.]])
    """
    for scores_a, scores_b in pairs:
        _require_same_prompts(scores_a, scores_b)
        _require_same_prompts(pairs[0][0], scores_a)
    if not pairs or not pairs[0][0]:
        raise DataError("comparison: no prompts to compare; evaluate at least one")
    prompts = sorted(pairs[0][0])
    return np.array([[a[prompt] - b[prompt] for prompt in prompts] for a, b in pairs], dtype=np.float64)


def paired_bootstrap(strata: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean difference with its percentile bootstrap interval, over prompts and training seeds.

    Prompts are drawn with replacement within each data set; each keeps its pair of scores, so that prompts which are hard for
    both models do not widen the interval.  With two training seeds or more these are drawn as well, independently of the
    prompts and the same for all data sets: every seed answers every prompt, so the two are crossed, not nested.  The sampling
    of responses enters through scores that are means over evaluation seeds.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; for the crossed design Owen, The
    pigeonhole bootstrap, Annals of Applied Statistics 1 (2007) 386-411.  With n training seeds the part of the variance
    that comes from them is underestimated by (n - 1) / n, which matters for two or three.

    Args:
        strata: Differences [training seeds, prompts] of each data set, the same seeds in all; see `paired_differences`.
        resamples: How many times prompts and seeds are drawn anew.
        seed: Of the drawing.

    Returns:
        The mean difference in the unit of the scores, and the bounds of its 95 % interval.
    """
    num_seeds = _num_seeds(strata)
    of_prompts, of_seeds = generator(seed, "bootstrap"), generator(seed, "bootstrap", "training seeds")
    means: list[np.ndarray] = []
    for count in _blocks(resamples, max(stratum.shape[1] for stratum in strata)):
        # A seed's weight is how often it was drawn; with one seed that is always 1.
        weights = of_seeds.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=count) / num_seeds
        total = np.zeros(count)
        for stratum in strata:
            drawn = of_prompts.integers(stratum.shape[1], size=(count, stratum.shape[1]))
            for of_seed, weight in zip(stratum, weights.T, strict=True):
                total += weight * of_seed[drawn].mean(axis=1)
        means.append(total / len(strata))
    lower, upper = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean([stratum.mean() for stratum in strata])), float(lower), float(upper))


def sign_flip(strata: Sequence[np.ndarray], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Two-sided p-value of the paired permutation test on prompts.

    If the two models were equally good on every prompt, each prompt's difference could as well have the other sign.  p is the
    share of sign patterns whose mean difference is at least as far from 0 as the one seen: over all 2^n patterns where they
    are not more than `flips`, else over that many random ones, the seen one among them (so p >= 1 / (flips + 1)).
    Training seeds are averaged first: p is about the models at hand, not about other seeds.

    Source: Fisher's randomisation test; Phipson and Smyth, Permutation p-values should never be zero (2010), for the + 1.

    Args:
        strata: Differences [training seeds, prompts] of each data set.
        flips: How many sign patterns are tried.
        seed: Of the drawing.

    Returns:
        p in (0, 1].

    Example:
        >>> sign_flip([np.array([[1.0, 1.0, 2.0]])])  # two of the eight patterns are as far out
        0.25
    """
    # Each prompt's share of the estimate: flipping signs of these flips prompts within data sets.
    shares = np.concatenate([stratum.mean(axis=0) / stratum.shape[1] for stratum in strata]) / len(strata)
    limit = abs(shares.sum()) - _ROUNDING * np.abs(shares).sum()
    if 2 ** len(shares) <= flips:
        patterns = np.arange(2 ** len(shares))[:, None] >> np.arange(len(shares)) & 1
        return float((np.abs((1 - 2 * patterns) @ shares) >= limit).mean())
    random, as_far = generator(seed, "sign flips"), 0
    for count in _blocks(flips, len(shares)):
        flipped = random.integers(0, 2, size=(count, len(shares)), dtype=np.bool_)
        as_far += int((np.abs(shares.sum() - 2 * (flipped @ shares)) >= limit).sum())
    return (as_far + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that hold all at once, in the order given.

    .. math:: p'_{(i)} = \\max_{j \\le i} \\min(1, (m - j + 1)\\, p_{(j)})

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def win_tie_loss(strata: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """On how many prompts a is better than b, as good within `TIE`, and worse; training seeds are averaged first."""
    difference = np.concatenate([stratum.mean(axis=0) for stratum in strata])
    wins, losses = int((difference > TIE).sum()), int((difference < -TIE).sum())
    return wins, len(difference) - wins - losses, losses


def spread(scores: Mapping[str, float], count: int) -> list[str]:
    """At most `count` prompts, evenly spread from the lowest to the highest score; ties go by prompt id."""
    ranked = sorted(scores, key=lambda prompt: (scores[prompt], prompt))
    return [ranked[place] for place in evenly(len(ranked), count)]


def evenly(total: int, count: int) -> Sequence[int]:
    """At most `count` places out of `total`, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, total - 1, min(count, total))}) if total else []


def _num_seeds(strata: Sequence[np.ndarray]) -> int:
    counts = {len(stratum) for stratum in strata}
    assert len(counts) == 1, "the strata of one comparison have the same training seeds"
    return counts.pop()


def _blocks(total: int, width: int) -> Iterator[int]:
    """`total` draws of `width` numbers, cut into counts that fit into `_BLOCK`."""
    block = max(1, _BLOCK // width)
    yield from (min(block, total - first) for first in range(0, total, block))


def _require_same_prompts(scores_a: Mapping[str, float], scores_b: Mapping[str, float]) -> None:
    odd = sorted(scores_a.keys() ^ scores_b.keys())
    if odd:
        where = "first" if odd[0] in scores_a else "second"
        raise DataError(
            f"comparison: {len(odd)} prompts were answered by one model only, such as '{odd[0]}' by the {where}; "
            "compare evaluations of the same prompts"
        )
