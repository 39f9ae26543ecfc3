"""Which sequences are read together: every one once, within bounds, at the least cost."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.contracts import TokenSequence
from redistill.data.grouping import Reading, grouped, reading

COST = Reading(start=10, most=40)


def sequence(length, origin="dataset"):
    return TokenSequence(sample=0, token_ids=(1,) * length, supervised=(False,) + (True,) * (length - 1), origin=origin)


@st.composite
def draws(draw):
    """Gold and sampled sequences, some of them in both lists, some twice in one."""
    pool = [sequence(length) for length in draw(st.lists(st.integers(2, 30), min_size=1, max_size=6))]
    return draw(st.lists(st.sampled_from(pool), max_size=5)), draw(st.lists(st.sampled_from(pool), max_size=5))


def tokens(groups, cost):
    """What the groups cost by the formula; a sequence of both kinds is read once."""
    return sum(len(g) * max(len(s.token_ids) for s in g) + cost.start for g in groups)


@given(draws(), st.one_of(st.none(), st.integers(1, 4)))
def test_every_sequence_is_learned_from_once_as_what_it_is(draw, size):
    groups = grouped(*draw, size, COST)
    for kind in (0, 1):
        found = [id(s) for group in groups for s in group[kind]]
        assert sorted(found) == sorted(id(s) for s in draw[kind])
    assert all(gold or sampled for gold, sampled in groups)


@given(draws(), st.integers(1, 4))
def test_no_group_has_more_of_a_kind_than_its_size(draw, size):
    assert all(max(len(gold), len(sampled)) <= size for gold, sampled in grouped(*draw, size, COST))


@given(st.lists(st.integers(2, 60), min_size=1, max_size=8))
def test_without_a_size_the_padded_tokens_are_bounded(lengths):
    for gold, _ in grouped([sequence(length) for length in lengths], (), None, COST):
        assert len(gold) == 1 or len(gold) * max(len(s.token_ids) for s in gold) <= COST.most


@given(st.lists(st.integers(2, 30), min_size=1, max_size=7), st.one_of(st.none(), st.integers(1, 4)))
def test_no_other_cut_costs_less(lengths, size):
    ordered = sorted((sequence(length) for length in lengths), key=lambda s: -len(s.token_ids))
    costs = []
    for cuts in product([False, True], repeat=len(ordered) - 1):
        edges = [0, *(place for place, is_cut in enumerate(cuts, 1) if is_cut), len(ordered)]
        groups = [ordered[begin:end] for begin, end in pairwise(edges)]
        padded = [len(g) * len(g[0].token_ids) for g in groups]
        fits = [len(g) <= size if size else len(g) == 1 or p <= COST.most for g, p in zip(groups, padded)]
        if all(fits):
            costs.append(tokens(groups, COST))
    assert tokens([gold for gold, _ in grouped(ordered, (), size, COST)], COST) == min(costs)


def test_both_kinds_share_a_forward_where_their_lengths_are_near_and_not_where_padding_costs_more():
    gold, near, far = [sequence(10)], [sequence(9, "student")], [sequence(30, "student")]
    assert grouped(gold, near, None, COST) == [(gold, near)]
    assert grouped(gold, far, None, COST) == [([], far), (gold, [])]


def test_the_longest_come_first():
    """So that memory that is too small is found out before most of the work is done."""
    groups = grouped([sequence(length) for length in (5, 30, 12)], (), 1, COST)
    assert [len(gold[0].token_ids) for gold, _ in groups] == [30, 12, 5]


def test_nothing_is_cut_into_nothing():
    assert grouped((), (), None, COST) == []


@pytest.mark.parametrize(("device", "busier"), [("cpu", False), ("cuda:1", True)])
def test_an_accelerator_reads_more_at_once(device, busier):
    assert (reading(device).most > reading("cpu").most) == busier
