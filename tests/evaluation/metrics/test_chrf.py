"""chrF compared with sacrebleu, and its properties."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import DataError
from redistill.evaluation.metrics.chrf import chrf

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "chrf.json").read_text(encoding="utf-8"))["cases"]
texts = st.text(alphabet="ab c爱д", max_size=12)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["prediction"][:20])
def test_equals_the_score_of_sacrebleu(case):
    assert chrf(case["prediction"], case["references"]) == pytest.approx(case["chrf"], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_the_score_is_the_maximum_over_references_and_lies_between_0_and_100(prediction, references):
    score = chrf(prediction, references)
    assert score == max(chrf(prediction, [reference]) for reference in references) and 0 <= score <= 100


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_the_score_is_100_for_equal_texts_and_0_without_a_common_character(prediction, reference):
    letters, wanted = prediction.replace(" ", ""), reference.replace(" ", "")
    assert chrf(prediction, [prediction]) == pytest.approx(100.0 if letters else 0.0)
    assert (chrf(prediction, [reference]) == 0.0) == (not set(letters) & set(wanted))


def test_empty_references_raise_an_error_with_a_remedy():
    with pytest.raises(DataError, match=r"references = \[\]: must not be empty; remove the prompt"):
        chrf("a text", [])
