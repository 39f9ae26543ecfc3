"""Diversity of a set of texts.

Diversity is not a `Metric`, since it is defined for a set of answers and not for a single answer.
"""

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    r"""Return the number of distinct n-grams, divided by the number of all n-grams.

    .. math:: \mathrm{distinct}_n = \frac{|\{\text{n-grams}\}|}{\#\,\text{n-grams}}

    The value is 1 if no n-gram repeats, and 0 if no text has n words.  Words are lower-cased and split at white space.  All
    words of an n-gram are in one text.  Source: Li et al. 2016 (arXiv 1510.03055), distinct-1 and distinct-2.

    Args:
        texts: The texts.
        n: Length of the n-grams, >= 1.

    Returns:
        The fraction, in [0, 1].

    Example:
        >>> distinct_n(["a b a", "a b"], 2)
        0.6666666666666666
    """
    assert n >= 1, n
    word_lists = [text.lower().split() for text in texts]
    ngrams = [tuple(words[i : i + n]) for words in word_lists for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0
