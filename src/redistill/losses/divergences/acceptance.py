"""Divergences for draft models of speculative decoding.

The student drafts tokens, and the teacher accepts or rejects them.  A token that is sampled from the student is accepted with
probability alpha = sum_v min(p_v, q_v) = 1 - TV(p, q) (Leviathan et al., arXiv 2211.17192).  The divergences raise alpha.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from redistill.errors import check_field
from redistill.losses.divergences.softened import Softened, bounded, log_ratio


@dataclass(frozen=True, kw_only=True)
class NegativeLogAcceptance(Softened):
    r"""Negative logarithm of the acceptance probability of speculative decoding.

    .. math:: D(p, q) = -\log \alpha, \qquad \alpha = \sum_v \min(p_v, q_v)

    p is the teacher, q the student (the draft model). Source: LK losses (arXiv 2602.23881). D is in nats per token, D >= 0,
    and D = 0 exactly when p = q. The gradient flows through q only. It equals the gradient of total variation, divided
    by alpha. Therefore it does not vanish where nearly all tokens are rejected.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.  Its maximum, if p and q have no class in common, is 175 (1417 in float64).

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6]]).log()
        >>> NegativeLogAcceptance()(logq_NV, logp_NV)  # alpha = 0.4 + 0.1
        tensor([0.6931])

    See also: TotalVariation, which is 1 - alpha; HybridAcceptance.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        return -log_acceptance(*self.softened(logq_NV, logp_NV))


@dataclass(frozen=True, kw_only=True)
class HybridAcceptance(Softened):
    r"""Forward KL and total variation, weighted by the acceptance probability.

    .. math:: D(p, q) = \lambda\,\mathrm{KL}(p \,\|\, q) + (1 - \lambda)\,\mathrm{TV}(p, q),
              \qquad \lambda = e^{-\eta \alpha},\quad \alpha = \sum_v \min(p_v, q_v)

    p is the teacher, q the student (the draft model), eta = `decay`. The weight of KL falls as alpha rises. KL has large
    gradients where the models differ much; total variation is 1 - alpha. Source: the hybrid of LK losses (arXiv 2602.23881).
    KL is in nats per token, TV in [0, 1]. D >= 0, and D = 0 exactly when p = q. The gradient flows through q only, and treats
    lambda as a constant.

    Args:
        decay: Rate eta at which the weight of KL falls with alpha, >= 0 and finite; 0 is forward KL.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: decay is negative or not finite.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> HybridAcceptance()(logq_NV, logp_NV)
        tensor([0.5110])

    See also: NegativeLogAcceptance.
    """

    disobeys: ClassVar[Mapping[str, str]] = {
        "gradient_matches_finite_differences": "lambda depends on the student, but has no gradient (arXiv 2602.23881)"
    }

    decay: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "decay", 0 <= self.decay < float("inf"), "must be finite and at least 0; 0 is forward KL")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        forward_N = (logp_NV.exp() * log_ratio(logp_NV, logq_NV)).sum(dim=-1)
        variation_N = 0.5 * (logp_NV.exp() - logq_NV.exp()).abs().sum(dim=-1)
        weight_N = (-self.decay * (1 - variation_N.detach())).exp()
        return weight_N * forward_N + (1 - weight_N) * variation_N

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(decay=0.5, temperature=2.0), cls(teacher_temperature=0.7))


def log_acceptance(logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
    r"""Return the logarithm of the probability that a token of the student is accepted.

    .. math:: \log \alpha = \log \sum_v \min(p_v, q_v)

    Args:
        logq_NV: Log-probabilities of the student, which drafts the token.
        logp_NV: Log-probabilities of the teacher, same shape.

    Returns:
        log alpha for each row, in nats, at most 0 up to rounding; finite also where p and q have no class in common.

    Example:
        >>> log_acceptance(torch.tensor([[0.4, 0.6]]).log(), torch.tensor([[0.9, 0.1]]).log()).exp()
        tensor([0.5000])
    """
    return torch.logsumexp(bounded(torch.minimum(logq_NV, logp_NV)), dim=-1)
