"""Final number: which number counts, and which differences of its form are ignored."""

from decimal import Decimal

import pytest

from redistill.evaluation.metrics.final_number import METRIC, final_number, same_final_number
from redistill.records import Instruction, Record


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("They have 3 + 4 = 7 apples.", "7"),
        ("5 * 8 = <<5*8=40>>40\n#### 40", "40"),
        ("#### $1,250.50 of 2,000", "1250.50"),  # the first number after the mark
        ("#### 3\nWait.\n#### 4", "4"),
        ("It is 12 ####", "12"),  # nothing after the mark
        ("It fell to -3.5 degrees", "-3.5"),
        ("7-5", "5"),  # a difference, not a negative number
        ("(2)-1", "1"),
        ("1,2 and 3,4", "4"),
        ("12,345,678", "12345678"),
        ("half: .5", "0.5"),
        ("version 2.0.", "2.0"),
        ("\N{MINUS SIGN}5 degrees", "-5"),
        ("5\N{MINUS SIGN}3", "3"),
        ("about 1e5 or 2.5E-3", "0.0025"),
        ("it is 6e", "6"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("answer", "references", "same"),
    [
        ("So 1,000.", ["2 * 500\n#### 1000"], True),
        ("7.00", ["#### 7"], True),
        ("8", ["#### 7", "#### 8"], True),
        ("7", ["#### 70"], False),
        ("none", ["none"], False),
        ("7", [], False),
    ],
)
def test_answers_are_compared_by_value(answer: str, references: list[str], same: bool) -> None:
    assert same_final_number(answer, references) is same


def test_a_record_without_a_number_cannot_be_scored() -> None:
    prompt = Instruction("How many?")
    assert METRIC.can_score_record(Record(record_id="a", prompt=prompt, references=("#### 7",)))
    assert not METRIC.can_score_record(Record(record_id="b", prompt=prompt, references=("seven",)))
