"""The divergence on the kept classes, against NumPy in float64."""

from typing import get_args

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from redistill.losses.clip_ranks import Mode, keep_mask
from redistill.losses.dac_kl import Normalise, clipped_divergence

every_normalisation = pytest.mark.parametrize("normalise", get_args(Normalise))
every_mode = pytest.mark.parametrize("mode", get_args(Mode))
INF = float("inf")


def log_rows(seed: int, num_rows: int = 6, vocabulary: int = 12, scale: float = 1.5) -> torch.Tensor:
    logits = scale * np.random.default_rng(seed).standard_normal((num_rows, vocabulary))
    return torch.log_softmax(torch.from_numpy(logits), dim=-1)


def divergence_oracle(q: np.ndarray, p: np.ndarray, keep: np.ndarray, normalise: str) -> float:
    if not keep.any():
        return 0.0
    q_kept, p_kept = q[keep], p[keep]
    if normalise == "renormalise":
        q_kept, p_kept = q_kept / q_kept.sum(), p_kept / p_kept.sum()
    elif normalise == "teacher":
        p_kept = p_kept / p_kept.sum()
    elif normalise == "other_bin" and not keep.all():
        q_kept, p_kept = np.append(q_kept, q[~keep].sum()), np.append(p_kept, p[~keep].sum())
    return float((p_kept * np.log(p_kept / q_kept)).sum())


@every_normalisation
@hypothesis.given(seed=st.integers(0, 2**32), keep=st.lists(st.booleans(), min_size=2, max_size=12), scale=st.floats(0.01, 6))
@hypothesis.example(seed=1, keep=[False] * 4, scale=1.0)
@hypothesis.example(seed=2, keep=[True] * 4, scale=1.0)
@hypothesis.example(seed=3, keep=[True, False, False], scale=1.0)
@hypothesis.settings(max_examples=40, deadline=None)
def test_divergence_is_that_of_the_definition(normalise, seed, keep, scale):
    logq_NV, logp_NV = (log_rows(seed + i, num_rows=1, vocabulary=len(keep), scale=scale) for i in (0, 1))
    wanted = divergence_oracle(logq_NV[0].exp().numpy(), logp_NV[0].exp().numpy(), np.array(keep), normalise)
    keep_NV = torch.tensor([keep])
    assert clipped_divergence(logq_NV, logp_NV, keep_NV, normalise).item() == pytest.approx(wanted, abs=1e-9)
    assert clipped_divergence(logq_NV, logp_NV, keep_NV.double(), normalise).item() == pytest.approx(wanted, abs=1e-9)
    single = clipped_divergence(logq_NV.float(), logp_NV.float(), keep_NV, normalise)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(wanted, abs=1e-5, rel=1e-5)


@every_normalisation
@pytest.mark.parametrize("as_gate", [False, True])
def test_an_empty_set_gives_zero_and_no_gradient(normalise, as_gate):
    logits = log_rows(4).requires_grad_()
    keep_NV = torch.zeros_like(logits, dtype=torch.float64 if as_gate else torch.bool)
    divergence_N = clipped_divergence(torch.log_softmax(logits, dim=-1), log_rows(5), keep_NV, normalise)
    divergence_N.sum().backward()
    assert divergence_N.abs().max() == 0
    assert logits.grad.abs().max() == 0


@every_normalisation
def test_gradients_of_student_and_gate_are_those_of_the_value(normalise):
    logits, logp_NV = log_rows(6).requires_grad_(), log_rows(7)
    gate_NV = (0.1 + 0.8 * torch.from_numpy(np.random.default_rng(8).random((6, 12)))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, w: clipped_divergence(torch.log_softmax(z, dim=-1), logp_NV, w, normalise), (logits, gate_NV)
    )


def literal_gradient(logits: torch.Tensor, logp_NV: torch.Tensor, keep_NV: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    clipped_divergence(torch.log_softmax(logits, dim=-1), logp_NV, keep_NV).sum().backward()
    return logits.grad


@hypothesis.given(seed=st.integers(0, 2**32), keep=st.lists(st.booleans(), min_size=12, max_size=12))
@hypothesis.settings(max_examples=25, deadline=None)
def test_gradient_of_the_literal_form_is_q_times_mass_minus_p_on_the_set(seed, keep):
    logits, logp_NV, keep_NV = log_rows(seed), log_rows(seed + 1), torch.tensor([keep]).expand(6, 12)
    kept_NV = logp_NV.exp() * keep_NV
    wanted = logits.softmax(dim=-1) * kept_NV.sum(dim=-1, keepdim=True) - kept_NV
    torch.testing.assert_close(literal_gradient(logits, logp_NV, keep_NV), wanted, atol=1e-10, rtol=0)


def test_literal_form_has_no_gradient_where_the_student_is_the_teacher_renormalised_on_the_set():
    logp_NV = log_rows(9)
    keep_NV = keep_mask(logp_NV, torch.full((6,), 0.1), torch.full((6,), 0.9))
    assert 0 < keep_NV.sum() < keep_NV.numel()
    at_rest = literal_gradient(logp_NV.masked_fill(~keep_NV, -INF), logp_NV, keep_NV)
    assert at_rest.abs().max() < 1e-12
    assert literal_gradient(logp_NV, logp_NV, keep_NV).abs().max() > 1e-3


def test_literal_form_is_a_weighted_divergence_from_the_clipped_teacher():
    logq_NV, logp_NV = log_rows(10), log_rows(11)
    keep_NV = keep_mask(logp_NV, torch.full((6,), 0.05), torch.ones(6))
    mass_N = (logp_NV.exp() * keep_NV).sum(dim=-1)
    wanted = mass_N * (clipped_divergence(logq_NV, logp_NV, keep_NV, "teacher") + mass_N.log())
    torch.testing.assert_close(clipped_divergence(logq_NV, logp_NV, keep_NV), wanted)


@every_normalisation
def test_a_full_set_is_forward_kl(normalise):
    logq_NV, logp_NV = log_rows(12), log_rows(13)
    got = clipped_divergence(logq_NV, logp_NV, torch.ones_like(logp_NV, dtype=torch.bool), normalise)
    torch.testing.assert_close(got, (logp_NV.exp() * (logp_NV - logq_NV)).sum(dim=-1))


def test_other_bin_is_exact_where_one_minus_the_mass_would_cancel():
    logp_NV = torch.log_softmax(torch.tensor([[0.0, -60.0, -61.0]]), dim=-1)
    logq_NV = torch.log_softmax(torch.tensor([[0.0, -130.0, -131.0]]), dim=-1).requires_grad_()
    value = clipped_divergence(logq_NV, logp_NV, torch.tensor([[True, False, False]]), "other_bin")
    value.sum().backward()
    assert value.item() == pytest.approx(70 * float((logp_NV[0, 1:].exp()).sum()), rel=1e-4)
    assert logq_NV.grad.isfinite().all() and logq_NV.grad[0, 1] < 0


def test_a_set_that_the_student_rules_out_gives_zero_when_both_are_renormalised():
    logits = torch.tensor([[-INF, 0.0, 1.0]], requires_grad=True)
    logq_NV, logp_NV = torch.log_softmax(logits, dim=-1), log_rows(12, 1, 3).float()
    value = clipped_divergence(logq_NV, logp_NV, torch.tensor([[True, False, False]]), "renormalise")
    value.sum().backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0
