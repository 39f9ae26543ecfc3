"""ROUGE-L: the longest common subsequence of words of a text and its references."""

import functools
from collections.abc import Sequence
from typing import Any

from redistill.errors import DataError
from redistill.records import Metric, Record


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    r"""ROUGE-L F1 of a text against the best of its references.

    .. math:: F_1 = \frac{2\,|\mathrm{LCS}(\text{prediction}, \text{reference})|}{|\text{prediction}| + |\text{reference}|}

    In percent, 0 <= F1 <= 100; 0 where either text has no word.  Words are runs of [a-z0-9] after lower-casing, those of more
    than three letters Porter-stemmed, and LCS is the longest common subsequence of the whole texts.  The package `rouge-score`
    computes it, because papers of this field report its numbers.  It knows Latin letters only: other scripts score 0.

    Args:
        prediction: The text to judge.
        references: At least one right answer.

    Returns:
        The largest F1 over the references.

    Raises:
        DataError: `references` is empty.

    Example:
        >>> rouge_l("The cats sat down.", ["A dog ran.", "the cat sat"])
        85.71428571428571
    """
    if not references:
        raise DataError("rouge_l: no references given; a prompt without an answer cannot be scored, so leave it out")
    return 100.0 * max(_scorer().score(reference, prediction)["rougeL"].fmeasure for reference in references)


def _score(answer: str, record: Record) -> float:
    return rouge_l(answer, record.references)


@functools.cache
def _scorer() -> Any:
    """The scorer of rouge-score; imported on first use, since it brings nltk along."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


METRIC = Metric(name="rouge_l", title="ROUGE-L", unit="%", score=_score)
