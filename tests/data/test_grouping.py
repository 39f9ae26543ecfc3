"""Partition into micro-batches: every sequence once, within the limits, at minimum cost."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.contracts import DrawItem, TokenSequence
from redistill.data.grouping import ReadCost, grouped, read_cost

COST = ReadCost(overhead_tokens=10, max_tokens=40)


GOLD, SAMPLED, BOTH = frozenset({"sft"}), frozenset({"distillation"}), frozenset({"sft", "distillation"})


def item(length, roles=GOLD, sample=0):
    ids, supervised = (1,) * length, (False,) + (True,) * (length - 1)
    return DrawItem(TokenSequence(sample=sample, token_ids=ids, supervised=supervised, origin="dataset"), roles)


@st.composite
def draws(draw):
    """Items of every role, some of them twice."""
    pool = st.builds(item, st.integers(2, 30), st.sampled_from([GOLD, SAMPLED, BOTH]), st.integers(0, 4))
    pool = draw(st.lists(pool, min_size=1, max_size=6))
    return draw(st.lists(st.sampled_from(pool), max_size=10))


def length(item):
    return len(item.sequence.token_ids)


def tokens(groups, cost):
    """The cost of the groups by the formula; an item with both roles is read once."""
    return sum(len(group) * max(map(length, group)) + cost.overhead_tokens for group in groups)


def plain(items):
    """The items as sorted plain values, independent of object identity."""
    return sorted((item.sequence.sample, length(item), sorted(item.roles)) for item in items)


@given(draws(), st.one_of(st.none(), st.integers(1, 4)))
def test_every_item_is_in_exactly_one_group_with_its_roles(items, size):
    groups = grouped(items, size, COST)
    assert plain(item for group in groups for item in group) == plain(items)
    assert all(groups)


@given(draws(), st.one_of(st.none(), st.integers(1, 4)))
def test_the_partition_does_not_depend_on_object_identity(items, size):
    copies = [DrawItem(replace(item.sequence), item.roles) for item in items]
    assert [plain(group) for group in grouped(copies, size, COST)] == [plain(group) for group in grouped(items, size, COST)]


@given(draws(), st.integers(1, 4))
def test_no_group_has_more_than_size_items_of_a_role(items, size):
    for group in grouped(items, size, COST):
        assert all(sum(role in item.roles for item in group) <= size for role in ("sft", "distillation"))


@given(st.lists(st.integers(2, 60), min_size=1, max_size=8))
def test_without_a_size_the_padded_tokens_are_bounded(lengths):
    for group in grouped(list(map(item, lengths)), None, COST):
        assert len(group) == 1 or len(group) * max(map(length, group)) <= COST.max_tokens


@given(st.lists(st.integers(2, 30), min_size=1, max_size=7), st.one_of(st.none(), st.integers(1, 4)))
def test_no_other_partition_costs_less(lengths, size):
    ordered = sorted(map(item, lengths), key=length, reverse=True)
    costs = []
    for cuts in product([False, True], repeat=len(ordered) - 1):
        edges = [0, *(index for index, is_cut in enumerate(cuts, 1) if is_cut), len(ordered)]
        groups = [ordered[begin:end] for begin, end in pairwise(edges)]
        padded = [len(group) * length(group[0]) for group in groups]
        fits = [len(g) <= size if size else len(g) == 1 or p <= COST.max_tokens for g, p in zip(groups, padded)]
        if all(fits):
            costs.append(tokens(groups, COST))
    assert tokens(grouped(ordered, size, COST), COST) == min(costs)


def test_both_roles_are_in_one_group_where_padding_costs_less_than_a_second_pass():
    gold, near, far = item(10), item(9, SAMPLED), item(30, SAMPLED)
    assert grouped([gold, near], None, COST) == [[gold, near]]
    assert grouped([gold, far], None, COST) == [[far], [gold]]


def test_the_longest_group_comes_first():
    """So that out-of-memory errors occur early."""
    groups = grouped([item(5), item(30), item(12)], 1, COST)
    assert [length(group[0]) for group in groups] == [30, 12, 5]


def test_no_items_have_no_groups():
    assert grouped((), None, COST) == []


@pytest.mark.parametrize(("device", "is_larger"), [("cpu", False), ("cuda:1", True)])
def test_an_accelerator_has_larger_groups(device, is_larger):
    assert (read_cost(device).max_tokens > read_cost("cpu").max_tokens) == is_larger
