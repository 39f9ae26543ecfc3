"""Collation: the rows of a batch, their targets, and the terms that count them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redistill.contracts import DrawItem, TokenSequence, items_of
from redistill.data.collate import collate, empty_batch
from redistill.losses.span import SpanConfig, pair_weights

PAD = 99


def sequence(ids, mask, *, sample=0, origin="dataset", spans=()):
    supervised = tuple(letter == "x" for letter in mask)
    return TokenSequence(sample=sample, token_ids=tuple(ids), supervised=supervised, origin=origin, spans=spans)


def gold(*sequences):
    return items_of(sequences, "sft")


def sampled(*sequences):
    return items_of(sequences, "distillation")


def both(*sequences):
    return items_of(sequences, "sft", "distillation")


def test_rows_are_one_position_before_their_targets():
    batch = collate(gold(sequence([5, 6, 7, 8], "..xx")), pad_id=PAD)
    assert batch.position_N.tolist() == [1, 2]
    assert batch.target_N.tolist() == [7, 8]


def test_short_sequences_are_padded_on_the_right_and_padding_has_no_rows():
    short, long = sequence([1, 2], ".x", sample=3), sequence([4, 5, 6, 7], ".xxx", sample=8, origin="student")
    batch = collate([*gold(short), *sampled(long)], pad_id=PAD)
    assert batch.input_ids_BT.tolist() == [[4, 5, 6, 7], [1, 2, PAD, PAD]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.position_N.tolist() == [0, 1, 2, 4]
    assert batch.target_N.tolist() == [5, 6, 7, 2]
    assert batch.sequence_N.tolist() == [0, 0, 0, 1]
    assert (batch.samples, batch.origins) == ((8, 3), ("student", "dataset"))


def test_a_pad_id_that_is_a_target_stays_a_target():
    """Pad = EOS: the mask is by position."""
    batch = collate(gold(sequence([1, 2, PAD], "..x"), sequence([1, 2, 3, PAD], "..xx")), pad_id=PAD)
    assert batch.target_N.tolist() == [PAD, 3, PAD]


def test_sampled_sequences_come_first_and_only_they_are_sampled_rows():
    answer, draft = sequence([1, 2, 3], ".xx"), sequence([4, 5, 6, 7], "..xx", origin="student")
    batch = collate([*gold(answer), *sampled(draft)], pad_id=PAD)
    assert (batch.num_sampled, batch.num_sampled_rows) == (1, 2)
    assert batch.sft_N.tolist() == [False, False, True, True] and batch.num_sft_rows == 2


def test_a_sequence_with_both_roles_is_read_once_and_carries_both():
    shared, other = sequence([1, 2, 3], ".xx"), sequence([4, 5], ".x", origin="student")
    gold_of_other = sequence([4, 6], ".x")
    batch = collate([*gold(gold_of_other), *both(shared), *sampled(other)], pad_id=PAD)
    assert batch.input_ids_BT.shape[0] == 3
    assert batch.sft_N.tolist() == [True, True, False, True] and batch.num_sft_rows == 3
    assert (batch.num_sampled, batch.num_sampled_rows) == (2, 3)


def test_items_are_merged_by_role_and_not_by_identity():
    one = sequence([1, 2], ".x")
    for each in (one, replace(one)):
        assert collate(both(each), pad_id=PAD).input_ids_BT.shape[0] == 1
        assert collate([*gold(one), *sampled(each)], pad_id=PAD).input_ids_BT.shape[0] == 2, "two items are two sequences"


def test_several_runs_of_targets_are_rows_of_one_sequence():
    batch = collate(gold(sequence([1, 2, 3, 4, 5], ".x.xx")), pad_id=PAD)
    assert batch.position_N.tolist() == [0, 2, 3] and batch.target_N.tolist() == [2, 4, 5]


def test_pair_weights_are_those_of_the_span_loss_sample_by_sample():
    first = sequence([1, 2, 3, 4, 5], "..xxx", origin="student", spans=((0, 2), (1, 3)))
    second = sequence([1, 2, 3], ".xx", origin="revised")
    answer = sequence([1, 2, 3], ".xx", spans=((0, 2),))
    config = SpanConfig(denominator="pairs")
    batch = collate([*gold(answer), *sampled(first, second)], pad_id=PAD, span_config=config)
    expected = [*pair_weights(first.spans, 3, config).tolist(), 0.0, 0.0, 0.0, 0.0]
    assert batch.pair_weight_N.tolist() == expected, "gold rows have no teacher, so no pairs"
    assert batch.num_span_samples == 1


def test_phrases_are_ranges_of_rows_of_the_batch_weighted_by_their_number():
    first = sequence([1, 2, 3, 4, 5], "..xxx", origin="student", spans=((0, 2), (1, 3)))
    second = sequence([1, 2, 3, 4], ".xxx", origin="revised", spans=((0, 3), (1, 2)))
    batch = collate([*gold(first), *sampled(first, second)], pad_id=PAD, span_config=SpanConfig())
    assert batch.phrases == ((0, 2, 0.5), (1, 3, 0.5), (3, 6, 1.0)), "the inner span of the second is left out"


@pytest.mark.parametrize(("skip_singletons", "counted"), [(False, 2), (True, 1)])
def test_a_sample_without_counted_spans_is_not_a_span_sample(skip_singletons, counted):
    single = sequence([1, 2, 3], ".xx", origin="student", spans=((0, 1), (1, 2)))
    phrase = sequence([1, 2, 3], ".xx", origin="student", spans=((0, 1), (0, 2)))
    batch = collate(sampled(single, phrase), pad_id=PAD, span_config=SpanConfig(skip_singletons=skip_singletons))
    assert batch.num_span_samples == counted


def test_without_a_span_config_all_pair_weights_are_zero():
    batch = collate(sampled(sequence([1, 2, 3], ".xx", spans=((0, 2),))), pad_id=PAD)
    assert batch.num_span_samples == 0 and not batch.pair_weight_N.any()


@pytest.mark.parametrize(("in_gold", "in_sampled"), [(2, 0), (2, 1), (1, 2), (2, 2), (3, 1)])
def test_a_repeated_sequence_is_counted_each_time(in_gold, in_sampled):
    """A batch that spans two epochs can hold a sample twice; the partition must not change the counts."""
    one, other = sequence([1, 2, 3], ".xx"), sequence([4, 5], ".x", origin="student")
    shared = min(in_gold, in_sampled)
    items = [*both(one) * shared, *gold(one) * (in_gold - shared), *sampled(one) * (in_sampled - shared), *sampled(other)]
    batch = collate(items, pad_id=PAD)
    assert int(batch.sft_N.sum()) == 2 * in_gold
    assert batch.num_sampled_rows == 2 * in_sampled + 1
    assert batch.input_ids_BT.shape[0] == max(in_gold, in_sampled) + 1


@st.composite
def sequences(draw):
    ids = draw(st.lists(st.integers(0, 9), min_size=2, max_size=8))
    mask = [False, *draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))]
    mask[-1] = mask[-1] or not any(mask)
    return TokenSequence(sample=draw(st.integers(0, 5)), token_ids=tuple(ids), supervised=tuple(mask), origin="student")


ROLES = st.sampled_from([{"sft"}, {"distillation"}, {"sft", "distillation"}]).map(frozenset)


@given(st.lists(st.builds(DrawItem, sequences(), ROLES), min_size=1, max_size=8))
def test_rows_agree_with_a_loop(items):
    batch = collate(items, pad_id=PAD)
    order = [item for item in items if "distillation" in item.roles] + [i for i in items if "distillation" not in i.roles]
    width = max(len(item.sequence.token_ids) for item in order)
    rows = [
        (b * width + t - 1, item.sequence.token_ids[t], b, "sft" in item.roles)
        for b, item in enumerate(order)
        for t in range(len(item.sequence.token_ids))
        if item.sequence.supervised[t]
    ]
    found = (batch.position_N, batch.target_N, batch.sequence_N, batch.sft_N)
    assert list(zip(*(column.tolist() for column in found), strict=True)) == rows
    assert batch.num_sampled_rows == sum(item.sequence.num_targets for item in items if "distillation" in item.roles)
    flat = batch.attention_mask_BT.flatten()
    assert flat[batch.position_N].all() and batch.input_ids_BT.dtype == torch.int64


def test_an_empty_batch_has_no_rows_and_one_token():
    batch = empty_batch(pad_id=PAD)
    assert batch.input_ids_BT.tolist() == [[PAD]] and batch.attention_mask_BT.tolist() == [[1]]
    assert len(batch.position_N) == batch.num_sampled == batch.num_sampled_rows == 0
    made = vars(collate(gold(sequence([1, 2], ".x")), pad_id=PAD))
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert {name: value.dtype for name, value in tensors.items()} == {name: made[name].dtype for name in tensors}
