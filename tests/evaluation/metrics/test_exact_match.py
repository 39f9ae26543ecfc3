"""Exact match: which differences it ignores."""

import pytest

from redistill.evaluation.metrics.exact_match import exact_match


@pytest.mark.parametrize(
    ("prediction", "references", "equal"),
    [
        ("Blue.", ["red", "blue"], True),
        ("  new\n york ", ["New York!"], True),
        ("the cat", ["cat"], False),  # articles stay
        ("", ["cat"], False),
        ("anything", [], False),
    ],
)
def test_exact_match_ignores_case_punctuation_and_spaces_only(prediction, references, equal):
    assert exact_match(prediction, references) is equal
