"""Vocabularies are compared by their maps, not by the sizes of the models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.errors import VocabularyError
from redistill.vocabulary import VocabularyMatch, compare

TOKENS = {"a": 0, "b": 1, "c": 2}


def test_equal_maps_and_heads_share_everything():
    match = compare(TOKENS, dict(reversed(TOKENS.items())), 3, 3)
    assert match == VocabularyMatch(size=3, teacher_size=3, student_size=3)
    assert not match.padded


@given(st.integers(3, 50), st.integers(3, 50))
def test_padding_of_the_heads_is_cut_to_the_smaller_one_that_covers_all_ids(teacher_size, student_size):
    match = compare(TOKENS, TOKENS, teacher_size, student_size)
    assert match.size == min(teacher_size, student_size) >= len(TOKENS)
    assert match.padded == (teacher_size != student_size)


@given(st.lists(st.text(max_size=2), min_size=2, max_size=8, unique=True), st.data())
def test_two_swapped_tokens_are_named(tokens, data):
    first, second = sorted(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=2, max_size=2, unique=True)))
    swapped = list(tokens)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    with pytest.raises(VocabularyError) as caught:
        compare({t: i for i, t in enumerate(tokens)}, {t: i for i, t in enumerate(swapped)}, 9, 9)
    assert f"id {first} is {tokens[first]!r} in the teacher and {tokens[second]!r} in the student" in str(caught.value)
    assert f"id {second} is" in str(caught.value)


def test_a_token_on_one_side_only_is_a_difference_even_within_the_other_sides_padding():
    with pytest.raises(VocabularyError, match="id 3 is '<pad>' in the teacher and no token in the student; choose"):
        compare({**TOKENS, "<pad>": 3}, TOKENS, 8, 8)


def test_many_differences_are_counted_and_the_first_named():
    with pytest.raises(VocabularyError, match=r"differ: id 0 is 'a0'.*id 2 is 'a2' .*; and 7 more") as caught:
        compare({f"a{i}": i for i in range(10)}, {f"b{i}": i for i in range(10)}, 10, 10)
    assert "\n" not in str(caught.value) and "a3" not in str(caught.value)


@pytest.mark.parametrize(("teacher_size", "student_size", "side"), [(2, 3, "teacher"), (3, 2, "student")])
def test_a_head_without_a_row_for_some_id_is_refused(teacher_size, student_size, side):
    with pytest.raises(VocabularyError, match=f"{side} vocabulary: the tokenizer has id 2, the model only 2 rows"):
        compare(TOKENS, TOKENS, teacher_size, student_size)
