"""Laws of curves in bins and of evenly spaced items."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.reports.thinning import MAX_ITEMS, MAX_POINTS, Curve, Spaced

numbers = st.floats(-1e6, 1e6)
cuts = st.lists(st.integers(1, 400), min_size=1, max_size=30)


def curve_of(steps: np.ndarray, values: np.ndarray, parts: Sequence[int]) -> Curve:
    """The curve of points that arrive in parts of these sizes, the rest at once."""
    curve = Curve()
    for chunk in np.split(np.arange(len(steps)), np.cumsum(parts)):
        curve.extend(steps[chunk], values[chunk])
    return curve


@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), cuts)
@settings(max_examples=60, deadline=None)
def test_bins_keep_ends_extremes_number_and_mean(total: int, seed: int, parts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    steps, values = np.cumsum(rng.integers(1, 4, total)).astype(float), rng.standard_cauchy(total)
    bins = curve_of(steps, values, parts).bins()
    assert len(bins.steps) <= MAX_POINTS
    assert (bins.steps[0], bins.means[0], bins.steps[-1], bins.means[-1]) == (steps[0], values[0], steps[-1], values[-1])
    assert (bins.lows.min(), bins.highs.max()) == (values.min(), values.max())
    assert bins.counts.sum() == total and np.all(np.diff(bins.steps) > 0)
    assert np.average(bins.means, weights=bins.counts) == pytest.approx(values.mean())
    assert np.all((bins.lows <= bins.means + 1e-9) & (bins.means <= bins.highs + 1e-9))


@given(st.lists(numbers, min_size=1, max_size=MAX_POINTS), cuts)
@settings(max_examples=40, deadline=None)
def test_the_bins_of_a_short_series_are_its_points(values: list[float], parts: list[int]) -> None:
    steps = np.arange(len(values), dtype=float)
    bins = curve_of(steps, np.array(values), parts).bins()
    for column in (bins.means, bins.lows, bins.highs):
        np.testing.assert_array_equal(column, values)
    np.testing.assert_array_equal(bins.steps, steps)


@given(st.integers(1, 3000), cuts, cuts)
@settings(max_examples=30, deadline=None)
def test_bins_do_not_depend_on_the_parts_in_which_points_arrive(total: int, some: list[int], others: list[int]) -> None:
    steps = np.arange(total, dtype=float)
    for one, other in zip(*(curve_of(steps, steps % 7, parts).bins() for parts in (some, others)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_bin_has_the_mean_and_the_range_of_its_points() -> None:
    values = np.random.default_rng(3).random(10_000)
    bins = curve_of(np.arange(10_000.0), values, [1000] * 9).bins()
    ends = np.cumsum(bins.counts).astype(int)
    for column, reduce in ((bins.means, np.mean), (bins.lows, np.min), (bins.highs, np.max)):
        expected = [reduce(part) for part in np.split(values, ends[:-1])]
        np.testing.assert_allclose(column, expected, rtol=1e-12)


def test_points_that_are_not_finite_are_omitted() -> None:
    curve = Curve()
    curve.extend(np.array([np.nan, 2.0]), np.array([1.0, np.inf]))
    assert not curve and len(curve.bins().steps) == 0
    curve.extend(np.array([3.0]), np.array([4.0]))
    assert curve and curve.bins().means.tolist() == [4.0]


@pytest.mark.parametrize("total", [1, 2, 50, 5000])
def test_zeros_have_the_steps_of_the_series_and_do_not_share_its_values(total: int) -> None:
    curve = curve_of(np.arange(float(total)), np.ones(total), [])
    zeros = curve.zeros()
    zeros.extend(np.array([total + 1.0]), np.array([1.0]))
    assert curve.bins().means.tolist() == [1.0] * len(curve.bins().means)
    curve.extend(np.array([total + 1.0]), np.array([0.5]))
    np.testing.assert_array_equal(zeros.bins().steps, curve.bins().steps)
    assert zeros.bins().highs[:-1].max() == 0.0 and zeros.bins().means[-1] == 1.0


# --- items --------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 20 * MAX_ITEMS), st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_spaced_items_include_both_ends_and_are_even(total: int, number: int) -> None:
    spaced = Spaced[int]()
    for item in range(total):
        spaced.add(item)
    items = list(spaced.items(number))
    assert spaced.count == total and len(items) == min(total, number)
    assert items[0] == 0 and items[-1] == total - 1
    gap = (total - 1) / max(1, len(items) - 1)
    assert all(abs(later - earlier - gap) <= 0.01 * total + 2 for earlier, later in pairwise(items))
    assert len(spaced.items(total)) <= MAX_ITEMS + 1


def test_all_items_of_a_short_stream_are_kept() -> None:
    spaced = Spaced[int]()
    assert list(spaced.items(5)) == []
    for item in range(MAX_ITEMS):
        spaced.add(item)
    assert list(spaced.items(MAX_ITEMS)) == list(range(MAX_ITEMS))
