"""Differences between two methods or two students, with intervals and p-values.

The result of `contrast` is about either methods or trained students.  With two or more common training seeds, it is about the
methods.  Training seeds and prompts are then both random samples (a crossed model).  With fewer common seeds, it is about the
trained students, and only prompts are a random sample.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from redistill.reports.statistics import LEVEL, Interval, paired_bootstrap, sign_flip, win_tie_loss

POWER = 0.8


@dataclass(frozen=True)
class Variance:
    """Variance of a mean difference, split by source.

    Args:
        seeds: Part due to training seeds.  It is inversely proportional to their number.
        prompts: Part due to prompts.  It is inversely proportional to their number.
        residual: Remaining part.  It is inversely proportional to the product of both numbers.

    Example:
        >>> Variance(seeds=1.0, prompts=3.0, residual=0.5).total
        4.5
    """

    seeds: float
    prompts: float
    residual: float

    @property
    def total(self) -> float:
        """Total variance: the sum of all parts."""
        return self.seeds + self.prompts + self.residual


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Difference between a model and the reference model on the same prompts.

    Args:
        interval: Score of the model minus score of the reference model in the primary metric, and the 95 % confidence interval
            of this difference.  The sign is not reversed for metrics where lower is better.
        p: p-value of the null hypothesis that the difference is 0.
        p_holm: `p` after Holm's correction for multiple tests.  The tests are those of all trained students on these prompts.
            None for the teacher and for the student before training.
        wins, ties, losses: Numbers of prompts on which the model is better than, equal to and worse than the reference.
        num_seeds: Number of training seeds that both models have.  With 2 or more, `interval` and `p` are about the methods.
            With fewer, they are about the trained students.  With 0, the scores of each model are first averaged over its
            training seeds.
        detectable: Smallest true difference that a test at the 5 % level detects with a power of 80 %, in the metric's unit.
            The numbers of seeds and prompts and the variance are those of this comparison.  None with a single prompt.
        variance: Variance of the difference, by source; None with a single prompt.  If the result is about trained students,
            only the part due to prompts is nonzero.
    """

    interval: Interval
    p: float
    p_holm: float | None
    wins: int
    ties: int
    losses: int
    num_seeds: int
    detectable: float | None
    variance: Variance | None

    @property
    def about(self) -> Literal["methods", "students"]:
        """What `interval` and `p` are about: the methods, or only the trained students."""
        return "methods" if self.num_seeds > 1 else "students"


def contrast(strata: Sequence[np.ndarray], num_seeds: int, sign: int) -> Contrast:
    """Compute the difference between two models from their differences on each prompt.

    Args:
        strata: One array [training seeds, prompts] of differences per data set; all have the same seeds.
        num_seeds: Number of training seeds that both models have.
        sign: 1 if higher scores are better, -1 if lower scores are better.

    Returns:
        The difference, without Holm's correction.
    """
    wins, ties, losses = win_tie_loss([sign * stratum for stratum in strata])
    if num_seeds > 1:
        interval, p, detectable = crossed(strata)
        variance = _components(strata).variance if detectable is not None else None
    else:
        error, freedom = _error_of_prompts(strata)
        interval, p, detectable = paired_bootstrap(strata), sign_flip(strata), _detectable(error, freedom)
        variance = None if error is None else Variance(0.0, error**2, 0.0)
    counts = {"wins": wins, "ties": ties, "losses": losses, "num_seeds": num_seeds}
    return Contrast(interval=interval, p=p, p_holm=None, detectable=detectable, variance=variance, **counts)


def crossed(strata: Sequence[np.ndarray]) -> tuple[Interval, float, float | None]:
    r"""Compare two methods by a crossed model of training seeds and prompts.

    Training seeds and prompts are both regarded as random samples.

    .. math:: d_{si} = \Delta + a_s + g_i + e_{si}, \qquad
              V = \max(A + B - C,\, A,\, B), \quad
              \nu = V^2 \Bigl/ \Bigl( \frac{A^2}{S - 1} + \sum_k \frac{B_k^2}{P_k - 1} + \sum_k \frac{C_k^2}{(S - 1)(P_k - 1)}
              \Bigr)

    d_si is the difference on prompt i with training seed s, and V estimates the variance of its mean.  With one data set of P
    prompts and S seeds, A, B and C are the mean squares of seeds, of prompts and of the residual, each divided by S P.  With
    several data sets k, A is computed from the mean of each seed over all data sets.  B and C are then the sums of all B_k and
    C_k.  The confidence interval and the p-value come from a t distribution with nu degrees of freedom (Satterthwaite).

    Source: the quasi-F ratio of Clark, Journal of Verbal Learning and Verbal Behavior 12 (1973) 335-359.  The maximum replaces
    estimates of V that are too small by chance.  benchmarks/seed_inference.py simulates the error rates.

    Args:
        strata: One array [training seeds, prompts] of differences per data set; all have the same seeds, at least two.

    Returns:
        The mean difference with its 95 % interval, in the unit of the scores; the two-sided p-value; and the smallest
        detectable difference (`Contrast.detectable`).

    Example:
        >>> interval, p, detectable = crossed([np.array([[1.0, 3.0, 2.0], [2.0, 4.0, 3.0], [0.0, 2.0, 4.0]])])
        >>> [round(each, 2) for each in (interval.lower, interval.difference, interval.upper, p, detectable)]
        [-0.81, 2.33, 5.48, 0.08, 3.87]
    """
    found = _components(strata)
    seeds, of_prompts, of_residuals = (
        sum(part for part, _ in parts) for parts in (found.seeds, found.prompts, found.residuals)
    )
    variance = max(seeds + of_prompts - of_residuals, seeds, of_prompts)
    spread = sum(part**2 / freedom for part, freedom in [*found.seeds, *found.prompts, *found.residuals])
    error, freedom = math.sqrt(variance), variance**2 / spread if spread else math.inf
    difference = float(_of_seeds(strata).mean())
    margin = _quantile((1 + LEVEL) / 2, freedom) * error
    interval = Interval(difference, difference - margin, difference + margin)
    return interval, _p_value(difference, error, freedom), _detectable(error, freedom)


@dataclass(frozen=True)
class _Components:
    """The mean squares A, B and C of `crossed`, each with its degrees of freedom.

    The mean squares are scaled as in `crossed`.  `prompts` and `residuals` have a pair for each data set with two or more
    prompts.
    """

    seeds: Sequence[tuple[float, int]]
    prompts: Sequence[tuple[float, int]]
    residuals: Sequence[tuple[float, int]]

    @property
    def variance(self) -> Variance:
        """The variance by source; a negative estimate of a part is replaced by 0."""
        seeds, prompts, residual = (sum(part for part, _ in parts) for parts in (self.seeds, self.prompts, self.residuals))
        return Variance(max(seeds - residual, 0.0), max(prompts - residual, 0.0), residual)


def _of_seeds(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean difference of each data set and training seed.

    The shape is [data sets, training seeds].
    """
    return np.array([stratum.mean(axis=1) for stratum in strata])


def _components(strata: Sequence[np.ndarray]) -> _Components:
    num_seeds, of_seed = len(strata[0]), _of_seeds(strata).mean(axis=0)
    prompts, residuals = [], []
    for stratum in strata:
        size = stratum.shape[1]
        if size > 1:
            of_prompt = stratum.mean(axis=0, keepdims=True)
            rest = stratum - of_prompt - stratum.mean(axis=1, keepdims=True) + stratum.mean()
            freedom, scale = (num_seeds - 1) * (size - 1), num_seeds * size * len(strata) ** 2
            prompts.append((float(of_prompt.var(ddof=1)) / (size * len(strata) ** 2), size - 1))
            residuals.append((float((rest**2).sum()) / freedom / scale, freedom))
    return _Components([(float(of_seed.var(ddof=1)) / num_seeds, num_seeds - 1)], prompts, residuals)


def _error_of_prompts(strata: Sequence[np.ndarray]) -> tuple[float, float] | tuple[None, float]:
    """Return the standard error of the mean over prompts, and its degrees of freedom.

    The differences are first averaged over training seeds.
    """
    means = [stratum.mean(axis=0) for stratum in strata]
    if min(map(len, means)) < 2:
        return None, math.inf
    variances = [float(of_prompt.var(ddof=1)) / len(of_prompt) for of_prompt in means]
    return math.sqrt(sum(variances)) / len(strata), float(sum(len(of_prompt) - 1 for of_prompt in means))


def _detectable(error: float | None, freedom: float) -> float | None:
    """Return the smallest true difference that a test detects with power `POWER`.

    The power is computed by a t approximation.
    """
    return None if error is None else (_quantile((1 + LEVEL) / 2, freedom) + _quantile(POWER, freedom)) * error


def _quantile(probability: float, freedom: float) -> float:
    from scipy import special  # here, since it takes a moment to import

    return float(special.ndtri(probability) if math.isinf(freedom) else special.stdtrit(freedom, probability))


def _p_value(difference: float, error: float, freedom: float) -> float:
    from scipy import special

    if error == 0:
        return float(difference == 0)
    statistic = -abs(difference) / error
    return min(1.0, 2 * float(special.ndtr(statistic) if math.isinf(freedom) else special.stdtr(freedom, statistic)))
