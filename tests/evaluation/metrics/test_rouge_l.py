"""ROUGE-L compared with published numbers and with a plain longest common subsequence."""

import functools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import DataError
from redistill.evaluation.metrics.rouge_l import rouge_l

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "rouge_l.json").read_text(encoding="utf-8"))["cases"]

# Words of at most three letters are never stemmed, so the oracle needs no stemmer.
short_texts = st.lists(st.sampled_from(["a", "cat", "sat", "on", "7", "the"]), max_size=8).map(" ".join)


def lcs_f1(prediction: str, reference: str) -> float:
    p, r = prediction.split(), reference.split()

    @functools.cache
    def longest(i: int, j: int) -> int:
        if i == len(p) or j == len(r):
            return 0
        return 1 + longest(i + 1, j + 1) if p[i] == r[j] else max(longest(i + 1, j), longest(i, j + 1))

    return 200.0 * longest(0, 0) / (len(p) + len(r)) if p and r else 0.0


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["prediction"][:20])
def test_equals_the_reference_score(case):
    assert rouge_l(case["prediction"], case["references"]) == pytest.approx(case["rouge_l"], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(short_texts, short_texts)
def test_is_the_f1_of_the_longest_common_subsequence(prediction, reference):
    assert rouge_l(prediction, [reference]) == pytest.approx(lcs_f1(prediction, reference))


@settings(max_examples=30, deadline=None)
@given(short_texts, st.lists(short_texts, min_size=1, max_size=4))
def test_the_score_is_the_maximum_over_references(prediction, references):
    assert rouge_l(prediction, references) == max(rouge_l(prediction, [reference]) for reference in references)


def test_case_punctuation_and_inflection_do_not_matter():
    assert rouge_l("The Gardens, WATERED!", ["the garden watering"]) == pytest.approx(100.0)


def test_empty_references_raise_an_error_with_a_remedy():
    with pytest.raises(DataError, match=r"references = \[\]: must not be empty; remove the prompt"):
        rouge_l("a text", [])
