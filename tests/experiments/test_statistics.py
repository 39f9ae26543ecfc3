"""Means over seeds, and the paired bootstrap against scipy's."""

import numpy as np
import pytest
from scipy import stats

from redistill.errors import DataError
from redistill.experiments.statistics import deviation, evenly, mean, paired_bootstrap, prompt_means, spread


def scores(values) -> dict[str, float]:
    return {f"p{i}": float(value) for i, value in enumerate(values)}


def pair(count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    hardness = rng.uniform(0, 80, count)
    return hardness + rng.normal(3, 6, count), hardness


def test_mean_and_deviation_over_seeds():
    assert mean([1.0, 2.0, 6.0]) == 3.0 and deviation([1.0, 2.0, 6.0]) == pytest.approx(np.sqrt(7))
    assert mean([]) is None and deviation([1.0]) is None


def test_the_interval_agrees_with_scipys_within_monte_carlo_error():
    a, b = pair()
    ours = paired_bootstrap(scores(a), scores(b), resamples=4000, seed=1)
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert ours.difference == pytest.approx((a - b).mean())
    # The standard error of an estimated 2.5 % quantile of 4,000 normal draws is 0.042 standard deviations; 4 of these.
    tolerance = 4 * 0.042 * np.std(a - b) / np.sqrt(len(a))
    assert ours.lower == pytest.approx(theirs.low, abs=tolerance) and ours.upper == pytest.approx(theirs.high, abs=tolerance)


def test_pairing_leaves_out_how_hard_the_prompts_are():
    a, b = pair()
    paired = paired_bootstrap(scores(a), scores(b))
    unpaired = paired_bootstrap(scores(a), scores(b[::-1].copy()))
    assert paired.upper - paired.lower < (unpaired.upper - unpaired.lower) / 3
    assert (paired.lower > 0 or paired.upper < 0) and unpaired.lower <= 0 <= unpaired.upper


def test_the_order_of_prompts_does_not_matter_and_the_seed_does():
    a, b = (scores(values) for values in pair())
    turned = dict(reversed(a.items()))
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(turned, b, seed=3) != paired_bootstrap(a, b, seed=4)


def test_many_prompts_are_drawn_in_blocks_without_changing_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr("redistill.experiments.statistics._BLOCK", 100)
    a, b = pair()
    interval = paired_bootstrap(scores(a), scores(b), resamples=501)
    assert interval.lower < interval.difference < interval.upper


def test_swapping_the_models_turns_the_interval_around():
    a, b = (scores(values) for values in pair())
    there, back = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert (back.difference, back.lower, back.upper) == pytest.approx((-there.difference, -there.upper, -there.lower))


def test_different_prompts_cannot_be_compared():
    with pytest.raises(DataError, match="1 prompts were answered by one model only, such as 'p2' by the first"):
        paired_bootstrap(scores([1, 2, 3]), scores([1, 2]))
    with pytest.raises(DataError, match="no prompts"):
        paired_bootstrap({}, {})
    with pytest.raises(DataError):
        prompt_means([{"a": 1.0}, {"b": 1.0}])


def test_each_prompt_counts_with_its_mean_over_seeds():
    assert prompt_means([{"a": 10.0, "b": 0.0}, {"b": 4.0, "a": 20.0}]) == {"a": 15.0, "b": 2.0}
    assert prompt_means([]) == {}


def test_spread_goes_from_the_lowest_to_the_highest_score():
    assert spread({"a": 5.0, "b": 1.0, "c": 3.0, "d": 1.0}, 3) == ["b", "c", "a"]
    assert spread({"a": 5.0}, 3) == ["a"] and spread({}, 3) == []
    assert evenly(100, 3)[0] == 0 and evenly(100, 3)[-1] == 99 and len(evenly(100, 12)) == 12
