"""Means over seeds, and confidence intervals and tests for model differences.

A stratum is an array [training seeds, prompts] of score differences between two models on one data set.  The score of a prompt
is its mean over evaluation seeds.  The estimated difference is the mean over strata of each stratum's mean.  Each data set
therefore has the same weight.
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
_BLOCK = 4_000_000  # maximum number of random numbers per block, to bound memory: 10,000 prompts would need 160 MB
_ROUNDING = 1e-12  # relative tolerance: sums of the same terms in another order differ by less


@dataclass(frozen=True)
class Interval:
    """A mean difference, and the bounds of its 95 % confidence interval."""

    difference: float
    lower: float
    upper: float


def mean(values: Iterable[float]) -> float | None:
    """Return the arithmetic mean; None if there are no values."""
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else None


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """Return the arithmetic mean; None if a value is None or there are no values.

    A mean over the known values only would not be comparable with other means.
    """
    found = list(values)
    known = [value for value in found if value is not None]
    return mean(known) if len(known) == len(found) else None


def deviation(values: Iterable[float]) -> float | None:
    """Return the sample standard deviation (divisor n - 1); None for n < 2 values."""
    numbers = list(values)
    return float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None


def prompt_means(seeds: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Compute the mean score of each prompt over evaluation seeds.

    Args:
        seeds: One mapping per evaluation seed, from prompt id to score.

    Raises:
        DataError: the seeds have different prompts.

    Example:
        >>> prompt_means([{"a": 10.0, "b": 0.0}, {"a": 20.0, "b": 4.0}])
        {'a': 15.0, 'b': 2.0}
    """
    scores = list(seeds)
    for other in scores[1:]:
        _require_same_prompts(scores[0], other)
    return {prompt: float(np.mean([seed[prompt] for seed in scores])) for prompt in scores[0]} if scores else {}


def paired_differences(pairs: Sequence[tuple[Mapping[str, float], Mapping[str, float]]]) -> np.ndarray:
    """Compute differences a - b between the scores of models a and b on one data set.

    Args:
        pairs: For each training seed, the scores of model a and of model b, by prompt id.  All have the same prompts.

    Returns:
        Array [training seeds, prompts], float64, with prompts sorted by id.

    Raises:
        DataError: there are no prompts, or they differ between models or seeds.

    Example:
        >>> paired_differences([({"p": 3.0, "q": 1.0}, {"q": 1.0, "p": 2.0})])
        array([[1., 0.]])
    """
    for scores_a, scores_b in pairs:
        _require_same_prompts(scores_a, scores_b)
        _require_same_prompts(pairs[0][0], scores_a)
    if not pairs or not pairs[0][0]:
        raise DataError("comparison: no prompts to compare; evaluate at least one prompt")
    prompts = sorted(pairs[0][0])
    return np.array([[a[prompt] - b[prompt] for prompt in prompts] for a, b in pairs], dtype=np.float64)


def paired_bootstrap(strata: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Compute the mean difference with its percentile bootstrap interval.

    Prompts are resampled with replacement within each data set. The scores of a prompt stay paired, so that prompts which are
    hard for both models do not widen the interval.  Differences are averaged over training seeds first.  The interval is
    therefore about the evaluated models, not about other training seeds.  The variation of sampled responses is included in the
    scores, which are means over evaluation seeds.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Args:
        strata: One array [training seeds, prompts] of differences per data set, as `paired_differences` returns it; all have
            the same seeds.
        resamples: Number of bootstrap resamples.
        seed: Seed of the random generator.

    Returns:
        The mean difference in the unit of the scores, and the bounds of its 95 % interval.
    """
    of_prompts, means = generator(seed, "bootstrap"), []
    for count in _blocks(resamples, max(stratum.shape[1] for stratum in strata)):
        total = np.zeros(count)
        for stratum in strata:
            drawn = of_prompts.integers(stratum.shape[1], size=(count, stratum.shape[1]))
            total += stratum.mean(axis=0)[drawn].mean(axis=1)
        means.append(total / len(strata))
    lower, upper = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean([stratum.mean() for stratum in strata])), float(lower), float(upper))


def sign_flip(strata: Sequence[np.ndarray], *, flips: int = FLIPS, seed: int = 0) -> float:
    """Compute the two-sided p-value of the paired sign-flip test over prompts.

    This is a permutation test.  Under the null hypothesis that both models are equally good on every prompt, the sign of each
    difference is arbitrary.  p is the fraction of sign patterns whose mean difference is at least as far from 0 as the observed
    one.  With n prompts, all 2^n patterns are evaluated if there are at most `flips` of them.  Otherwise `flips` random
    patterns and the observed one are evaluated, so p >= 1 / (flips + 1).  Differences are averaged over training seeds first.
    p is therefore about the evaluated models, not about other training seeds.

    Source: Fisher's randomisation test; Phipson and Smyth, Permutation p-values should never be zero (2010), which explains why
    the observed pattern is counted.

    Args:
        strata: One array [training seeds, prompts] of differences per data set.
        flips: Maximum number of sign patterns to evaluate.
        seed: Seed of the random generator.

    Returns:
        p in (0, 1].

    Example:
        >>> sign_flip([np.array([[1.0, 1.0, 2.0]])])  # two of the eight patterns are at least as extreme
        0.25
    """
    # Contribution of each prompt to the estimate. Flipping the sign of a prompt's difference flips the sign of its term.
    terms = np.concatenate([stratum.mean(axis=0) / stratum.shape[1] for stratum in strata]) / len(strata)
    limit = abs(terms.sum()) - _ROUNDING * np.abs(terms).sum()
    if 2 ** len(terms) <= flips:
        patterns = np.arange(2 ** len(terms))[:, None] >> np.arange(len(terms)) & 1
        return float((np.abs((1 - 2 * patterns) @ terms) >= limit).mean())
    random, as_extreme = generator(seed, "sign flips"), 0
    for count in _blocks(flips, len(terms)):
        flipped = random.integers(0, 2, size=(count, len(terms)), dtype=np.bool_)
        as_extreme += int((np.abs(terms.sum() - 2 * (flipped @ terms)) >= limit).sum())
    return (as_extreme + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests by Holm's method.

    The method controls the family-wise error rate.

    Args:
        p_values: p-values of the family, in any order.

    Returns:
        The corrected p-values, in the order of `p_values`.

    .. math:: p'_{(i)} = \\max_{j \\le i} \\min(1, (m - j + 1)\\, p_{(j)})

    p_(j) is the j-th smallest of the m p-values, and p'_(i) is the corrected i-th smallest.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order, adjusted = np.argsort(p_values, kind="stable"), np.zeros(len(p_values))
    rising = np.arange(len(p_values), 0, -1) * np.array(p_values)[order]
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, rising))
    return adjusted.tolist()


def win_tie_loss(strata: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Return the numbers of prompts with a win, with a tie and with a loss.

    The difference of a prompt is averaged over training seeds; it is positive if the first model is better.  The prompt is a
    win if its difference is > 1e-9 (`TIE`), a loss if its difference is < -1e-9, and otherwise a tie.
    """
    difference = np.concatenate([stratum.mean(axis=0) for stratum in strata])
    wins, losses = int((difference > TIE).sum()), int((difference < -TIE).sum())
    return wins, len(difference) - wins - losses, losses


def spread(scores: Mapping[str, float], count: int) -> list[str]:
    """Choose at most `count` prompt ids, evenly spaced in the ranking by score.

    The lowest score is first; ties are ordered by prompt id.
    """
    ranked = sorted(scores, key=lambda prompt: (scores[prompt], prompt))
    return [ranked[index] for index in evenly(len(ranked), count)]


def evenly(total: int, count: int) -> Sequence[int]:
    """Choose at most `count` evenly spaced indices in [0, `total`).

    The first index is included, and the last one if `count` > 1.
    """
    return sorted({round(index) for index in np.linspace(0, total - 1, min(count, total))}) if total else []


def _blocks(total: int, width: int) -> Iterator[int]:
    """Split `total` samples of `width` numbers each into blocks of limited size.

    Yields the number of samples of each block.  A block has at most 4,000,000 numbers (`_BLOCK`), but at least one sample.
    """
    block = max(1, _BLOCK // width)
    yield from (min(block, total - first) for first in range(0, total, block))


def _require_same_prompts(scores_a: Mapping[str, float], scores_b: Mapping[str, float]) -> None:
    unpaired = sorted(scores_a.keys() ^ scores_b.keys())
    if unpaired:
        model = "first" if unpaired[0] in scores_a else "second"
        raise DataError(
            f"comparison: {len(unpaired)} prompts have a response of only one model, such as '{unpaired[0]}' (only the {model} "
            "model); evaluate both models on the same test set"
        )
