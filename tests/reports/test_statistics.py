"""Means over seeds, and intervals and p-values checked with SciPy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from redistill.errors import DataError
from redistill.reports.statistics import (
    Interval,
    deviation,
    evenly,
    holm,
    mean,
    paired_bootstrap,
    paired_differences,
    prompt_means,
    sign_flip,
    spread,
    win_tie_loss,
)

# The standard error of an estimated 2.5 % quantile of 4,000 normal samples is 0.042 standard deviations; allow 4 of these.
TOLERANCE = 4 * 0.042


def scores(values) -> dict[str, float]:
    return {f"p{i:03}": float(value) for i, value in enumerate(values)}


def pair(count: int = 60, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    hardness = rng.uniform(0, 80, count)
    return hardness + rng.normal(3, 6, count), hardness


def stratum(a, b) -> np.ndarray:
    return paired_differences([(scores(a), scores(b))])


def assert_close(ours: Interval, low: float, high: float, standard_error: float) -> None:
    assert ours.lower == pytest.approx(low, abs=TOLERANCE * standard_error)
    assert ours.upper == pytest.approx(high, abs=TOLERANCE * standard_error)


def test_mean_and_deviation_over_seeds():
    assert mean([1.0, 2.0, 6.0]) == 3.0 and deviation([1.0, 2.0, 6.0]) == pytest.approx(np.sqrt(7))
    assert mean([]) is None and deviation([1.0]) is None


# --- intervals ----------------------------------------------------------------------------------------------------------


def test_the_interval_agrees_with_scipy_within_monte_carlo_error():
    a, b = pair()
    ours = paired_bootstrap([stratum(a, b)], resamples=4000, seed=1)
    theirs = stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="percentile", rng=0).confidence_interval
    assert ours.difference == pytest.approx((a - b).mean())
    assert_close(ours, theirs.low, theirs.high, np.std(a - b) / np.sqrt(len(a)))


def test_the_interval_of_an_average_agrees_with_scipy_for_several_samples():
    (a, b), (c, d) = pair(60, 0), pair(15, 1)
    ours = paired_bootstrap([stratum(a, b), stratum(c, d)], resamples=4000)
    theirs = stats.bootstrap(
        (a - b, c - d),
        lambda x, y, axis: (x.mean(axis=axis) + y.mean(axis=axis)) / 2,
        n_resamples=20_000,
        method="percentile",
        rng=0,
    )
    assert ours.difference == pytest.approx(((a - b).mean() + (c - d).mean()) / 2)
    assert_close(ours, *theirs.confidence_interval, theirs.standard_error)


def test_training_seeds_are_averaged_before_prompts_are_resampled():
    one = stratum(*pair())
    alone, spread_out = paired_bootstrap([one]), paired_bootstrap([one + np.array([[-3.0], [0.0], [3.0]])])
    assert (spread_out.lower, spread_out.upper) == pytest.approx((alone.lower, alone.upper))


def test_pairing_removes_the_difficulty_of_the_prompts():
    a, b = pair()
    paired = paired_bootstrap([stratum(a, b)])
    unpaired = paired_bootstrap([stratum(a, b[::-1].copy())])
    assert paired.upper - paired.lower < (unpaired.upper - unpaired.lower) / 3
    assert (paired.lower > 0 or paired.upper < 0) and unpaired.lower <= 0 <= unpaired.upper


def test_the_order_of_prompts_does_not_matter_and_the_seed_does():
    a, b = (scores(values) for values in pair())
    reordered = paired_differences([(dict(reversed(a.items())), b)])
    straight = paired_differences([(a, b)])
    assert paired_bootstrap([straight], seed=3) == paired_bootstrap([reordered], seed=3) != paired_bootstrap([straight], seed=4)


def test_resampling_in_blocks_keeps_the_number_of_resamples(monkeypatch):
    monkeypatch.setattr("redistill.reports.statistics._BLOCK", 100)
    interval = paired_bootstrap([stratum(*pair())], resamples=501)
    assert interval.lower < interval.difference < interval.upper


def test_swapping_the_models_negates_the_interval_and_keeps_p():
    a, b = pair(25)
    there, back = paired_bootstrap([stratum(a, b)]), paired_bootstrap([stratum(b, a)])
    assert (back.difference, back.lower, back.upper) == pytest.approx((-there.difference, -there.upper, -there.lower))
    assert sign_flip([stratum(a, b)]) == sign_flip([stratum(b, a)])


# --- p-values -----------------------------------------------------------------------------------------------------------


def scipys_p(a, b, resamples: float) -> float:
    def statistic(x, y, axis):
        return x.mean(axis=axis) - y.mean(axis=axis)

    return stats.permutation_test((a, b), statistic, permutation_type="samples", n_resamples=resamples, rng=0).pvalue


@pytest.mark.parametrize("count", [3, 8, 12])
def test_with_few_prompts_p_equals_that_of_scipy(count):
    a, b = pair(count)
    assert sign_flip([stratum(a, b)]) == pytest.approx(scipys_p(a, b, np.inf))


def test_with_many_prompts_p_agrees_with_scipy_within_monte_carlo_error():
    a, b = pair(60)
    a -= 1.9  # gives p near 0.1, which is neither 0 nor 1
    theirs = scipys_p(a, b, 40_000)
    assert 0.02 < theirs < 0.5
    assert sign_flip([stratum(a, b)]) == pytest.approx(theirs, abs=5 * np.sqrt(theirs * (1 - theirs) / 9999))


def test_on_signed_ranks_p_is_that_of_wilcoxon():
    a, b = pair(11)
    ranks = stats.rankdata(np.abs(a - b)) * np.sign(a - b)
    assert sign_flip([ranks[None]]) == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue)


def test_p_of_an_average_weights_data_sets_equally():
    strata = [np.array([[1.0, 2.0, -0.5]]), np.array([[4.0, 1.0, 0.5, -0.2, 3.0]])]
    flipped = [
        abs(np.mean(np.array(signs[:3]) * strata[0]) + np.mean(np.array(signs[3:]) * strata[1]))
        for signs in itertools.product((1, -1), repeat=8)
    ]
    assert sign_flip(strata) == pytest.approx(np.mean(np.array(flipped) >= flipped[0] - 1e-12))


def test_p_is_one_without_a_difference_and_never_zero():
    assert sign_flip([np.zeros((2, 5))]) == 1.0 and sign_flip([np.zeros((1, 50))]) == 1.0
    assert sign_flip([np.ones((1, 50))], flips=99) == 0.01
    assert sign_flip([np.array([[1.0] * 50, [-1.0] * 50])]) == 1.0  # training seeds are averaged first


def test_holm_is_the_step_down_maximum_of_the_rising_p_values():
    given = [0.02, 0.001, 0.3, 0.011, 0.2]
    rising = sorted(given)
    oracle = {p: max(min(1.0, (5 - j) * rising[j]) for j in range(i + 1)) for i, p in enumerate(rising)}
    assert holm(given) == pytest.approx([oracle[p] for p in given])
    assert holm([0.04]) == [0.04] and holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]


def test_wins_ties_and_losses_use_the_tie_threshold():
    assert win_tie_loss([np.array([[1.0, 0.0, -2.0, 1e-10]]), np.array([[3.0]])]) == (2, 2, 1)
    assert win_tie_loss([np.array([[1.0, 2.0], [-1.0, 1.0]])]) == (1, 1, 0)


# --- pairing ------------------------------------------------------------------------------------------------------------


def test_different_prompts_cannot_be_compared():
    with pytest.raises(DataError, match=r"1 prompts have a response of only one model, such as 'p002' \(only the first"):
        paired_differences([(scores([1, 2, 3]), scores([1, 2]))])
    with pytest.raises(DataError, match="1 prompts have a response of only one model"):
        paired_differences([(scores([1, 2]), scores([1, 2])), (scores([1]), scores([1]))])
    with pytest.raises(DataError, match="no prompts"):
        paired_differences([({}, {})])
    with pytest.raises(DataError):
        prompt_means([{"a": 1.0}, {"b": 1.0}])


def test_prompt_means_are_over_seeds():
    assert prompt_means([{"a": 10.0, "b": 0.0}, {"b": 4.0, "a": 20.0}]) == {"a": 15.0, "b": 2.0}
    assert prompt_means([]) == {}


def test_spread_ranges_from_the_lowest_to_the_highest_score():
    assert spread({"a": 5.0, "b": 1.0, "c": 3.0, "d": 1.0}, 3) == ["b", "c", "a"]
    assert spread({"a": 5.0}, 3) == ["a"] and spread({}, 3) == []
    assert evenly(100, 3)[0] == 0 and evenly(100, 3)[-1] == 99 and len(evenly(100, 12)) == 12
