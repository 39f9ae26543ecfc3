"""The local teacher gives the logits of the full model, for the sampled rows only."""

import pytest
import torch

from redistill.contracts import Batch, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.generation import prefix
from redistill.models.initialise import fresh_model
from redistill.teachers.local import LocalTeacher
from redistill.tensors import pad

LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
ROWS = [[3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14, 15, 16, 17]]


def make_batch(num_sampled, num_sampled_rows):
    """Three sequences whose targets start at their third token."""
    ids_BT, mask_BT = pad(ROWS, 0)
    places = [(b, t) for b, row in enumerate(ROWS) for t in range(2, len(row))]
    return Batch(
        input_ids_BT=ids_BT,
        attention_mask_BT=mask_BT,
        position_N=torch.tensor([b * ids_BT.shape[1] + t - 1 for b, t in places]),
        target_N=torch.tensor([ROWS[b][t] for b, t in places]),
        sequence_N=torch.tensor([b for b, _ in places]),
        sft_N=torch.ones(len(places), dtype=torch.bool),
        pair_weight_N=torch.zeros(len(places)),
        num_sampled=num_sampled,
        num_sampled_rows=num_sampled_rows,
        num_sft_rows=len(places),
        num_span_samples=0,
        role="task",
        sequence_weight_N=torch.ones(len(places)),
        token_weight_N=torch.ones(num_sampled_rows),
        old_logprob_N=torch.zeros(num_sampled_rows),
        advantage_N=torch.zeros(num_sampled_rows),
        importance_N=torch.zeros(num_sampled_rows),
        token_ids=tuple(map(tuple, ROWS)),
        samples=(0, 1, 2),
        origins=("student", "student", "dataset"),
    )


@pytest.mark.parametrize("vocabulary", [40, 33])
def test_rows_are_the_full_models_distributions(vocabulary):
    model = fresh_model(LLAMA, seed=1)
    batch = make_batch(2, 4)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[..., :vocabulary]
    expected = logits.flatten(0, 1)[batch.position_N[:4]].double().log_softmax(-1)
    target = LocalTeacher(model, vocabulary=vocabulary, device="cpu").rows(batch)
    for rows in (slice(0, 4), slice(1, 3), slice(3, 4)):
        logits_nV = target(rows)
        assert logits_nV.dtype == torch.float32 and not logits_nV.requires_grad
        torch.testing.assert_close(logits_nV.double().log_softmax(-1), expected[rows], rtol=0, atol=1e-5)


def test_a_row_has_the_same_distribution_inside_and_outside_autocast():
    teacher, batch = LocalTeacher(fresh_model(LLAMA, seed=1), vocabulary=40, device="cpu"), make_batch(2, 4)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    read_outside = teacher.rows(batch)
    with autocast:
        read_inside = teacher.rows(batch)
    for target in (read_outside, read_inside):
        outside = target(slice(0, 4))
        with autocast:
            assert torch.equal(target(slice(0, 4)), outside)


def test_only_sequences_with_distillation_terms_are_read():
    model = fresh_model(LLAMA, seed=1)
    read = []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[0]), with_kwargs=True)
    teacher = LocalTeacher(model, vocabulary=40, device="cpu")
    teacher.rows(make_batch(2, 4))
    assert read == [2]
    assert teacher.rows(make_batch(0, 0))(slice(0, 0)).shape == (0, 40)
    assert read == [2]


def test_the_teacher_is_frozen_in_eval_mode_and_has_all_capabilities():
    model = fresh_model(LLAMA, seed=1).train()
    teacher = LocalTeacher(model, vocabulary=40, device="cpu")
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert teacher.capabilities.full_vocabulary


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_counted(fault):
    model, batch = fresh_model(LLAMA, seed=1), make_batch(2, 4)
    teacher = LocalTeacher(model, vocabulary=40, device="cpu")
    teacher.rows(batch)(slice(0, 4))
    assert teacher.faults() == 0
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 3] = fault  # one class of 40; the sign of its logit is the hidden state's
    target = teacher.rows(batch)
    logp_NV = torch.cat([target(slice(0, 1)), target(slice(1, 4))]).log_softmax(dim=-1)
    assert teacher.faults() == int(logp_NV.isnan().any(dim=-1).sum()) > 0
    assert teacher.faults() == 0


def of_tokens(rows):
    """The rows' sequences as a batch of sampled ones; targets start at the third token."""
    sequences = [
        TokenSequence(sample=i, token_ids=tuple(row), supervised=(False, False) + (True,) * (len(row) - 2), origin="student")
        for i, row in enumerate(rows)
    ]
    return collate(items_of(sequences, "distillation"), pad_id=0)


@pytest.mark.parametrize("in_training", [False, True], ids=["read as remembered", "read in autocast"])
def test_remembered_drafts_do_not_change_the_logits_of_their_revisions(in_training):
    """Under autocast the precision differs from that of the remembered states, so everything is read."""
    model = fresh_model(LLAMA, seed=1)
    teacher, plain = (LocalTeacher(model, vocabulary=40, device="cpu") for _ in range(2))
    revisions = of_tokens([[*ROWS[0][:3], 20, 21, 22, 23], ROWS[1], [*ROWS[2][:5], 9, 9]])
    read = []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True)
    with teacher.remembering():
        teacher.rows(of_tokens(ROWS))
    read.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_training):
        target, expected = teacher.rows(revisions), plain.rows(revisions)
    rows = slice(0, revisions.num_sampled_rows)
    torch.testing.assert_close(target(rows).log_softmax(-1), expected(rows).log_softmax(-1), rtol=1e-5, atol=1e-5)
    whole = revisions.input_ids_BT.numel()
    assert read == ([whole, whole] if in_training else [2 * 3, whole]), "two rows, three tokens at most behind what is known"


def test_a_memory_that_is_too_small_is_reported_once(monkeypatch):
    monkeypatch.setattr(prefix, "MEMORY_BYTES", 0)
    lines: list[str] = []
    teacher = LocalTeacher(fresh_model(LLAMA, seed=1), vocabulary=40, device="cpu", note=lines.append)
    for _ in range(2):
        with teacher.remembering():
            teacher.rows(of_tokens(ROWS))
        teacher.release()
    assert len(lines) == 1 and "tokens of the teacher were not stored in one update, since the limit is 0.00 GiB" in lines[0]


def test_release_drops_the_memory_of_the_last_step():
    model = fresh_model(LLAMA, seed=1)
    teacher, read = LocalTeacher(model, vocabulary=40, device="cpu"), []
    model.model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[0]), with_kwargs=True)
    for _ in range(2):
        with teacher.remembering():
            teacher.rows(of_tokens(ROWS))
            teacher.rows(of_tokens(ROWS))
    assert read == [3, 3]
