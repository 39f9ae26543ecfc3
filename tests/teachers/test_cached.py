"""A cached teacher has the loss and the gradient of the live teacher, for every divergence, DAC-KL and the span term."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from redistill.contracts import Batch, GenerationRequest, Sampling, Teacher, TeacherTarget, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import DataError, ModelError
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import Divergence
from redistill.losses.span import SpanConfig
from redistill.models.families import body, head
from redistill.models.initialise import fresh_model
from redistill.models.student import StudentModule
from redistill.randomness import generator
from redistill.teachers import filling
from redistill.teachers.cached import CachedTeacher
from redistill.teachers.filling import Plan, Reader, StoreWriter, Tick
from redistill.teachers.forms import Form, Full
from redistill.teachers.local import LocalTeacher
from redistill.teachers.store import TeacherStore, sequence_key, text_key
from redistill.training.objective import Counts, Objective, terms
from redistill.vocab_pass import Head

VOCABULARY, NUM_SEQUENCES = 40, 11
FAMILIES = {
    "llama": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "cohere, whose logits are scaled": {
        "model_type": "cohere",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "logit_scale": 0.25,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "phi, whose head has a bias": {
        "model_type": "phi",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}
OBJECTIVES = {
    **{
        f"{cls.__name__}-{number}": Objective(sft_weight=0.0, divergence=example)
        for cls in get_args(Divergence)
        for number, example in enumerate(cls.examples())
    },
    "dac_kl": Objective(sft_weight=0.0, divergence=DacKLConfig()),
    "span": Objective(sft_weight=0.5, divergence=DacKLConfig(), span_weight=1.0),
}


def sequences() -> list[TokenSequence]:
    """Sequences of several lengths, some with two ranges of targets, all with a span."""
    made = []
    for sample in range(NUM_SEQUENCES):
        length = 5 + sample
        ids = generator(1, "sequence", sample).integers(0, VOCABULARY, length).tolist()
        supervised = tuple(position > 1 and (sample % 3 > 0 or position != 3) for position in range(length))
        made.append(
            TokenSequence(sample=sample, token_ids=tuple(ids), supervised=supervised, origin="dataset", spans=((0, 2),))
        )
    return made


def model(family: str, seed: int = 1) -> torch.nn.Module:
    return fresh_model({**FAMILIES[family], "vocab_size": VOCABULARY, "initializer_range": 0.3}, seed)


def reader(teacher: torch.nn.Module, dtype: torch.dtype, form: Form | None = None, classifier: Head | None = None) -> Reader:
    hidden_states = body(teacher)

    @torch.no_grad()
    def read(batches: Sequence[Batch], tick: Tick) -> Iterator[torch.Tensor]:
        for batch in batches:
            yield hidden_states(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]

    return Reader(
        read=read,
        head=classifier or head(teacher),
        form=form or Full(),
        dtype=dtype,
        pad_id=0,
        batch_size=3,
    )


def stored(folder: Path, teacher: torch.nn.Module, dtype: torch.dtype, some: Sequence[TokenSequence]) -> TeacherStore:
    folder.mkdir()
    filler = reader(teacher, dtype)
    StoreWriter(folder, {}).states(Plan(some, filler.row_bytes), filler, lambda done, total, tokens: None)
    return TeacherStore.open(folder, report=pytest.fail)


class Rounded:
    """A live teacher whose last hidden states are rounded to bfloat16."""

    def __init__(self, teacher: torch.nn.Module) -> None:
        self._teacher = reader(teacher, torch.float32)

    def rows(self, batch: Batch) -> TeacherTarget:
        logits_NV = self._teacher.head.logits(next(iter(self._teacher.read([batch], lambda fraction: None))).bfloat16().float())
        return lambda rows: logits_NV[rows]


def loss_and_gradient(teacher: Teacher | Rounded, objective: Objective, family: str) -> tuple[float, list[torch.Tensor]]:
    divergence = objective.build_divergence(VOCABULARY, seed=3)
    student = StudentModule(model(family, seed=2), vocabulary=VOCABULARY, divergence=divergence)
    batch = collate(items_of(sequences(), "sft", "distillation"), pad_id=0, span_config=SpanConfig())
    total, _ = student(batch, teacher.rows(batch), terms(objective, Counts.of([batch]), batch, divergence))
    total.backward()
    return float(total.detach()), [parameter.grad for parameter in student.parameters() if parameter.grad is not None]


def assert_equal(mine: tuple[float, list[torch.Tensor]], theirs: tuple[float, list[torch.Tensor]]) -> None:
    """Both losses and gradients are equal to 1e-5, relative to the largest element of each gradient."""
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-7)
    assert len(mine[1]) == len(theirs[1]) > 0
    largest = max(float(gradient.abs().max()) for gradient in theirs[1])
    for own, other in zip(mine[1], theirs[1], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_loss_and_gradient_are_those_of_the_live_teacher(tmp_path: Path, objective: Objective) -> None:
    teacher = model("llama")
    cached = CachedTeacher(stored(tmp_path / "store", teacher, torch.float32, sequences()), vocabulary=VOCABULARY, device="cpu")
    live = LocalTeacher(teacher, vocabulary=VOCABULARY, device="cpu")
    assert_equal(loss_and_gradient(cached, objective, "llama"), loss_and_gradient(live, objective, "llama"))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_states_in_bfloat16_are_those_of_a_live_teacher_whose_states_are_rounded(tmp_path: Path, objective: Objective) -> None:
    teacher = model("llama")
    store = stored(tmp_path / "store", teacher, torch.bfloat16, sequences())
    cached = CachedTeacher(store, vocabulary=VOCABULARY, device="cpu")
    assert_equal(loss_and_gradient(cached, objective, "llama"), loss_and_gradient(Rounded(teacher), objective, "llama"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_logits_of_every_family_are_those_of_the_live_teacher(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    teacher = model(family).to(dtype)
    batch = collate(items_of(sequences(), "distillation"), pad_id=0)
    cached = CachedTeacher(stored(tmp_path / "store", teacher, dtype, sequences()), vocabulary=33, device="cpu")
    live = LocalTeacher(teacher, vocabulary=33, device="cpu")
    rows = slice(2, 9)
    mine, theirs = cached.rows(batch)(rows), live.rows(batch)(rows)
    assert mine.dtype == torch.float32 and mine.shape == (7, 33)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


def test_only_sequences_with_distillation_terms_are_looked_up(tmp_path: Path) -> None:
    some = sequences()
    cached = CachedTeacher(stored(tmp_path / "store", model("llama"), torch.float32, some[:2]), vocabulary=40, device="cpu")
    items = (*items_of(some[:2], "distillation"), *items_of(some[2:], "sft"))
    batch = collate(items, pad_id=0)
    assert cached.rows(batch)(slice(0, batch.num_sampled_rows)).shape == (batch.num_sampled_rows, 40)


def test_a_sequence_that_is_not_stored_is_rejected_by_the_number_of_its_example(tmp_path: Path) -> None:
    some = sequences()
    cached = CachedTeacher(stored(tmp_path / "store", model("llama"), torch.float32, some[:4]), vocabulary=40, device="cpu")
    with pytest.raises(DataError, match=r"has no hidden states of the sequence of example 4"):
        cached.rows(collate(items_of(some[:5], "distillation"), pad_id=0))


def test_the_key_depends_on_tokens_and_targets_and_not_on_the_number_of_the_example() -> None:
    sequence = sequences()[1]
    changed = [
        replace(sequence, token_ids=(*sequence.token_ids[:-1], (sequence.token_ids[-1] + 1) % VOCABULARY)),
        replace(sequence, supervised=(*sequence.supervised[:2], not sequence.supervised[2], *sequence.supervised[3:])),
        replace(sequence, token_ids=sequence.token_ids[:-1], supervised=sequence.supervised[:-1]),
    ]
    keys = {sequence_key(each.token_ids, each.supervised) for each in (sequence, *changed)}
    assert len(keys) == 4
    again = replace(sequence, sample=7)
    assert sequence_key(again.token_ids, again.supervised) in keys


def test_validation_and_training_examples_with_one_number_have_states_of_their_own(tmp_path: Path) -> None:
    one, other = sequences()[:2]
    other = replace(other, sample=one.sample)
    store = stored(tmp_path / "store", model("llama"), torch.float32, [one, other, one])
    assert store.layout.sequences == 2  # equal sequences are stored once
    for each in (one, other):
        found = store.rows(sequence_key(each.token_ids, each.supervised))
        assert found is not None and len(found["hidden_NE"]) == each.num_targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_size_is_that_of_the_formula_and_any_division_into_shards_has_the_same_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    whole = stored(tmp_path / "whole", model("llama"), dtype, sequences())
    monkeypatch.setattr(filling, "SHARD_BYTES", 500)
    divided = stored(tmp_path / "divided", model("llama"), dtype, sequences())
    assert whole.layout.shards == 1 < divided.layout.shards
    targets = sum(each.num_targets for each in sequences())
    assert whole.layout.state_bytes == targets * 16 * dtype.itemsize + NUM_SEQUENCES * 24
    written = sum(path.stat().st_size for path in (tmp_path / "whole").glob("states-*"))
    assert 0 < written - whole.layout.state_bytes < 400  # the header
    for each in sequences():
        key = sequence_key(each.token_ids, each.supervised)
        mine, theirs = whole.rows(key), divided.rows(key)
        assert mine is not None and theirs is not None and mine["hidden_NE"].dtype == dtype
        torch.testing.assert_close(mine["hidden_NE"], theirs["hidden_NE"], rtol=1e-2, atol=1e-3)


def test_states_beyond_the_range_of_float16_are_rejected(tmp_path: Path) -> None:
    teacher = model("llama")
    with torch.no_grad():
        teacher.model.norm.weight.mul_(1e5)
    with pytest.raises(
        ModelError, match=r"teacher.cache_dtype = 'float16': a hidden state of .* exceeds its range; use bfloat16"
    ):
        stored(tmp_path / "store", teacher, torch.float16, sequences())
    assert stored(tmp_path / "second", teacher, torch.bfloat16, sequences()).layout.dtype == "bfloat16"


def test_rows_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    teacher = model("llama")
    with torch.no_grad():
        teacher.model.norm.weight.fill_(float("nan"))
    cached = CachedTeacher(stored(tmp_path / "store", teacher, torch.float32, sequences()), vocabulary=40, device="cpu")
    batch = collate(items_of(sequences()[:2], "distillation"), pad_id=0)
    cached.rows(batch)(slice(0, batch.num_sampled_rows))
    assert cached.faults() == batch.num_sampled_rows and cached.faults() == 0


def test_the_key_of_a_text_has_no_field_with_its_default() -> None:
    request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0))
    assert text_key(request, Sampling()) == text_key(replace(request, skipped_tokens=0), Sampling(temperature=1.0))
    asked = [{"max_new_tokens": 3, "prompt_ids": [5, 6], "seed": 1, "stream": ["response", 0, 0]}, {"top_p": 0.9}]
    expected = hashlib.blake2b(json.dumps(asked).encode(), digest_size=16).hexdigest()
    assert text_key(request, Sampling(top_p=0.9)) == expected
    changed = [replace(request, skipped_tokens=1), replace(request, seed=2), replace(request, max_new_tokens=4)]
    keys = {text_key(request, Sampling()), expected, *(text_key(each, Sampling()) for each in changed)}
    assert len(keys) == 5
