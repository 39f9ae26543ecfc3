"""chrF: the F-score of character n-grams, for texts in any language."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from redistill.errors import DataError
from redistill.records import Metric, Record

if TYPE_CHECKING:
    from sacrebleu.metrics import CHRF


def chrf(prediction: str, references: Sequence[str]) -> float:
    r"""Compute the chrF of a text against the best of its references.

    .. math:: \mathrm{chrF} = \frac{(1 + \beta^2)\,P R}{\beta^2 P + R}, \quad \beta = 2

    chrF is in percent, 0 <= chrF <= 100.  P (precision) is the fraction of the prediction's character n-grams that are in
    the reference.  R (recall) is the fraction of the reference's character n-grams that are in the prediction.  Both are
    means over n = 1 to 6; values of n for which one of the texts has no n-gram are left out.  White space is removed; case
    and punctuation count. Source: Popović 2015 (chrF: character n-gram F-score for automatic MT evaluation).  The package
    sacrebleu computes chrF with its default settings, for single sentences
    (`nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`).

    Args:
        prediction: The text to score.
        references: At least one correct answer.

    Returns:
        The largest chrF over the references.

    Raises:
        DataError: `references` is empty.

    Example:
        >>> chrf("我爱北京", ["我爱北京"]), chrf("the cat", ["our dog"])
        (100.0, 0.0)
    """
    if not references:
        raise DataError("chrf: references = []: must not be empty; remove the prompt from the data set")
    return float(_scorer().sentence_score(prediction, references).score)


@cache
def _scorer() -> "CHRF":
    from sacrebleu.metrics import CHRF  # imports lxml and others, which takes 0.1 s

    return CHRF()


def _score(answer: str, record: Record) -> float:
    return chrf(answer, record.references)


def _can_score(record: Record) -> bool:
    return any(reference.split() for reference in record.references)


METRIC = Metric(name="chrf", title="chrF", unit="%", score=_score, can_score=_can_score)
