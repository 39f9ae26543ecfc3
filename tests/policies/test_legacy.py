"""Generated sequences in the form of DistiLLM's public code, compared with that code's masks on padded arrays."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.contracts import TokenSequence, items_of
from redistill.data.collate import collate
from redistill.policies import legacy_sequence

END = 0
WIDTH = 16
PROMPT = (5, 6, 7)


def generated(response_ids) -> TokenSequence:
    return TokenSequence(
        sample=3,
        token_ids=PROMPT + tuple(response_ids),
        supervised=(False,) * len(PROMPT) + (True,) * len(response_ids),
        origin="student",
    )


def reference_rows(response_ids) -> tuple[list[int], list[tuple[int, ...]]]:
    """The reference code on one padded row: the positions of its mask, and the prefix at each."""
    kept = [token for token in response_ids if token != END]  # pad = end token, and padding is stripped
    ids = np.full(WIDTH, END)
    ids[: len(PROMPT) + len(kept)] = [*PROMPT, *kept]
    label = np.full(WIDTH, -100)
    positions = range(len(PROMPT), len(PROMPT) + len(kept))
    label[list(positions)] = ids[list(positions)]  # label[t] = token[t], not token[t + 1]
    masked = np.flatnonzero(label != -100).tolist()
    return masked, [tuple(ids[: position + 1].tolist()) for position in masked]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any))
def test_rows_are_those_of_the_reference_code(response_ids: list[int]) -> None:
    masked, contexts = reference_rows(response_ids)
    batch = collate(items_of([legacy_sequence(generated(response_ids), END)], "distillation"), pad_id=END)
    assert batch.position_N.tolist() == masked
    read = batch.input_ids_BT[0].tolist()
    assert [tuple(read[: position + 1]) for position in batch.position_N.tolist()] == contexts


def test_the_first_prediction_is_excluded_and_the_one_after_the_last_included() -> None:
    sequence = legacy_sequence(generated((8, 9, END)), END)
    assert sequence.token_ids == (*PROMPT, 8, 9, END)
    assert sequence.supervised == (False,) * 4 + (True, True)


def test_all_end_tokens_are_stripped_and_a_truncated_response_gets_a_filler() -> None:
    assert legacy_sequence(generated((8, END, 9)), END).token_ids == (*PROMPT, 8, 9, END)


@pytest.mark.parametrize("response_ids", [(END,), (END, END)])
def test_a_response_of_only_the_end_token_has_one_row(response_ids: tuple[int, ...]) -> None:
    sequence = legacy_sequence(generated(response_ids), END)
    assert sequence.token_ids == (*PROMPT, END) and sequence.supervised == (False, False, False, True)


def test_sample_and_origin_are_unchanged() -> None:
    sequence = legacy_sequence(generated((8, 9)), END)
    assert (sequence.sample, sequence.origin, sequence.prompt_ids[: len(PROMPT)]) == (3, "student", PROMPT)
