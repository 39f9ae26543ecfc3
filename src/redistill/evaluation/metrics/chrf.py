"""chrF: the F-score of character n-grams, for texts in any language."""

from collections import Counter
from collections.abc import Sequence

from redistill.errors import DataError
from redistill.records import Metric, Record

_LONGEST = 6  # characters of an n-gram
_BETA = 2  # recall has the weight beta^2 relative to precision


def chrf(prediction: str, references: Sequence[str]) -> float:
    r"""Compute the chrF of a text against the best of its references.

    .. math:: \mathrm{chrF} = \frac{(1 + \beta^2)\,P R}{\beta^2 P + R}, \quad \beta = 2

    chrF is in percent, 0 <= chrF <= 100.  P (precision) and R (recall) are means over n = 1 to 6: P is the fraction of the
    prediction's character n-grams that are in the reference, R the fraction of the reference's that are in the prediction.
    White space is removed; case and punctuation count.  An n for which either text has no n-gram is left out.  Source: Popović
    2015 (chrF: character n-gram F-score for automatic MT evaluation).  The values are those of sacrebleu 2.6.0 with its default
    settings, for single sentences (`nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`).

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
    return 100.0 * max(_f_score(_without_spaces(prediction), _without_spaces(reference)) for reference in references)


def _f_score(prediction: str, reference: str) -> float:
    longest = min(_LONGEST, len(prediction), len(reference))
    if longest == 0:
        return 0.0
    precision = recall = 0.0
    for n in range(1, longest + 1):
        given, wanted = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (prediction, reference))
        matches = (given & wanted).total()
        precision += matches / given.total()
        recall += matches / wanted.total()
    if precision + recall == 0:
        return 0.0
    precision, recall = precision / longest, recall / longest
    return (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def _score(answer: str, record: Record) -> float:
    return chrf(answer, record.references)


def _can_score(record: Record) -> bool:
    return any(map(_without_spaces, record.references))


METRIC = Metric(name="chrf", title="chrF", unit="%", score=_score, can_score=_can_score)
