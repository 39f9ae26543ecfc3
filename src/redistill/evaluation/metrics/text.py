"""Scores of a text against reference texts: ROUGE-L, exact match, and how varied a set of texts is.

Strings in, numbers out; torch is never imported, so a report can score without a model.
"""

import functools
import re
import string
from collections.abc import Sequence
from typing import Any

from redistill.errors import DataError

_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    r"""ROUGE-L F1 of a text against the best of its references.

    .. math:: F_1 = \frac{2\,|\mathrm{LCS}(\text{prediction}, \text{reference})|}{|\text{prediction}| + |\text{reference}|}

    In percent, 0 <= F1 <= 100; 0 where either text has no word.  Words are runs of [a-z0-9] after lower-casing, those of more
    than three letters Porter-stemmed, and LCS is the longest common subsequence of the whole texts.  The package `rouge-score`
    does the work, because papers of this field report its numbers.  It knows Latin letters only: other scripts score 0.

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


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Whether a text equals one of its references, up to case, punctuation and white space.

    SQuAD's normalisation, but articles stay.

    Example:
        >>> exact_match("Blue,  I think!", ["red", "blue i think"])
        True
    """
    return _normalised(prediction) in {_normalised(reference) for reference in references}


def distinct_n(texts: Sequence[str], n: int) -> float:
    """The share of different n-grams among all n-grams of some texts.

    In [0, 1]; 1 where nothing is ever repeated, 0 where no text has n words.  Words are lower-cased and split at white space;
    no n-gram crosses from one text into the next.  Source: Li et al. 2016 (arXiv 1510.03055), distinct-1 and distinct-2.

    Example:
        >>> distinct_n(["a b a", "a b"], 2)
        0.6666666666666666
    """
    assert n >= 1, n
    word_lists = [text.lower().split() for text in texts]
    ngrams = [tuple(words[i : i + n]) for words in word_lists for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


@functools.cache
def _scorer() -> Any:
    """The scorer of rouge-score; imported on first use, since it brings nltk along."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def _normalised(text: str) -> str:
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())
