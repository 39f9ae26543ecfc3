"""Randomness: a number belongs to its key, and keys do not collide."""

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
def test_a_key_gives_the_same_numbers_whatever_was_drawn_before(key):
    first = generator(*key).random(5)
    generator(*key).random(100)
    np.random.seed(0)
    torch.manual_seed(0)
    assert (generator(*key).random(5) == first).all()


@given(keys, keys)
def test_other_keys_give_other_numbers(one, other):
    same = generator(*one).integers(2**63) == generator(*other).integers(2**63)
    assert same == (one == other)


def test_keys_are_told_apart_where_their_text_runs_together():
    alike = [(1, "a", 1, 11), (1, "a", 11, 1), (11, "a", 1, 1), (1, "a", 111), (1, "a1", 1, 1), (1, "a", "1", "1", "1")]
    assert len({torch_seed(*key) for key in alike}) == len(alike)


def test_the_numbers_of_a_stream_do_not_depend_on_how_many_are_drawn():
    """Token t of a response is number t of its stream, however long the budget."""
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


def test_known_numbers_stay_known():
    """Runs of earlier versions can be repeated only as long as these do not change."""
    assert torch_seed(10, "dropout", 3, 0) == 8538476054172178105
    assert generator(10, "coin", 3, 7).random() == 0.13549746281573172


@given(keys)
def test_a_seed_for_torch_is_one_that_torch_takes(key):
    seed = torch_seed(*key)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
