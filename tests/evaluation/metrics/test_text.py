"""ROUGE-L against published numbers and a longest common subsequence written out; exact match; distinct-n."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.errors import DataError
from redistill.evaluation.metrics.text import distinct_n, exact_match, rouge_l

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
def test_equals_the_golden_score(case):
    assert rouge_l(case["prediction"], case["references"]) == pytest.approx(case["rouge_l"], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(short_texts, short_texts)
def test_is_the_f1_of_the_longest_common_subsequence(prediction, reference):
    assert rouge_l(prediction, [reference]) == pytest.approx(lcs_f1(prediction, reference))


@settings(max_examples=30, deadline=None)
@given(short_texts, st.lists(short_texts, min_size=1, max_size=4))
def test_the_best_reference_counts(prediction, references):
    assert rouge_l(prediction, references) == max(rouge_l(prediction, [reference]) for reference in references)


def test_case_punctuation_and_inflection_do_not_matter():
    assert rouge_l("The Gardens, WATERED!", ["the garden watering"]) == pytest.approx(100.0)


def test_no_references_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match="no references"):
        rouge_l("a text", [])


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


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        (["a b c"], 1, 1.0),
        (["a a a a"], 1, 0.25),
        (["A b", "a B"], 2, 0.5),
        (["a b", "c d"], 2, 1.0),  # "b c" crosses from text to text and is no bigram
        (["a"], 2, 0.0),
        ([], 1, 0.0),
    ],
)
def test_distinct_n_is_different_over_all(texts, n, share):
    assert distinct_n(texts, n) == share


def test_importing_rouge_does_not_import_torch_or_nltk():
    code = "import sys, redistill.evaluation.metrics.text; print(sorted({'torch', 'nltk'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
