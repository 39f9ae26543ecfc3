"""Valid metrics, and how their values are shown."""

import pytest

from redistill.errors import ConfigError
from redistill.records import Metric


def metric(**changes):
    return Metric(**{"name": "mine", "title": "My score", "score": lambda answer, record: 1.0} | changes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("name", "a b"), ("name", ""), ("name", "é"), ("name", "tokens"), ("name", "cross_entropy"), ("title", " ")],
        *[("better", "larger"), ("needs", "luck")],
    ],
)
def test_an_invalid_metric_is_rejected(field, value):
    with pytest.raises(ConfigError, match=f"^{field} = "):
        metric(**{field: value})


@pytest.mark.parametrize(
    ("unit", "value", "shown"),
    [("%", 12.345678, "12.35"), ("fraction", 0.125, "12.5 %"), ("words", 3, "3.00 words"), ("", 3, "3.00")],
)
def test_a_value_is_shown_in_its_unit(unit, value, shown):
    assert metric(unit=unit).shown(value) == shown


def test_goodness_is_higher_for_the_better_value():
    assert metric(better="higher").goodness(2.0) > metric(better="higher").goodness(1.0)
    assert metric(better="lower").goodness(2.0) < metric(better="lower").goodness(1.0)


def test_the_mean_does_not_depend_on_the_order_of_scores():
    scores = [1e16, 1.0, -1e16, 0.5]
    assert metric().aggregated(scores) == metric().aggregated(scores[::-1]) == 0.375
