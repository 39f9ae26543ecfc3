"""Every member of the union of divergences satisfies the laws of redistill.testing and equals its formula in NumPy."""

from dataclasses import dataclass
from typing import Any, get_args

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from redistill.losses.divergences import (
    AdaptiveKL,
    AlphaBeta,
    Divergence,
    EntropyAware,
    ForwardKL,
    HybridAcceptance,
    JensenShannon,
    NegativeLogAcceptance,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    SymmetricKL,
    Taid,
    ToDi,
    TotalVariation,
)
from redistill.testing.divergences import DIVERGENCE_LAWS, check_divergence, log_rows
from redistill.testing.laws import disobeyed


def kl(a, b):
    return (a * np.log(a / b)).sum(-1)


def adaptive(d, q, p):
    values = []
    for q_V, p_V in zip(q, p, strict=True):
        order = np.argsort(-p_V)
        head = max(1, int((np.cumsum(p_V[order]) <= d.head_mass).sum()))
        gap_V = np.abs(p_V - q_V)[order]
        fraction = gap_V[:head].sum() / gap_V.sum()
        values.append(fraction * kl(p_V, q_V) + (1 - fraction) * kl(q_V, p_V))
    return np.array(values)


def alpha_beta(d, q, p):
    a, b = d.alpha, d.beta
    if b == 0:
        return (p**a * np.log(p**a / q**a) - p**a + q**a).sum(-1) / a**2
    if a == 0:
        return (q**b * np.log(q**b / p**b) - q**b + p**b).sum(-1) / b**2
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)).sum(-1) / (a * b)


def jensen_shannon(d, q, p):
    w = d.teacher_weight
    m = w * p + (1 - w) * q
    return w * kl(p, m) + (1 - w) * kl(q, m)


def todi(d, q, p):
    w = 1 / (1 + (q / p) ** d.sharpness)
    return (w * p * np.log(p / q) + (1 - w) * q * np.log(q / p)).sum(-1)


def entropy_aware(d, q, p):
    return kl(q, p) + np.where(-(p * np.log(p)).sum(-1) > d.threshold_nats, kl(p, q), 0.0)


def hybrid_acceptance(d, q, p):
    acceptance = np.minimum(p, q).sum(-1)
    w = np.exp(-d.decay * acceptance)
    return w * kl(p, q) + (1 - w) * (1 - acceptance)


def taid(d, q, p):
    target = q ** (1 - d.t_start) * p**d.t_start
    return kl(target / target.sum(-1, keepdims=True), q)


ORACLES = {
    ForwardKL: lambda d, q, p: kl(p, q),
    ReverseKL: lambda d, q, p: kl(q, p),
    SymmetricKL: lambda d, q, p: d.forward_weight * kl(p, q) + (1 - d.forward_weight) * kl(q, p),
    JensenShannon: jensen_shannon,
    TotalVariation: lambda d, q, p: np.abs(p - q).sum(-1) / 2,
    SkewForwardKL: lambda d, q, p: kl(p, d.alpha * p + (1 - d.alpha) * q),
    SkewReverseKL: lambda d, q, p: kl(q, (1 - d.alpha) * p + d.alpha * q),
    AdaptiveKL: adaptive,
    AlphaBeta: alpha_beta,
    ToDi: todi,
    EntropyAware: entropy_aware,
    NegativeLogAcceptance: lambda d, q, p: -np.log(np.minimum(p, q).sum(-1)),
    HybridAcceptance: hybrid_acceptance,
    Taid: taid,
}


def cases(members: tuple[type, ...]) -> list[Any]:
    """All examples of all members, with their repr as test id."""
    found = []
    for member in members:
        examples = getattr(member, "examples", tuple)()
        assert examples, f"{member.__name__} must define examples() for the tests of the laws"
        found += [pytest.param(example, id=repr(example)) for example in examples]
    return found


every_member = pytest.mark.parametrize("divergence", cases(get_args(Divergence)))


def test_a_member_without_examples_is_rejected():
    class Newcomer:
        pass

    with pytest.raises(AssertionError, match=r"Newcomer must define examples\(\)"):
        cases((ForwardKL, Newcomer))


def test_every_member_has_an_oracle():
    assert set(ORACLES) == set(get_args(Divergence))


@pytest.mark.parametrize("member", get_args(Divergence))
def test_the_examples_of_every_member_include_a_temperature_of_the_teacher(member):
    assert any(example.teacher_temperature != 1 for example in member.examples())


@every_member
@pytest.mark.parametrize("law", DIVERGENCE_LAWS)
def test_law(divergence, law):
    if law in disobeyed(divergence, DIVERGENCE_LAWS):
        with pytest.raises(AssertionError, match=law):
            DIVERGENCE_LAWS[law](divergence)
    else:
        DIVERGENCE_LAWS[law](divergence)


@every_member
@hypothesis.given(seed=st.integers(0, 2**32), vocabulary=st.integers(2, 40), scale=st.floats(0.01, 8))
@hypothesis.settings(max_examples=25, deadline=None)
def test_equals_the_formula_in_numpy(divergence, seed, vocabulary, scale):
    logq_NV, logp_NV = (log_rows(seed + i, vocabulary=vocabulary, scale=scale) for i in (0, 1))
    q_NV = np.exp(logq_NV.numpy() / divergence.temperature)
    p_NV = np.exp(logp_NV.numpy() / divergence.temperature / divergence.teacher_temperature)
    q_NV, p_NV = (rows / rows.sum(-1, keepdims=True) for rows in (q_NV, p_NV))
    expected = ORACLES[type(divergence)](divergence, q_NV, p_NV)
    np.testing.assert_allclose(divergence(logq_NV, logp_NV).numpy(), expected, atol=1e-8, rtol=0)
    single = divergence(logq_NV.float(), logp_NV.float())
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("member", get_args(Divergence))
def test_a_sharpened_teacher_is_the_teacher_at_its_own_temperature(member):
    logq_NV, logp_NV = log_rows(1), log_rows(2)
    sharp_NV = torch.log_softmax(logp_NV / 0.65, dim=-1)
    torch.testing.assert_close(member(teacher_temperature=0.65)(logq_NV, logp_NV), member()(logq_NV, sharp_NV))


# --- violations are detected --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A divergence that violates the law `breaks`."""

    breaks: str

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        if self.breaks == "inputs_are_not_modified":
            logp_NV -= 1.0
        if self.breaks == "nan_is_propagated":
            logq_NV = logq_NV.nan_to_num()
        if self.breaks == "half_precision_is_computed_in_float32":
            return TotalVariation()(logq_NV, logp_NV).to(logq_NV.dtype)
        if self.breaks == "float64_stays_float64":
            return TotalVariation()(logq_NV.float(), logp_NV)
        if self.breaks == "one_value_per_row":
            return TotalVariation()(logq_NV, logp_NV).sum()
        if self.breaks == "rows_are_independent":
            return TotalVariation()(logq_NV, logp_NV) * len(logq_NV)
        if self.breaks == "zero_when_equal":
            return -(logp_NV.exp().detach() * logq_NV).sum(-1)
        if self.breaks == "positive_when_a_class_differs":
            return -TotalVariation()(logq_NV, logp_NV)
        if self.breaks == "gradient_matches_finite_differences":
            return TotalVariation()(logq_NV, logp_NV).detach() + 0 * logq_NV.sum(-1)
        if self.breaks == "zero_gradient_when_equal":
            return logq_NV.sum(-1) - logq_NV.sum(-1).detach()
        if self.breaks == "finite_on_extreme_logits":
            return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)
        if self.breaks == "excluded_classes_have_no_effect":
            return TotalVariation()(logq_NV, logp_NV) / logq_NV.shape[-1]
        if self.breaks == "accurate_close_to_the_teacher":
            return ForwardKL()(logq_NV if logq_NV.dtype == torch.float64 else logq_NV.bfloat16(), logp_NV)
        return TotalVariation()(logq_NV, logp_NV) + logp_NV.sum(-1) - logp_NV.sum(-1).detach()


@pytest.mark.parametrize("law", [law for law in DIVERGENCE_LAWS if law != "is_a_frozen_dataclass"])
def test_a_violation_names_the_law(law):
    with pytest.raises(AssertionError, match=rf"Wrong\(breaks='{law}'\) violates the law {law}: "):
        DIVERGENCE_LAWS[law](Wrong(breaks=law))


def test_a_plain_function_is_not_a_configuration():
    with pytest.raises(AssertionError, match="violates the law is_a_frozen_dataclass: must be a dataclass with frozen=True"):
        check_divergence(lambda logq_NV, logp_NV: TotalVariation()(logq_NV, logp_NV))


@pytest.mark.parametrize(
    ("declared", "message"),
    [({"zero_when_eqal": "why"}, "unknown law 'zero_when_eqal'; must be one of"), ({"zero_when_equal": " "}, "has no reason")],
)
def test_an_exception_names_a_law_and_a_reason(declared, message):
    class Exempt(TotalVariation):
        disobeys = declared

    with pytest.raises(AssertionError, match=message):
        check_divergence(Exempt())


def test_an_exempted_law_is_skipped():
    @dataclass(frozen=True, kw_only=True)
    class CrossEntropy:
        disobeys = {  # noqa: RUF012
            "zero_when_equal": "the teacher's entropy is left out",
            "positive_when_a_class_differs": "as above, it is compared with the entropy",
            "finite_on_extreme_logits": "classes of probability 0 are not handled",
            "excluded_classes_have_no_effect": "as above",
        }

        def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
            dtype = torch.promote_types(logq_NV.dtype, torch.float32)
            return -(logp_NV.detach().to(dtype).exp() * logq_NV.to(dtype)).sum(-1)

    check_divergence(CrossEntropy())
