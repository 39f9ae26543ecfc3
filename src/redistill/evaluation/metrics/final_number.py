"""Final number: whether answer and reference end with the same number (GSM8K)."""

import re
from collections.abc import Sequence
from decimal import Decimal

from redistill.records import Metric, Record

_NUMBER = re.compile(
    r"(?:(?<![\w.)])[-\N{MINUS SIGN}])?\$?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?"
)
_FINAL = "####"


def final_number(text: str) -> Decimal | None:
    """Return the final number of a text, or None if the text has no number.

    Answers of GSM8K end with "####" and a number.  The final number is the first number after the last "####", or the last
    number of the text if no number follows a "####".  Thousands separators and a dollar sign are ignored; "7" and "7.00"
    are the same number.  A hyphen is a minus sign, unless it follows a letter, a digit, an underscore, a full stop or a
    closing bracket.

    Source: own, for answers in the form of GSM8K (Cobbe et al. 2021, arXiv 2110.14168).

    Args:
        text: An answer or a reference.

    Example:
        >>> final_number("6 * 7 = <<6*7=42>>42 eggs.\\n#### 42"), final_number("She pays $1,250.50."), final_number("none")
        (Decimal('42'), Decimal('1250.50'), None)
    """
    before, mark, after = text.rpartition(_FINAL)
    found = _NUMBER.findall(after)
    if not found and mark:
        found = _NUMBER.findall(before)
        mark = ""
    if not found:
        return None
    number = found[0] if mark else found[-1]
    return Decimal(number.replace(",", "").replace("$", "").replace("\N{MINUS SIGN}", "-"))


def same_final_number(prediction: str, references: Sequence[str]) -> bool:
    """Return whether the final number of a text equals that of a reference.

    Source: the accuracy of GSM8K (Cobbe et al. 2021, arXiv 2110.14168).  In addition, an answer without "####" is scored by its
    last number.

    Args:
        prediction: The text to score.
        references: Correct answers.  References without a number are ignored.

    Returns:
        True if the final numbers are equal.

    Example:
        >>> same_final_number("So there are 1,000 of them.", ["2 * 500 = 1000\\n#### 1000"])
        True
    """
    number = final_number(prediction)
    return number is not None and number in {final_number(reference) for reference in references}


def _score(answer: str, record: Record) -> bool:
    return same_final_number(answer, record.references)


def _can_score(record: Record) -> bool:
    return any(final_number(reference) is not None for reference in record.references)


METRIC = Metric(name="final_number", title="final number", unit="fraction", score=_score, binary=True, can_score=_can_score)
