"""A teacher whose model is loaded beside a store: what it computes, stores and reads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from redistill.contracts import Batch, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import DataError
from redistill.teachers.appended import AppendedStates
from redistill.teachers.local import LocalTeacher
from redistill.teachers.store import TeacherStore
from tests.teachers.test_cached import VOCABULARY, model, stored

GOLD = TokenSequence(sample=0, token_ids=(5, 6, 7, 8), supervised=(False, True, True, True), origin="dataset")
TEXTS = [
    TokenSequence(sample=n, token_ids=(5, 6, 10 + n, 9), supervised=(False, False, True, True), origin="student")
    for n in range(3)
]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., LocalTeacher]:
    """A function that opens the teacher, with what earlier calls have appended."""
    teacher = model("llama")
    stored(tmp_path / "store", teacher, torch.float32, [GOLD])

    def make(*, keeps: bool = True) -> LocalTeacher:
        store = TeacherStore.open(tmp_path / "store", report=pytest.fail)
        states = AppendedStates(store, tmp_path / "appended", keeps=keeps)
        return LocalTeacher(teacher, vocabulary=VOCABULARY, device="cpu", states=states)

    return make


def batch_of(*sequences: TokenSequence) -> Batch:
    return collate(items_of(sequences, "distillation"), pad_id=0)


def logits(teacher: LocalTeacher, *sequences: TokenSequence) -> torch.Tensor:
    teacher.prepare(sequences)
    found = teacher.rows(batch_of(*sequences))(slice(None))
    assert isinstance(found, torch.Tensor)
    return found


def num_calls(teacher: LocalTeacher, monkeypatch: pytest.MonkeyPatch, *sequences: TokenSequence) -> int:
    calls: list[Batch] = []
    read = teacher._hidden_states
    monkeypatch.setattr(teacher, "_hidden_states", lambda batch: calls.append(batch) or read(batch))
    logits(teacher, *sequences)
    return len(calls)


def test_logits_equal_those_of_the_model(opened: Callable[..., LocalTeacher]) -> None:
    plain = LocalTeacher(model("llama"), vocabulary=VOCABULARY, device="cpu")
    teacher = opened()
    for sequences in ([GOLD], [GOLD, TEXTS[0]], TEXTS, [TEXTS[1], GOLD, TEXTS[1]]):
        torch.testing.assert_close(logits(teacher, *sequences), logits(plain, *sequences), rtol=1e-5, atol=1e-6)


def test_the_model_runs_once_on_a_text(opened: Callable[..., LocalTeacher], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = opened()
    assert num_calls(teacher, monkeypatch, GOLD) == 0
    assert num_calls(teacher, monkeypatch, GOLD, TEXTS[0]) == 1
    assert num_calls(teacher, monkeypatch, TEXTS[0], GOLD) == 0
    assert num_calls(opened(), monkeypatch, replace(TEXTS[0], origin="replay")) == 0  # also in a resumed run


def test_a_resumed_run_has_the_same_bits(opened: Callable[..., LocalTeacher]) -> None:
    first = [logits(opened(), TEXTS[0], TEXTS[1]), logits(opened(), GOLD, TEXTS[1], TEXTS[2])]
    again = opened()
    assert torch.equal(logits(again, GOLD, TEXTS[1], TEXTS[2]), first[1])
    assert torch.equal(logits(again, TEXTS[0], TEXTS[1]), first[0])


def test_nothing_is_written_without_a_replay_buffer_or_for_gold_answers(
    opened: Callable[..., LocalTeacher], tmp_path: Path
) -> None:
    logits(opened(keeps=False), *TEXTS)
    logits(opened(), replace(GOLD, token_ids=(5, 6, 7, 3)))
    assert not (tmp_path / "appended").exists()


def test_drafts_whose_keys_and_values_are_reused_are_not_stored(opened: Callable[..., LocalTeacher], tmp_path: Path) -> None:
    teacher = opened()
    with teacher.remembering():
        logits(teacher, *TEXTS)
    assert not (tmp_path / "appended").exists()


def test_a_flipped_bit_is_named(opened: Callable[..., LocalTeacher], tmp_path: Path) -> None:
    logits(opened(), *TEXTS)
    (path,) = (tmp_path / "appended").iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: does not match the hash in its name"):
        opened()
