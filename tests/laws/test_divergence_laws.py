"""What every divergence must obey; a new member of the union is tried here by being listed there."""

from typing import Any, get_args

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from redistill.divergences import Divergence, ForwardKL, ReverseKL

ORACLES = {
    ForwardKL: lambda d, q, p: (p * np.log(p / q)).sum(-1),
    ReverseKL: lambda d, q, p: (q * np.log(q / p)).sum(-1),
}


def cases(members: tuple[type, ...]) -> list[Any]:
    """Every example of every member, named for the test report."""
    found = []
    for member in members:
        examples = getattr(member, "examples", tuple)()
        assert examples, f"{member.__name__} needs examples() that the laws can be tried on"
        found += [pytest.param(example, id=repr(example)) for example in examples]
    return found


every_member = pytest.mark.parametrize("divergence", cases(get_args(Divergence)))


def log_rows(seed: int, num_rows: int = 5, vocabulary: int = 11, scale: float = 2.0) -> torch.Tensor:
    logits = scale * np.random.default_rng(seed).standard_normal((num_rows, vocabulary))
    return torch.log_softmax(torch.from_numpy(logits), dim=-1)


def test_a_member_without_examples_is_refused():
    class Newcomer:
        pass

    with pytest.raises(AssertionError, match=r"Newcomer needs examples\(\)"):
        cases((ForwardKL, Newcomer))


def test_every_member_has_an_oracle():
    assert set(ORACLES) == set(get_args(Divergence))


@every_member
@hypothesis.given(seed=st.integers(0, 2**32), vocabulary=st.integers(2, 40), scale=st.floats(0.01, 8))
@hypothesis.settings(max_examples=25, deadline=None)
def test_equals_the_formula_in_numpy(divergence, seed, vocabulary, scale):
    logq_NV, logp_NV = (log_rows(seed + i, vocabulary=vocabulary, scale=scale) for i in (0, 1))
    wanted = ORACLES[type(divergence)](divergence, np.exp(logq_NV.numpy()), np.exp(logp_NV.numpy()))
    np.testing.assert_allclose(divergence(logq_NV, logp_NV).numpy(), wanted, atol=1e-6)
    single = divergence(logq_NV.float(), logp_NV.float())
    np.testing.assert_allclose(single.numpy(), wanted, atol=1e-5, rtol=1e-5)


@every_member
def test_zero_when_equal(divergence):
    logp_NV = log_rows(1)
    assert divergence(logp_NV.clone(), logp_NV).abs().max() < 1e-12


@every_member
@hypothesis.given(seed=st.integers(0, 2**32), class_=st.integers(0, 10), change=st.floats(0.01, 5))
@hypothesis.settings(max_examples=25, deadline=None)
def test_positive_when_any_class_differs(divergence, seed, class_, change):
    logp_NV = log_rows(seed)
    logits = logp_NV.clone()
    logits[:, class_] += change
    assert (divergence(torch.log_softmax(logits, dim=-1), logp_NV) > 0).all()


@every_member
def test_gradient_is_that_of_the_value(divergence):
    logits = log_rows(2).requires_grad_()
    logp_NV = log_rows(3)
    assert torch.autograd.gradcheck(lambda z: divergence(torch.log_softmax(z, dim=-1), logp_NV), logits)


@every_member
def test_teacher_gets_no_gradient(divergence):
    logq_NV, logp_NV = log_rows(4).requires_grad_(), log_rows(5).requires_grad_()
    divergence(logq_NV, logp_NV).sum().backward()
    assert logp_NV.grad is None
    assert logq_NV.grad is not None and logq_NV.grad.abs().sum() > 0


@every_member
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_single(divergence, dtype):
    logq_NV, logp_NV = log_rows(6).to(dtype), log_rows(7).to(dtype)
    got = divergence(logq_NV, logp_NV)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), divergence(logq_NV.double(), logp_NV.double()), atol=1e-5, rtol=1e-5)


@every_member
def test_double_stays_double(divergence):
    assert divergence(log_rows(8), log_rows(9)).dtype == torch.float64


@every_member
def test_finite_on_extreme_logits(divergence):
    inf = float("inf")
    student = torch.tensor([[0.0, -1e4, 1e4], [1e4, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 1.0, -inf]]).requires_grad_()
    teacher = torch.tensor([[1e4, -1e4, 0.0], [0.0, 1e4, -1e4], [5.0, -inf, -inf], [0.0, 1.0, -inf]])
    value = divergence(torch.log_softmax(student, dim=-1), torch.log_softmax(teacher, dim=-1))
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad is not None and student.grad.isfinite().all()


@every_member
def test_a_class_that_both_rule_out_changes_nothing(divergence):
    logq_NV, logp_NV = log_rows(10), log_rows(11)
    padded = [torch.nn.functional.pad(rows, (0, 3), value=-float("inf")) for rows in (logq_NV, logp_NV)]
    torch.testing.assert_close(divergence(*padded), divergence(logq_NV, logp_NV), atol=0, rtol=1e-14)


@every_member
def test_a_row_does_not_see_its_neighbours(divergence):
    logq_NV, logp_NV = log_rows(12), log_rows(13)
    torch.testing.assert_close(divergence(logq_NV[1:3], logp_NV[1:3]), divergence(logq_NV, logp_NV)[1:3])


@every_member
def test_nan_is_not_hidden(divergence):
    logq_NV = log_rows(14)
    logq_NV[0, 0] = float("nan")
    assert divergence(logq_NV, log_rows(15)).isnan().tolist() == [True, False, False, False, False]
