"""Annotation: phrases of the decoded targets as ranges of targets, and caching of gold sequences."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.contracts import TokenSequence
from redistill.data.spans.extract import CharSpan, SimpleExtractor
from redistill.data.spans.mark import SpanMarker, moved_at_random, target_runs
from redistill.losses.span import SpanConfig, counted_spans
from redistill.randomness import generator
from tests.worlds import gpt2_tokenizer

END = 0


class CountingExtractor(SimpleExtractor):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def extract(self, texts: Sequence[str]) -> list[tuple[CharSpan, ...]]:
        self.texts += texts
        return super().extract(texts)


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


@pytest.fixture
def extractor():
    return CountingExtractor()


@pytest.fixture
def marker(tokenizer, extractor):
    return SpanMarker(extractor, tokenizer, {END})


def answer(tokenizer, *turns, sample=0, origin="dataset"):
    """A sequence in which each of `turns` is a run of targets after a prompt, with an end token."""
    ids, supervised = [], []
    for text in turns:
        prompt, targets = tokenizer("Where? ").input_ids, [*tokenizer(text).input_ids, END]
        ids += [*prompt, *targets]
        supervised += [False] * len(prompt) + [True] * len(targets)
    return TokenSequence(sample=sample, token_ids=tuple(ids), supervised=tuple(supervised), origin=origin)


def phrases(tokenizer, sequence):
    """The decoded spans of a sequence."""
    targets = [token for token, is_target in zip(sequence.token_ids, sequence.supervised, strict=True) if is_target]
    return [tokenizer.decode(targets[first:stop]).strip() for first, stop in sequence.spans]


def test_spans_cover_the_phrases_of_the_answer(marker, tokenizer):
    (marked,) = marker([answer(tokenizer, "The old cat is sleeping in the quiet barn.")])
    assert phrases(tokenizer, marked) == ["old cat", "sleeping", "quiet barn"]


@settings(max_examples=60, deadline=None)
@given(spans=st.sets(st.tuples(st.integers(0, 11), st.integers(1, 5)), max_size=7), key=st.integers(0, 1000))
def test_moved_spans_keep_their_lengths_and_overlap_only_if_they_did(spans, key):
    ranges = sorted((start, min(12, start + length)) for start, length in spans)
    ranges = list(dict.fromkeys(ranges))
    moved = moved_at_random(ranges, 12, generator(0, "moved", key))
    assert all(0 <= start < stop <= 12 for start, stop in moved)
    assert sorted(stop - start for start, stop in moved) == sorted(stop - start for start, stop in ranges)
    covered = [len({token for span in found for token in range(*span)}) for found in (ranges, moved)]
    assert covered[0] == covered[1]
    for nested in ("outer", "inner"):
        counts = [len(counted_spans(found, SpanConfig(nested=nested))) for found in (ranges, moved)]
        assert counts[0] == counts[1]


def test_every_position_of_a_moved_span_is_possible():
    starts = {moved_at_random([(3, 5)], 6, generator(0, "moved", key))[0][0] for key in range(200)}
    assert starts == {0, 1, 2, 3, 4}


def test_random_spans_depend_on_seed_and_sample_alone(tokenizer, extractor):
    text = "The old cat is sleeping in the quiet barn of the town."
    first = [
        SpanMarker(extractor, tokenizer, {END}, seed)([answer(tokenizer, text, sample=s)])
        for seed, s in [(1, 0), (1, 1), (2, 0)]
    ]
    (again,) = SpanMarker(extractor, tokenizer, {END}, 1)([answer(tokenizer, text, sample=0)])
    assert again.spans == first[0][0].spans
    assert len({sequence.spans for (sequence,) in first}) == 3


def test_each_run_of_targets_is_a_separate_text(marker, tokenizer, extractor):
    (marked,) = marker([answer(tokenizer, "the old cat", "the quiet barn")])
    assert extractor.texts == ["the old cat", "the quiet barn"]
    assert phrases(tokenizer, marked) == ["old cat", "quiet barn"]


def test_only_spans_change_and_the_order_is_kept(marker, tokenizer):
    sequences = [answer(tokenizer, f"the old cat {i}", sample=i, origin="student") for i in range(4)]
    marked = marker(sequences)
    for before, after in zip(sequences, marked, strict=True):
        assert (after.sample, after.token_ids, after.supervised, after.origin) == (
            before.sample,
            before.token_ids,
            before.supervised,
            before.origin,
        )
        assert after.spans and not before.spans


def test_gold_sequences_are_processed_once(marker, tokenizer, extractor):
    gold = answer(tokenizer, "the old cat")
    first = marker([gold])[0]
    again = marker([gold, answer(tokenizer, "the quiet barn", sample=1)])
    assert extractor.texts == ["the old cat", "the quiet barn"]
    assert again[0] is first, "the same object, so that a batch reads it once"


def test_the_students_text_of_a_sample_does_not_use_the_cached_gold_spans(marker, tokenizer, extractor):
    marker([answer(tokenizer, "the old cat")])
    (marked,) = marker([answer(tokenizer, "the quiet barn", origin="student")])
    assert phrases(tokenizer, marked) == ["quiet barn"]
    (again,) = marker([answer(tokenizer, "the old cat")])
    assert phrases(tokenizer, again) == ["old cat"] and len(extractor.texts) == 2


def test_another_answer_of_a_sample_is_processed(marker, tokenizer, extractor):
    marker([answer(tokenizer, "the old cat")])
    (marked,) = marker([answer(tokenizer, "the quiet barn")])
    assert phrases(tokenizer, marked) == ["quiet barn"] and len(extractor.texts) == 2


def test_the_same_object_twice_is_marked_twice(marker, tokenizer):
    one = answer(tokenizer, "the old cat", origin="student")
    first, second = marker([one, one])
    assert first.spans == second.spans != ()


def test_a_gold_sequence_twice_in_one_call_is_the_same_object(marker, tokenizer):
    gold = answer(tokenizer, "the old cat")
    first, second = marker([gold, gold])
    assert first is second


def test_an_answer_that_is_only_an_end_token_has_no_spans(marker):
    sequence = TokenSequence(sample=0, token_ids=(5, END), supervised=(False, True), origin="student")
    assert marker([sequence])[0].spans == ()
    assert marker([]) == []


def test_one_token_separates_two_runs():
    sequence = TokenSequence(sample=0, token_ids=(1, 2, 3, 4, 5), supervised=(False, True, True, False, True), origin="dataset")
    assert target_runs(sequence) == [(0, (2, 3)), (2, (5,))]
