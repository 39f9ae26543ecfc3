"""How varied a set of texts is: a diagnostic that stands beside the metrics, since it has no score of one answer."""

from collections.abc import Sequence


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
