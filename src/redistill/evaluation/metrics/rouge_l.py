"""ROUGE-L: the longest common subsequence of words of a text and its references."""

import functools
import re
from collections.abc import Callable, Sequence

from redistill.errors import DataError
from redistill.evaluation.metrics.words import words
from redistill.records import Metric, Record

_LETTER, _LETTER_OR_DIGIT = re.compile("[a-z]"), re.compile("[a-z0-9]")


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    r"""Compute the ROUGE-L F1 of a text against the best of its references.

    .. math:: F_1 = \frac{2\,|\mathrm{LCS}(\text{prediction}, \text{reference})|}{|\text{prediction}| + |\text{reference}|}

    F1 is in percent, 0 <= F1 <= 100; it is 0 if either text has no word.  LCS is the longest common subsequence of words,
    over the whole texts.  F1 is computed by the package `rouge-score`, which many papers use.

    The script of the reference determines how both texts are divided into words.  For English and other languages in Latin
    script, `rouge-score` divides them: a word is a sequence of [a-z0-9] after lower-casing, and words of more than three
    letters are Porter-stemmed.  For other scripts, `redistill.evaluation.metrics.words` divides them, without stemming:
    each Chinese character is a word, and Russian, Arabic and Hindi words are found.  This division is used if most words of
    the reference have no ASCII letter; words with digits and without letters are not counted.  F1 values from different
    divisions are not comparable.

    Source: the package `rouge-score` for the F1; own for the words of other scripts.

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
        >>> rouge_l("Столица — Париж", ["Столица Франции — Париж."])
        80.0
    """
    if not references:
        raise DataError("rouge_l: references = []: must not be empty; remove the prompt from the data set")
    return 100.0 * max(_scorer(_needs_any_script(reference))(reference, prediction) for reference in references)


def _needs_any_script(reference: str) -> bool:
    """Return whether texts are divided by `words` instead of the package rouge-score."""
    if reference.isascii():
        return False
    if not _LETTER_OR_DIGIT.search(reference.lower()):
        return True
    found = words(reference)
    others = sum(not _LETTER_OR_DIGIT.search(word) for word in found)
    return others > sum(bool(_LETTER.search(word)) for word in found)


def _score(answer: str, record: Record) -> float:
    return rouge_l(answer, record.references)


def _can_score(record: Record) -> bool:
    return any(_LETTER_OR_DIGIT.search(reference.lower()) or words(reference) for reference in record.references)


class _AnyScript:
    """A tokenizer for the package rouge-score that uses the function `words`."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


@functools.cache
def _scorer(is_any_script: bool) -> Callable[[str, str], float]:
    """Return a function that computes the F1 of (reference, prediction).

    The function uses the package rouge-score, which is imported when `_scorer` is called.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True, tokenizer=_AnyScript() if is_any_script else None)
    return lambda reference, prediction: float(scorer.score(reference, prediction)["rougeL"].fmeasure)


METRIC = Metric(name="rouge_l", title="ROUGE-L", unit="%", score=_score, can_score=_can_score)
