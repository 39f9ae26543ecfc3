"""The sampler: exact on small rows, right in distribution, and never a class without mass."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from redistill.errors import TrainingError
from redistill.randomness import generator
from redistill.vocab_pass import sample_rows


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
@pytest.mark.parametrize("before", [0, 61, 62, 63, 64, 200])
def test_the_first_class_whose_cumulative_mass_exceeds_the_number_is_drawn(probabilities, uniform, token, before):
    row = torch.tensor([[0.0] * before + probabilities + [0.0] * 70])
    assert sample_rows(row, torch.tensor([uniform], dtype=torch.float64)).tolist() == [before + token]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampled_frequencies_are_the_probabilities_and_massless_classes_never_come(dtype):
    random = generator(3, "chi-square")
    mass = np.where(random.random(200) < 0.3, 0.0, random.gamma(0.5, size=200))
    probabilities = torch.from_numpy(mass / mass.sum()).to(dtype)
    draws = 40_000
    tokens = sample_rows(probabilities.expand(draws, -1), torch.from_numpy(random.random(draws)))
    counts = np.bincount(tokens.numpy(), minlength=200)
    possible = mass > 0
    assert counts[~possible].sum() == 0
    likely = possible & (mass / mass.sum() * draws >= 5)
    observed = np.append(counts[likely], counts[possible & ~likely].sum())
    expected = np.append(mass[likely], mass[possible & ~likely].sum()) / mass.sum() * draws
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.001


def test_sampling_agrees_with_a_plain_search_in_the_cumulative_sum():
    random = generator(4, "search")
    probabilities = random.dirichlet(np.full(333, 0.05), size=50)
    uniforms = random.random(50)
    expected = [np.searchsorted(np.cumsum(row), u * row.sum(), side="right") for row, u in zip(probabilities, uniforms)]
    assert sample_rows(torch.from_numpy(probabilities), torch.from_numpy(uniforms)).tolist() == expected


def test_massless_classes_never_come_where_the_cumulative_sum_rounds_unevenly(monkeypatch):
    # Accelerators sum in parallel: neighbouring partial sums may differ although the class between them has no mass.
    random = generator(5, "parallel-sum")
    exact = torch.Tensor.cumsum
    monkeypatch.setattr(
        torch.Tensor, "cumsum", lambda mass, dim: exact(mass, dim) * torch.from_numpy(random.uniform(0.9, 1.1, mass.shape))
    )
    probabilities = torch.zeros(5_000, 300)
    probabilities[:, 70::90] = 1 / 3
    tokens = sample_rows(probabilities, torch.from_numpy(random.random(5_000)))
    assert set(tokens.tolist()) == {70, 160, 250}


@pytest.mark.parametrize("row", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_row_that_no_class_can_be_drawn_from_is_refused(row):
    with pytest.raises(TrainingError, match=r"not finite.* lower the learning rate and resume from the last checkpoint"):
        sample_rows(torch.tensor([row]), torch.zeros(1))
