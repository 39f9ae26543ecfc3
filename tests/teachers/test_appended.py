"""A teacher whose model is loaded beside a store: what it computes, stores and reads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from redistill.contracts import Batch, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import DataError
from redistill.storage.tensors import write_tensors
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


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_of_a_state_is_named_when_a_state_of_its_file_is_used(
    opened: Callable[..., LocalTeacher], tmp_path: Path
) -> None:
    expected = [logits(opened(), text) for text in TEXTS[:2]]
    first, _ = sorted((tmp_path / "appended").iterdir())
    states = load_file(first)["hidden_NE"]
    flip(first, first.read_bytes().index(states.numpy().tobytes()))
    teacher = opened()
    assert torch.equal(logits(teacher, TEXTS[1]), expected[1])  # of the other file
    with pytest.raises(DataError, match=f"{first}: does not match the hash in its name; remove this file"):
        logits(teacher, TEXTS[0])
    first.unlink()
    torch.testing.assert_close(logits(opened(), TEXTS[0]), expected[0])


def test_a_flipped_bit_of_a_key_is_named_at_the_start(opened: Callable[..., LocalTeacher], tmp_path: Path) -> None:
    logits(opened(), *TEXTS)
    (path,) = (tmp_path / "appended").iterdir()
    flip(path, path.read_bytes().index(load_file(path)["key_SK"].numpy().tobytes()) + 3)
    with pytest.raises(DataError, match=f"{path}: does not match the hash in its name"):
        opened()


def test_a_file_that_is_no_shard_is_named_at_the_start(opened: Callable[..., LocalTeacher], tmp_path: Path) -> None:
    (tmp_path / "appended").mkdir()
    write_tensors(tmp_path / "appended" / "weights.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(DataError, match=r"weights.safetensors: does not match the hash in its name"):
        opened()
