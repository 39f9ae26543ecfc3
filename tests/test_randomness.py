"""Randomness: numbers are a function of their key, and keys do not collide."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from redistill.randomness import generator, torch_seed

keys = st.tuples(st.integers(0, 2**31), st.sampled_from(["coin", "response", "tail"]), st.integers(0, 99), st.integers(0, 99))


@given(keys)
def test_a_key_gives_the_same_numbers_after_any_other_draws(key):
    first = generator(*key).random(5)
    generator(*key).random(100)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (generator(*key).random(5) == first).all()


@given(keys, keys)
def test_different_keys_give_different_numbers(one, other):
    same = generator(*one).integers(2**63) == generator(*other).integers(2**63)
    assert same == (one == other)


def test_keys_with_the_same_concatenation_are_distinct():
    alike = [(1, "a", 1, 11), (1, "a", 11, 1), (11, "a", 1, 1), (1, "a", 111), (1, "a1", 1, 1), (1, "a", "1", "1", "1")]
    assert len({torch_seed(*key) for key in alike}) == len(alike)


def test_the_numbers_of_a_stream_do_not_depend_on_their_count():
    """Token t of a response uses number t of its stream, for any length limit."""
    assert (generator(1, "response", 0).random(16)[:4] == generator(1, "response", 0).random(4)).all()


@pytest.mark.parametrize("over", ["seed", "step", "sample"])
def test_first_numbers_over_many_keys_are_uniform(over):
    key = {"seed": 3, "step": 5, "sample": 7}
    drawn = []
    for value in range(4000):
        k = key | {over: value}
        drawn.append(generator(k["seed"], "coin", k["step"], k["sample"]).random())
    assert kstest(drawn, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef([list(pair) for pair in pairwise(drawn)], rowvar=False)[0, 1]) < 0.06


def test_recorded_numbers_do_not_change():
    """Runs of earlier versions can be reproduced only if these do not change."""
    assert torch_seed(10, "dropout", 3, 0) == 8538476054172178105
    assert generator(10, "coin", 3, 7).random() == 0.13549746281573172


@given(keys)
def test_a_torch_seed_is_in_the_range_that_torch_accepts(key):
    seed = torch_seed(*key)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
