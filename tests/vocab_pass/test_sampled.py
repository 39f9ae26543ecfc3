"""Sampled classes of a teacher: the estimate of forward KL, its gradient, and rows that are padded with classes of weight 0."""

import pytest
import torch

from redistill.contracts import SampledClasses
from redistill.losses.divergences import ForwardKL, ReverseKL
from redistill.randomness import generator
from redistill.training.guards.readings import _numbers
from redistill.vocab_pass import DivergenceTerm, Head, compiles, dense_reference, vocab_pass

ROWS, WIDTH, VOCABULARY, CLASSES = 9, 5, 40, 6


def normal(*shape: int, key: str) -> torch.Tensor:
    return torch.from_numpy(generator(0, "sampled-test", key).normal(size=shape)).float()


def sampled(rows: slice) -> SampledClasses:
    """Six classes of each row, the last with weight 0."""
    class_NK = torch.from_numpy(generator(0, "sampled-test", "classes").integers(0, VOCABULARY, (ROWS, CLASSES)))
    weight_NK = normal(ROWS, CLASSES, key="weights").abs()
    weight_NK[:, -1] = 0.0
    return SampledClasses(class_NK[rows], weight_NK[rows], normal(ROWS, key="entropy").abs()[rows])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_loss_is_a_weighted_cross_entropy_minus_the_entropy(compiled: bool) -> None:
    if compiled and not compiles("auto", 10**6, "cpu"):
        pytest.skip("no C++ compiler on this machine")
    hidden_ND, head = normal(ROWS, WIDTH, key="hidden").requires_grad_(), Head(normal(VOCABULARY, WIDTH, key="head"))
    weight_N = torch.arange(ROWS) / 7.0
    terms = (DivergenceTerm(0.5, ForwardKL(), ROWS, weight_N=weight_N),)
    found, sums = vocab_pass(hidden_ND, head, sampled, terms, 3 * VOCABULARY * 4, compiled=compiled)
    found.backward()
    again_ND, target = hidden_ND.detach().double().requires_grad_(), sampled(slice(0, ROWS))
    logq_NV = torch.log_softmax(again_ND @ head.weight_VD.double().T, dim=-1)
    estimate_N = -(target.weight_NK * logq_NV.gather(1, target.class_NK)).sum(dim=1) - target.entropy_N
    expected = (estimate_N * weight_N).sum()
    (0.5 * expected).backward()
    assert float(sums["divergence"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    torch.testing.assert_close(hidden_ND.grad, again_ND.grad.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense_reference(hidden_ND, head, sampled, terms)[0], found.detach())


def test_a_class_of_weight_0_is_ignored_also_if_the_student_excludes_it() -> None:
    logq_NK = torch.tensor([[-1.0, -torch.inf]], requires_grad=True)
    found = ForwardKL().of_samples(logq_NK, torch.tensor([[1.0, 0.0]]), torch.tensor([0.5]))
    found.sum().backward()
    assert found.tolist() == [0.5] and logq_NK.grad.tolist() == [[-1.0, 0.0]]


def test_another_divergence_cannot_be_computed() -> None:
    hidden_ND, head = normal(ROWS, WIDTH, key="hidden"), Head(normal(VOCABULARY, WIDTH, key="head"))
    with pytest.raises(AssertionError, match="needs the teacher's probabilities"):
        vocab_pass(hidden_ND, head, sampled, (DivergenceTerm(0.5, ReverseKL(), ROWS),))


def test_a_failed_update_is_described_by_the_weights() -> None:
    assert torch.equal(_numbers(sampled(slice(0, 2))), sampled(slice(0, 2)).weight_NK)
