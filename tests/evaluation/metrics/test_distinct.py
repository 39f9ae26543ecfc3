"""distinct-n over several texts."""

import pytest

from redistill.evaluation.metrics.distinct import distinct_n


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
def test_distinct_n_is_the_fraction_of_distinct_n_grams(texts, n, share):
    assert distinct_n(texts, n) == share
