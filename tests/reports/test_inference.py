"""Claims about methods use training seeds as their unit; claims about trained students use prompts."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.seed_inference import DETECTED, NONE, simulate
from redistill.reports.inference import contrast, crossed


def strata(num_seeds: int, *sizes: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    of_seeds = rng.normal(0, 1, (num_seeds, 1))
    return [2 + of_seeds + rng.normal(0, 4, (1, size)) + rng.normal(0, 3, (num_seeds, size)) for size in sizes]


# --- the crossed model --------------------------------------------------------------------------------------------------


def test_variances_and_degrees_of_freedom_are_those_of_a_two_way_analysis_of_variance():
    (difference_SP,) = strata(4, 30)
    num_seeds, num_prompts = difference_SP.shape
    grand = difference_SP.mean()
    of_seeds = num_prompts * ((difference_SP.mean(1) - grand) ** 2).sum() / (num_seeds - 1)
    of_prompts = num_seeds * ((difference_SP.mean(0) - grand) ** 2).sum() / (num_prompts - 1)
    rest = difference_SP - difference_SP.mean(1)[:, None] - difference_SP.mean(0) + grand
    residual = (rest**2).sum() / ((num_seeds - 1) * (num_prompts - 1))
    total = max(of_seeds + of_prompts - residual, of_seeds, of_prompts)
    denominators = (num_seeds - 1, num_prompts - 1, (num_seeds - 1) * (num_prompts - 1))
    freedom = total**2 / sum(square**2 / n for square, n in zip((of_seeds, of_prompts, residual), denominators, strict=True))
    error = np.sqrt(total / difference_SP.size)

    interval, p, detectable = crossed([difference_SP])
    margin = stats.t.ppf(0.975, freedom) * error
    assert (interval.difference, interval.lower, interval.upper) == pytest.approx((grand, grand - margin, grand + margin))
    assert p == pytest.approx(2 * stats.t.sf(abs(grand) / error, freedom))
    assert detectable == pytest.approx((stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom)) * error)


def test_where_seeds_alone_vary_it_is_the_t_test_over_seeds():
    of_seeds = np.array([1.0, 2.5, 4.0, 2.0])
    interval, p, _ = crossed([np.repeat(of_seeds[:, None], 20, axis=1)])
    expected = stats.ttest_1samp(of_seeds, 0)
    low, high = expected.confidence_interval(0.95)
    assert (p, interval.lower, interval.upper) == pytest.approx((expected.pvalue, low, high))


def test_where_prompts_alone_vary_it_is_the_t_test_over_prompts():
    of_prompts = np.random.default_rng(3).normal(1, 4, 40)
    interval, p, _ = crossed([np.repeat(of_prompts[None], 3, axis=0)])
    expected = stats.ttest_1samp(of_prompts, 0)
    low, high = expected.confidence_interval(0.95)
    assert (p, interval.lower, interval.upper) == pytest.approx((expected.pvalue, low, high))


def test_an_average_of_two_equal_data_sets_is_the_data_set_with_less_noise_of_prompts():
    (one,), two = strata(3, 50), strata(3, 50, 50)
    assert crossed([one, one])[0].difference == pytest.approx(crossed([one])[0].difference)
    assert crossed(two)[0].difference == pytest.approx((two[0].mean() + two[1].mean()) / 2)


def test_the_sign_of_the_difference_changes_nothing_but_signs():
    both = strata(3, 20, 10)
    plus, minus = crossed(both), crossed([-stratum for stratum in both])
    assert (minus[0].lower, minus[0].upper, minus[1:]) == (-plus[0].upper, -plus[0].lower, plus[1:])


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (2.0, 0.0)])
def test_differences_without_any_variation(value, p):
    interval, found, detectable = crossed([np.full((3, 5), value)])
    assert (interval.lower, interval.upper, found, detectable) == (value, value, p, 0.0)


def test_a_single_prompt_leaves_the_variation_of_seeds():
    of_seeds = np.array([[1.0], [2.0], [4.0]])
    assert crossed([of_seeds])[1] == pytest.approx(stats.ttest_1samp(of_seeds[:, 0], 0).pvalue)


# --- which claim is made ------------------------------------------------------------------------------------------------


def test_two_common_seeds_make_a_claim_about_methods_and_fewer_about_students():
    (several,) = strata(3, 40)
    assert contrast([several], 3, 1).about == "methods"
    for num_seeds in (0, 1):
        found = contrast([several[:1]], num_seeds, 1)
        assert found.about == "students" and found.detectable > 0


def test_seeds_that_disagree_settle_nothing_although_the_prompts_agree():
    """The students of two seeds are far better and that of one is far worse: no claim about the method holds."""
    disagreeing = np.random.default_rng(1).normal(0, 1, (3, 200)) + np.array([[6.0], [5.0], [-4.0]])
    assert contrast([disagreeing], 3, 1).interval.lower < 0 and contrast([disagreeing], 3, 1).p > 0.05
    assert contrast([disagreeing.mean(axis=0, keepdims=True)], 0, 1).interval.lower > 0


def test_a_lower_score_that_is_better_counts_as_a_win_and_keeps_the_sign_of_the_difference():
    found = contrast([np.array([[-1.0, -2.0, 0.0]])], 1, -1)
    assert (found.wins, found.ties, found.losses) == (2, 1, 0) and found.interval.difference == -1.0


def test_one_prompt_and_one_seed_detect_nothing_that_can_be_stated():
    assert contrast([np.array([[1.0]])], 1, 1).detectable is None


# --- error rates, by simulation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("of_seeds", [0.0, 0.3, 0.6, 2.0])
@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_rejections_and_coverage_in_4000_comparisons(num_seeds: int, of_seeds: float, shared: float) -> None:
    cell = simulate(num_seeds, of_seeds, shared, NONE)
    assert cell.rejected <= 0.06 and cell.covered >= 0.93


def test_a_true_difference_of_the_detectable_size_is_found_in_about_four_of_five_comparisons():
    cell = simulate(5, 0.0, 1.0, DETECTED)
    assert cell.rejected == pytest.approx(0.8, abs=0.03)
