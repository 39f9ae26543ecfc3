"""What tells the divergences apart; the laws that they share are in laws/test_divergence_laws.py."""

import math

import pytest
import torch

from redistill.divergences import ForwardKL, ReverseKL


def rows(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_forward_kl_of_a_known_pair():
    got = ForwardKL()(rows([0.25, 0.75]), rows([0.5, 0.5]))
    assert got.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_reverse_kl_is_forward_kl_with_the_roles_swapped():
    logq_NV, logp_NV = rows([0.2, 0.3, 0.5], [0.1, 0.1, 0.8]), rows([0.6, 0.3, 0.1], [0.2, 0.5, 0.3])
    torch.testing.assert_close(ReverseKL()(logq_NV, logp_NV), ForwardKL()(logp_NV, logq_NV))


def test_forward_kl_pulls_the_logits_by_q_minus_p():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    logp_NV = rows([0.2, 0.2, 0.6])
    ForwardKL()(torch.log_softmax(logits, dim=-1), logp_NV).sum().backward()
    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), dim=-1) - logp_NV.exp())


def test_reverse_kl_pulls_the_logits_through_the_expectation_too():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    logp_NV = rows([0.2, 0.2, 0.6])
    divergence_N = ReverseKL()(torch.log_softmax(logits, dim=-1), logp_NV)
    divergence_N.sum().backward()
    logq_NV = torch.log_softmax(logits.detach(), dim=-1)
    torch.testing.assert_close(logits.grad, logq_NV.exp() * (logq_NV - logp_NV - divergence_N.detach()))


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL()])
def test_a_class_that_one_model_rules_out_contributes_nothing(divergence):
    whole, masked = rows([0.25, 0.25, 0.5]), rows([0.5, 0.5, 0.0])
    assert divergence(masked, whole).item() == pytest.approx(divergence(masked[:, :2], whole[:, :2]).item())
    assert divergence(whole, masked).item() == pytest.approx(divergence(whole[:, :2], masked[:, :2]).item())
