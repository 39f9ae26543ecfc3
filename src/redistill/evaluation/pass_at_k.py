"""pass@k: the probability that one of k sampled answers to a prompt is correct.

More than one of the k answers may be correct.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from redistill.records import Metric

BUDGETS = (2, 5, 10, 20, 50, 100)
"""Values of k.  Values above the number of seeds are left out, and the number of seeds is added as a further value."""


def pass_at_k(correct: int, samples: int, k: int) -> float:
    r"""Estimate pass@k of one prompt from at least k answers.

    .. math:: \mathrm{pass@}k = 1 - \binom{n - c}{k} \Big/ \binom{n}{k}

    n is the number of independent answers, and c is the number of correct ones.  The estimate has no bias.  Source: Chen et al.
    2021 (arXiv 2107.03374), Eq. 1.

    Args:
        correct: Number of correct answers, in [0, samples].
        samples: Number of answers, >= k.
        k: Number of answers of which at least one has to be correct, >= 1.

    Returns:
        A probability in [0, 1].

    Example:
        >>> pass_at_k(correct=1, samples=4, k=1), pass_at_k(correct=1, samples=4, k=2), pass_at_k(correct=1, samples=4, k=4)
        (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_scores(by_seed: Sequence[Sequence[Mapping[str, Any]]], metrics: Sequence[Metric]) -> dict[str, dict[str, float]]:
    """Return pass@k of a data set, by metric and k.

    Only metrics that mark answers as correct or wrong (`Metric.binary`) have a pass@k.  The mean is over prompts.

    Args:
        by_seed: For each seed of evaluation, the lines of its responses file.  Each list has one line for each prompt.
        metrics: The metrics of the answers.

    Returns:
        For each binary metric, a dict that maps k, as text, to pass@k.  The result is empty if there are fewer than two
        seeds.

    Example:
        >>> says_yes = Metric(name="yes", title="yes", score=lambda answer, record: answer == "yes", binary=True)
        >>> pass_scores([[{"id": "a", "yes": 0.0}], [{"id": "a", "yes": 1.0}]], [says_yes])
        {'yes': {'2': 1.0}}
    """
    samples = len(by_seed)
    budgets = sorted({k for k in BUDGETS if k < samples} | {samples}) if samples > 1 else []
    scores: dict[str, dict[str, float]] = {}
    for metric in metrics:
        if not metric.binary or not budgets:
            continue
        correct: dict[str, int] = {}
        for lines in by_seed:
            for line in lines:
                correct[line["id"]] = correct.get(line["id"], 0) + (line[metric.name] > 0)
        scores[metric.name] = {str(k): fmean(pass_at_k(count, samples, k) for count in correct.values()) for k in budgets}
    return scores
