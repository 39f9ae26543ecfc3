"""Exact match: whether an answer equals one of its references."""

import re
import string
from collections.abc import Sequence

from redistill.records import Metric, Record

_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Return whether a text equals one of its references after normalisation.

    Case, punctuation and differences of white space are ignored.  The normalisation of SQuAD also removes articles; this
    function keeps them.

    Source: own.

    Args:
        prediction: The text to score.
        references: Correct answers.  If there are none, the result is False.

    Returns:
        True if the text equals a reference.

    Example:
        >>> exact_match("Blue,  I think!", ["red", "blue i think"])
        True
    """
    return _normalised(prediction) in {_normalised(reference) for reference in references}


def _normalised(text: str) -> str:
    return " ".join(_PUNCTUATION.sub("", text.lower()).split())


def _score(answer: str, record: Record) -> bool:
    return exact_match(answer, record.references)


METRIC = Metric(name="exact_match", title="exact match", unit="fraction", score=_score, binary=True)
