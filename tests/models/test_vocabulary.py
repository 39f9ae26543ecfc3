"""Vocabularies are compared by their maps, not by the sizes of the models."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from redistill.errors import VocabularyError
from redistill.models.vocabulary import VocabularyMatch, match_vocabularies
from redistill.runs.run import train_student
from redistill.storage.files import read_lines
from tests.tokenizers import llama_like
from tests.worlds import gpt2_tokenizer, tiny_run

TOKENS = {"a": 0, "b": 1, "c": 2}


def test_equal_maps_and_heads_share_all_classes():
    match = match_vocabularies(TOKENS, dict(reversed(TOKENS.items())), 3, 3)
    assert match == VocabularyMatch(size=3, teacher_size=3, student_size=3)
    assert not match.padded


@given(st.integers(3, 50), st.integers(3, 50))
def test_padding_of_the_heads_is_cut_to_the_smaller_one_that_covers_all_ids(teacher_size, student_size):
    match = match_vocabularies(TOKENS, TOKENS, teacher_size, student_size)
    assert match.size == min(teacher_size, student_size) >= len(TOKENS)
    assert match.padded == (teacher_size != student_size)


@given(st.lists(st.text(max_size=2), min_size=2, max_size=8, unique=True), st.data())
def test_two_swapped_tokens_are_named(tokens, data):
    first, second = sorted(data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=2, max_size=2, unique=True)))
    swapped = list(tokens)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    with pytest.raises(VocabularyError) as caught:
        match_vocabularies({t: i for i, t in enumerate(tokens)}, {t: i for i, t in enumerate(swapped)}, 9, 9)
    assert f"id {first} is {tokens[first]!r} in the teacher and {tokens[second]!r} in the student" in str(caught.value)
    assert f"id {second} is" in str(caught.value)


def test_a_token_on_one_side_only_is_a_difference_even_within_the_other_sides_padding():
    with pytest.raises(VocabularyError, match="id 3 is '<pad>' in the teacher and no token in the student; choose"):
        match_vocabularies({**TOKENS, "<pad>": 3}, TOKENS, 8, 8)


def test_many_differences_are_counted_and_the_first_named():
    with pytest.raises(VocabularyError, match=r"differ: id 0 is 'a0'.*id 2 is 'a2' .*; and 7 more") as caught:
        match_vocabularies({f"a{i}": i for i in range(10)}, {f"b{i}": i for i in range(10)}, 10, 10)
    assert "\n" not in str(caught.value) and "a3" not in str(caught.value)


@pytest.mark.parametrize(("teacher_size", "student_size", "side"), [(2, 3, "teacher"), (3, 2, "student")])
def test_a_head_without_a_row_for_some_id_is_rejected(teacher_size, student_size, side):
    expected = f"{side} vocabulary: the tokenizer has id 2, but the model's head has only 2 rows"
    with pytest.raises(VocabularyError, match=expected):
        match_vocabularies(TOKENS, TOKENS, teacher_size, student_size)


# --- training with a padded head ----------------------------------------------------------------------------------------


def with_padding(source: Path, folder: Path, rows: int) -> str:
    """A copy of a model whose head has `rows` more rows with large weights, so that a loss that uses them differs."""
    model = AutoModelForCausalLM.from_pretrained(source)
    size = model.config.vocab_size
    model.resize_token_embeddings(size + rows, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[size:] = torch.randn(
            rows, model.config.hidden_size, generator=torch.Generator().manual_seed(1)
        )
    model.save_pretrained(folder)
    gpt2_tokenizer().save_pretrained(folder)
    return str(folder)


def losses(folder: Path, method: str, out: str, **models: str) -> list[float]:
    sections = {name: {"model": model} for name, model in models.items()}
    run = tiny_run(folder, method, out=out, training={"updates": 3, "batch_size": 4, "log_every": 1}, **sections)
    train_student(run)
    lines = read_lines(run.folder / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("method", ["kd", "mgsr"])
def test_a_padded_teacher_or_student_trains_as_one_that_is_cut_by_hand(tmp_path: Path, method: str) -> None:
    cut = losses(tmp_path, method, "cut")
    assert len(cut) == 3 and cut[0] != cut[-1]
    for padded in ("teacher", "student"):
        model = with_padding(tmp_path / padded, tmp_path / f"padded-{padded}", 28)
        assert losses(tmp_path, method, f"run-{padded}", **{padded: model}) == pytest.approx(cut, abs=1e-6), padded


def test_a_pair_with_different_maps_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    llama_like().save_pretrained(tmp_path / "teacher")
    with pytest.raises(VocabularyError, match=r"id 0 is '<unk>' in the teacher and '<\|endoftext\|>' in the student"):
        train_student(run)
    assert not (run.folder / "model").exists() and not (run.folder / "metrics.jsonl").exists()
