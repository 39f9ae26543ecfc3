"""SCRG: the error token compared with a plain loop, and the prefix and tail budget after its correction."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from redistill.policies.correction import Correction, correct, is_finished, locate_error

EOS = 0


def locate_in_a_loop(kl, student, teacher, valid) -> int:
    best = -1
    for i in range(len(kl)):
        if valid[i] and student[i] != teacher[i] and (best < 0 or kl[i] > kl[best]):
            best = i
    return best


@hypothesis.given(data=st.data(), shape=st.tuples(st.integers(1, 4), st.integers(1, 9)))
@hypothesis.settings(max_examples=100, deadline=None)
def test_the_error_is_the_first_of_the_greatest_scores_among_valid_differing_tokens(data, shape):
    kl = data.draw(hnp.arrays("float64", shape, elements=st.sampled_from([0.0, 0.5, 1.0, 1.5])))  # few values: many ties
    student, teacher = (data.draw(hnp.arrays("int64", shape, elements=st.integers(0, 2))) for _ in range(2))
    valid = data.draw(hnp.arrays("bool", shape))
    got = locate_error(*(torch.from_numpy(array) for array in (kl, student, teacher, valid)))
    assert got.dtype == torch.int64
    assert got.tolist() == [locate_in_a_loop(*rows) for rows in zip(kl, student, teacher, valid)]


def locate(kl: list[float], student: list[int], teacher: list[int], valid: list[int]) -> int:
    return locate_error(*(torch.tensor([row]) for row in (kl, student, teacher, valid))).item()


def test_a_score_in_the_padding_is_ignored():
    assert locate([0.2, 0.1, 9.0], [5, EOS, EOS], [6, 7, 8], [1, 1, 0]) == 0
    assert locate([0.2, 0.1, float("nan")], [5, EOS, EOS], [6, 7, 8], [1, 1, 0]) == 0


def test_the_students_own_end_token_may_be_the_error():
    assert locate([0.1, 3.0, 0.0], [5, EOS, EOS], [5, 7, EOS], [1, 1, 0]) == 1


def test_a_response_equal_to_the_teachers_tokens_has_no_error():
    assert locate([1.0, 2.0], [5, 6], [5, 6], [1, 1]) == -1


def test_a_valid_score_that_is_not_a_number_is_rejected():
    with pytest.raises(AssertionError, match="not a number"):
        locate([0.1, float("nan")], [5, 6], [7, 6], [1, 1])


def test_an_infinite_score_is_the_largest_but_only_among_tokens_that_differ():
    assert locate([0.1, float("inf"), 2.0], [5, 6, 7], [7, 8, 9], [1, 1, 1]) == 1
    assert locate([0.1, float("inf"), 2.0], [5, 6, 7], [7, 6, 9], [1, 1, 1]) == 2


def test_empty_responses_have_no_error():
    empty = torch.empty(3, 0, dtype=torch.int64)
    assert locate_error(empty.float(), empty, empty, empty.bool()).tolist() == [-1, -1, -1]


@hypothesis.given(
    response=st.lists(st.integers(0, 9), min_size=1, max_size=8).map(tuple),
    position=st.integers(0, 7),
    teacher_token=st.integers(0, 9),
    spare=st.integers(0, 3),
)
@hypothesis.settings(max_examples=100, deadline=None)
def test_the_prefix_ends_in_the_teachers_token_and_the_tail_fills_the_budget(response, position, teacher_token, spare):
    index, budget = position % len(response), len(response) + spare
    hypothesis.assume(teacher_token != response[index])
    got = correct(response, index, teacher_token, budget=budget, eos_ids={EOS})
    assert got.changed
    assert got.prefix_ids == (*response[:index], teacher_token)
    assert got.tail_budget == (0 if teacher_token == EOS else budget - (index + 1))


def test_without_an_error_the_response_is_unchanged_and_has_no_tail():
    assert correct((5, 6), -1, 7, budget=9, eos_ids={EOS}) == Correction(prefix_ids=(5, 6), tail_budget=0, changed=False)


def test_the_students_end_token_can_be_replaced_and_the_response_continues():
    assert correct((5, EOS), 1, 7, budget=4, eos_ids={EOS}) == Correction(prefix_ids=(5, 7), tail_budget=2, changed=True)


def test_any_of_several_end_tokens_ends_the_response():
    assert correct((5, 6, 7), 1, 3, budget=4, eos_ids={EOS, 3}).tail_budget == 0


def test_a_prefix_of_the_full_budget_has_no_tail():
    assert correct((5, 6), 1, 7, budget=2, eos_ids={EOS}).tail_budget == 0


@pytest.mark.parametrize(("index", "teacher_token", "budget"), [(2, 7, 9), (-2, 7, 9), (1, 6, 9), (0, 7, 1)])
def test_impossible_errors_are_rejected(index, teacher_token, budget):
    with pytest.raises(AssertionError):
        correct((5, 6), index, teacher_token, budget=budget, eos_ids={EOS})


@pytest.mark.parametrize(("ids", "finished"), [((), False), ((5, EOS), True), ((EOS, 5), False), ((5,), False)])
def test_a_response_is_finished_by_its_last_token(ids, finished):
    assert is_finished(ids, {EOS}) is finished
