"""ROUGE-L: the longest common subsequence of words of a text and its references."""

import functools
from collections.abc import Callable, Sequence

from redistill.errors import DataError
from redistill.records import Metric, Record


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    r"""Compute the ROUGE-L F1 of a text against the best of its references.

    .. math:: F_1 = \frac{2\,|\mathrm{LCS}(\text{prediction}, \text{reference})|}{|\text{prediction}| + |\text{reference}|}

    F1 is in percent, 0 <= F1 <= 100; it is 0 if either text has no word.  Words are sequences of [a-z0-9]
    after lower-casing; words of more than three letters are Porter-stemmed.  LCS is the longest common subsequence of the whole
    texts.  F1 is computed by the package `rouge-score`, which papers use as well.  The package supports Latin letters only:
    text in other scripts scores 0.

    Args:
        prediction: The text to score.
        references: At least one correct answer.

    Returns:
        The largest F1 over the references.

    Raises:
        DataError: `references` is empty.

    Example:
        >>> rouge_l("The cats sat down.", ["A dog ran.", "the cat sat"])
        85.71428571428571
    """
    if not references:
        raise DataError("rouge_l: references = []: must not be empty; remove the prompt from the data set")
    return 100.0 * max(_scorer()(reference, prediction) for reference in references)


def _score(answer: str, record: Record) -> float:
    return rouge_l(answer, record.references)


@functools.cache
def _scorer() -> Callable[[str, str], float]:
    """Return a function that computes the F1 of (reference, prediction).

    It uses the package rouge-score, which is imported on first use, because it imports nltk.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return lambda reference, prediction: float(scorer.score(reference, prediction)["rougeL"].fmeasure)


METRIC = Metric(name="rouge_l", title="ROUGE-L", unit="%", score=_score)
