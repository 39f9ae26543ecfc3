"""Properties of single divergences; the laws of all are in laws/test_divergence_laws.py."""

import math

import numpy as np
import pytest
import torch

from redistill.errors import ConfigError
from redistill.losses.divergences import (
    AdaptiveKL,
    AlphaBeta,
    EntropyAware,
    ForwardKL,
    HybridAcceptance,
    JensenShannon,
    NegativeLogAcceptance,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    SymmetricKL,
    ToDi,
    TotalVariation,
)
from redistill.testing.divergences import log_rows


def rows(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_forward_kl_of_a_known_pair():
    got = ForwardKL()(rows([0.25, 0.75]), rows([0.5, 0.5]))
    assert got.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_reverse_kl_is_forward_kl_with_the_roles_swapped():
    logq_NV, logp_NV = rows([0.2, 0.3, 0.5], [0.1, 0.1, 0.8]), rows([0.6, 0.3, 0.1], [0.2, 0.5, 0.3])
    torch.testing.assert_close(ReverseKL()(logq_NV, logp_NV), ForwardKL()(logp_NV, logq_NV))


def test_gradient_of_forward_kl_is_q_minus_p():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    logp_NV = rows([0.2, 0.2, 0.6])
    ForwardKL()(torch.log_softmax(logits, dim=-1), logp_NV).sum().backward()
    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), dim=-1) - logp_NV.exp())


def test_gradient_of_reverse_kl_includes_the_expectation():
    logits = torch.tensor([[0.3, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    logp_NV = rows([0.2, 0.2, 0.6])
    divergence_N = ReverseKL()(torch.log_softmax(logits, dim=-1), logp_NV)
    divergence_N.sum().backward()
    logq_NV = torch.log_softmax(logits.detach(), dim=-1)
    torch.testing.assert_close(logits.grad, logq_NV.exp() * (logq_NV - logp_NV - divergence_N.detach()))


# --- temperature --------------------------------------------------------------------------------------------------------


def test_a_temperature_applies_to_both_rows_without_a_factor():
    logq_NV, logp_NV = log_rows(1), log_rows(2)
    softer = [(row / 3).log_softmax(-1) for row in (logq_NV, logp_NV)]
    torch.testing.assert_close(JensenShannon(temperature=3.0)(logq_NV, logp_NV), JensenShannon()(*softer))


def test_at_temperature_1_rows_are_taken_as_they_are():
    """A row that does not sum to 1, such as one rounded to bfloat16, is not normalised implicitly."""
    got = TotalVariation()(rows([0.5, 0.3]), rows([0.5, 0.5]))
    assert got.item() == pytest.approx(0.1)


# --- mixtures -----------------------------------------------------------------------------------------------------------


def test_jensen_shannon_at_its_default_is_the_reference_codes():
    """lambda KL(q|m) + (1 - lambda) KL(p|m) with m = (1 - lambda) p + lambda q and lambda = 0.9, in NumPy."""
    q, p = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    m = (1 - 0.9) * p + 0.9 * q
    wanted = 0.9 * (q * np.log(q / m)).sum() + (1 - 0.9) * (p * np.log(p / m)).sum()
    assert JensenShannon()(rows([*q]), rows([*p])).item() == pytest.approx(wanted)


def test_jensen_shannon_with_equal_weights_is_symmetric():
    logq_NV, logp_NV = log_rows(3), log_rows(4)
    even = JensenShannon(teacher_weight=0.5)
    torch.testing.assert_close(even(logq_NV, logp_NV), even(logp_NV, logq_NV))
    tilted = JensenShannon(teacher_weight=0.1)
    torch.testing.assert_close(tilted(logq_NV, logp_NV), JensenShannon(teacher_weight=0.9)(logp_NV, logq_NV))


def test_the_gradient_of_jensen_shannon_flows_through_the_mixture():
    """d/d log q is (1 - w) q log(q / m); with m held fixed it would have (1 - w) q more."""
    logq_NV, logp_NV, w = rows([0.2, 0.8]).requires_grad_(), rows([0.6, 0.4]), 0.3
    JensenShannon(teacher_weight=w)(logq_NV, logp_NV).sum().backward()
    q_NV, p_NV = logq_NV.detach().exp(), logp_NV.exp()
    torch.testing.assert_close(logq_NV.grad, (1 - w) * q_NV * (q_NV / (w * p_NV + (1 - w) * q_NV)).log())


@pytest.mark.parametrize(("skew", "limit"), [(SkewForwardKL, ForwardKL), (SkewReverseKL, ReverseKL)])
def test_skew_kl_tends_to_kl(skew, limit):
    logq_NV, logp_NV = log_rows(5), log_rows(6)
    torch.testing.assert_close(skew(alpha=1e-9)(logq_NV, logp_NV), limit()(logq_NV, logp_NV), atol=1e-5, rtol=1e-5)


# --- alpha-beta and adaptive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "beta", "limit"), [(1.0, 0.0, ForwardKL), (0.0, 1.0, ReverseKL)])
def test_alpha_beta_has_both_kls_at_its_ends(alpha, beta, limit):
    logq_NV, logp_NV = log_rows(7), log_rows(8)
    torch.testing.assert_close(AlphaBeta(alpha=alpha, beta=beta)(logq_NV, logp_NV), limit()(logq_NV, logp_NV))


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.0), (0.0, 0.7)])
def test_an_exponent_of_0_is_the_limit_of_small_ones(alpha, beta):
    logq_NV, logp_NV = log_rows(9), log_rows(10)
    near = AlphaBeta(alpha=alpha or 0.01, beta=beta or 0.01)(logq_NV, logp_NV)
    torch.testing.assert_close(near, AlphaBeta(alpha=alpha, beta=beta)(logq_NV, logp_NV), atol=0, rtol=0.05)


def test_adaptive_kl_weighs_by_the_gaps_in_head_and_tail():
    """Teacher .4 .3 .2 .1, head mass .7: the head is the first two; gaps .3 + .2 in the head and .2 + .3 in the tail."""
    q, p = [0.1, 0.1, 0.4, 0.4], [0.4, 0.3, 0.2, 0.1]
    logq_NV, logp_NV = rows(q), rows(p)
    wanted = 0.5 * ForwardKL()(logq_NV, logp_NV) + 0.5 * ReverseKL()(logq_NV, logp_NV)
    torch.testing.assert_close(AdaptiveKL(head_mass=0.7000001)(logq_NV, logp_NV), wanted)


def test_the_most_probable_class_is_in_the_head_for_any_head_mass():
    q, p = [0.5, 0.4, 0.1], [0.9, 0.06, 0.04]
    logq_NV, logp_NV = rows(q), rows(p)
    share = 0.4 / (0.4 + 0.34 + 0.06)
    wanted = share * ForwardKL()(logq_NV, logp_NV) + (1 - share) * ReverseKL()(logq_NV, logp_NV)
    torch.testing.assert_close(AdaptiveKL(head_mass=0.5)(logq_NV, logp_NV), wanted)


def test_the_weights_of_adaptive_kl_are_constants_for_the_gradient():
    logq_NV, logp_NV = rows([0.5, 0.4, 0.1]).requires_grad_(), rows([0.9, 0.06, 0.04])
    AdaptiveKL()(logq_NV, logp_NV).sum().backward()
    fixed_NV = logq_NV.detach().clone().requires_grad_()
    SymmetricKL(forward_weight=0.5)(fixed_NV, logp_NV).sum().backward()  # the gaps are .4 in the head and .4 in the tail
    torch.testing.assert_close(logq_NV.grad, fixed_NV.grad)


# --- classes that a model rules out -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "divergence",
    [ForwardKL(), ReverseKL(), SymmetricKL(), AlphaBeta(alpha=1.0, beta=0.0), AlphaBeta(alpha=0.0, beta=0.7), ToDi()],
    ids=repr,
)
def test_a_class_that_one_model_rules_out_contributes_nothing_where_it_would_be_infinite(divergence):
    whole, masked = rows([0.25, 0.25, 0.5]), rows([0.5, 0.5, 0.0])
    assert divergence(masked, whole).item() == pytest.approx(divergence(masked[:, :2], whole[:, :2]).item())
    assert divergence(whole, masked).item() == pytest.approx(divergence(whole[:, :2], masked[:, :2]).item())


@pytest.mark.parametrize(
    ("divergence", "student_lacks_it", "teacher_lacks_it"),
    [
        (JensenShannon(teacher_weight=0.1), 0.1 * math.log(10), 0.9 * math.log(1 / 0.9)),
        (SkewForwardKL(alpha=0.1), math.log(10), 0.0),
        (SkewReverseKL(alpha=0.1), 0.0, math.log(10)),
        (TotalVariation(), 0.5, 0.5),
        (AlphaBeta(alpha=0.5, beta=0.5), 0.5 / 0.25, 0.5 / 0.25),
    ],
    ids=repr,
)
def test_where_it_is_finite_it_contributes_the_value_of_the_formula(divergence, student_lacks_it, teacher_lacks_it):
    """A row of one class that has all the mass in one model and none in the other: all other classes are unchanged."""
    all_, none = rows([1.0]), rows([0.0])
    assert divergence(none, all_).item() == pytest.approx(student_lacks_it)
    assert divergence(all_, none).item() == pytest.approx(teacher_lacks_it, abs=1e-12)


def test_a_probability_that_underflows_counts_as_0():
    none, tiny, all_ = rows([0.0]), torch.tensor([[-5000.0]], dtype=torch.float64), rows([1.0])
    for divergence in (JensenShannon(), SkewForwardKL(), SkewReverseKL()):
        for one, other in (((none, all_), (tiny, all_)), ((all_, none), (all_, tiny))):
            torch.testing.assert_close(divergence(*one), divergence(*other))


def test_acceptance_of_distributions_without_a_common_class_is_finite_and_has_a_gradient_of_no_nan():
    logits_NV = torch.tensor([[0.0, -float("inf")]]).requires_grad_()
    value_N = NegativeLogAcceptance()(logits_NV.log_softmax(-1), torch.tensor([[-float("inf"), 0.0]]))
    value_N.sum().backward()
    assert 100 < value_N.item() < 200 and not logits_NV.grad.isnan().any()


def test_the_hybrid_is_forward_kl_without_decay_and_total_variation_with_a_fast_one():
    logq_NV, logp_NV = rows([0.2, 0.3, 0.5]), rows([0.1, 0.6, 0.3])
    torch.testing.assert_close(HybridAcceptance(decay=0.0)(logq_NV, logp_NV), ForwardKL()(logq_NV, logp_NV))
    torch.testing.assert_close(HybridAcceptance(decay=100.0)(logq_NV, logp_NV), TotalVariation()(logq_NV, logp_NV))


# --- ranges -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ForwardKL(temperature=0.0), "temperature = 0.0: must be > 0 and finite"),
        (lambda: AlphaBeta(temperature=float("nan")), "temperature = nan: must be > 0 and finite"),
        (lambda: ForwardKL(teacher_temperature=0.0), "teacher_temperature = 0.0: must be > 0 and finite"),
        (lambda: ToDi(sharpness=-1.0), "sharpness = -1.0: must be finite and at least 0; the paper uses 1"),
        (lambda: EntropyAware(threshold_nats=float("nan")), "threshold_nats = nan: must be at least 0"),
        (lambda: HybridAcceptance(decay=float("inf")), "decay = inf: must be finite and at least 0; 0 is forward KL"),
        (lambda: SymmetricKL(forward_weight=1.0), "forward_weight = 1.0: must lie in (0, 1); for one direction alone"),
        (lambda: JensenShannon(teacher_weight=0.0), "teacher_weight = 0.0: must lie in (0, 1)"),
        (lambda: SkewForwardKL(alpha=1.5), "alpha = 1.5: must lie in (0, 1); the paper uses 0.1"),
        (lambda: SkewReverseKL(alpha=float("nan")), "alpha = nan: must lie in (0, 1)"),
        (lambda: AdaptiveKL(head_mass=0.0), "head_mass = 0.0: must lie in (0, 1)"),
        (lambda: AlphaBeta(alpha=-0.2), "alpha = -0.2: must be 0, or finite and at least 0.01"),
        (lambda: AlphaBeta(beta=1e-6), "beta = 1e-06: must be 0, or finite and at least 0.01"),
        (lambda: AlphaBeta(alpha=float("nan")), "alpha = nan: must be 0, or finite"),
        (lambda: AlphaBeta(alpha=0.0, beta=0.0), "alpha = beta = 0: at least one must be above 0"),
    ],
)
def test_values_out_of_range_are_rejected(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
