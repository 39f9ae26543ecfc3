"""Sampling: exact on small rows, correct in distribution, robust to rounding, and never a class without mass."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from redistill.errors import TrainingError
from redistill.randomness import generator
from redistill.vocab_pass import NUMBERS_PER_DRAW, check_sampled, sample_rows


def descended(mass: np.ndarray, numbers: np.ndarray) -> int:
    """The class that a plain descent through ranges of 8^5, 8^4, ... classes samples."""
    start, end = 0, len(mass)
    for level, number in enumerate(numbers):
        width = 8 ** (NUMBERS_PER_DRAW - 1 - level)
        starts = np.arange(start, end, width)
        cumulative = np.cumsum([mass[first : min(first + width, end)].sum() for first in starts])
        start = int(starts[np.searchsorted(cumulative, number * cumulative[-1], side="right")])
        end = min(start + width, end)
    return start


@pytest.mark.parametrize(
    ("probabilities", "uniform", "token"),
    [
        ([0.25, 0.25, 0.5], 0.0, 0),
        ([0.25, 0.25, 0.5], 0.2499, 0),
        ([0.25, 0.25, 0.5], 0.25, 1),
        ([0.25, 0.25, 0.5], 0.5, 2),
        ([0.25, 0.25, 0.5], 1 - 2**-53, 2),
        ([0.0, 1.0, 0.0], 0.0, 1),
        ([0.0, 1.0, 0.0], 1 - 2**-53, 1),
        ([0.5, 0.0, 0.5], 0.5, 2),
        ([2.0, 0.0, 6.0], 0.25, 2),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 64, 200, 8**5, 5 * 8**5])
def test_of_a_few_neighbours_the_first_whose_cumulative_mass_exceeds_the_number_is_sampled(
    probabilities, uniform, token, before
):
    row = torch.tensor([[0.0] * before + probabilities + [0.0] * 70])
    numbers = torch.full((1, NUMBERS_PER_DRAW), uniform, dtype=torch.float64)
    assert sample_rows(row, numbers).tolist() == [before + token]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampled_frequencies_are_the_probabilities_and_massless_classes_are_never_sampled(dtype):
    random = generator(3, "chi-square")
    mass = np.where(random.random(200) < 0.3, 0.0, random.gamma(0.5, size=200))
    probabilities = torch.from_numpy(mass / mass.sum()).to(dtype)
    draws = 40_000
    tokens = sample_rows(probabilities.expand(draws, -1), torch.from_numpy(random.random((draws, NUMBERS_PER_DRAW))))
    counts = np.bincount(tokens.numpy(), minlength=200)
    possible = mass > 0
    assert counts[~possible].sum() == 0
    likely = possible & (mass / mass.sum() * draws >= 5)
    observed = np.append(counts[likely], counts[possible & ~likely].sum())
    expected = np.append(mass[likely], mass[possible & ~likely].sum()) / mass.sum() * draws
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001


@pytest.mark.parametrize("before", [6, 7, 61, 62, 63, 510, 511])
def test_neighbours_in_different_ranges_are_sampled_range_by_range(before):
    mass = np.array([0.0] * before + [0.25, 0.25, 0.5] + [0.0] * 70)
    for number in (0.0, 0.2499, 0.25, 0.5, 1 - 2**-53):
        numbers = np.full(NUMBERS_PER_DRAW, number)
        drawn = sample_rows(torch.from_numpy(mass)[None], torch.from_numpy(numbers)[None])
        assert drawn.tolist() == [descended(mass, numbers)]


@pytest.mark.parametrize("num_classes", [1, 8, 65, 333, 4_097, 70_000])
def test_sampling_agrees_with_a_plain_descent(num_classes):
    random = generator(4, "search", num_classes)
    masses = random.gamma(0.05, size=(50, num_classes)) * (random.random((50, num_classes)) < 0.7)
    masses[:, random.integers(num_classes)] += 1e-3
    numbers = random.random((50, NUMBERS_PER_DRAW))
    expected = [descended(row, each) for row, each in zip(masses, numbers)]
    assert sample_rows(torch.from_numpy(masses), torch.from_numpy(numbers)).tolist() == expected


def test_a_rounding_of_the_logits_hardly_ever_changes_the_sample():
    # Samples should differ about as often as the distributions do.  One number inverted over all 50,000 classes changed
    # 9 of these 3,000 samples.
    random = torch.Generator().manual_seed(6)
    changed = 0
    for _ in range(60):
        logits_NV = torch.randn(50, 50_000, generator=random)
        rounded_NV = logits_NV + 4e-5 * torch.randn(logits_NV.shape, generator=random)
        numbers_NK = torch.rand(50, NUMBERS_PER_DRAW, dtype=torch.float64, generator=random)
        before_N, after_N = (sample_rows(each.softmax(-1), numbers_NK) for each in (logits_NV, rounded_NV))
        changed += int((before_N != after_N).sum())
    assert changed <= 1


def test_massless_classes_are_never_sampled_where_the_cumulative_sum_rounds_unevenly(monkeypatch):
    # Accelerators sum in parallel: neighbouring partial sums may differ although the class between them has no mass.
    random = generator(5, "parallel-sum")
    exact = torch.Tensor.cumsum
    monkeypatch.setattr(
        torch.Tensor, "cumsum", lambda mass, dim: exact(mass, dim) * torch.from_numpy(random.uniform(0.9, 1.1, mass.shape))
    )
    probabilities = torch.zeros(5_000, 300)
    probabilities[:, 70::90] = 1 / 3
    tokens = sample_rows(probabilities, torch.from_numpy(random.random((5_000, NUMBERS_PER_DRAW))))
    assert set(tokens.tolist()) == {70, 160, 250}


@pytest.mark.parametrize("row", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_row_without_finite_mass_is_rejected(row):
    with pytest.raises(TrainingError, match=r"not finite.* lower the learning rate and resume from the last checkpoint"):
        check_sampled(int(sample_rows(torch.tensor([[1.0, 1.0], row]), torch.zeros(2, NUMBERS_PER_DRAW)).min()))
