"""Divergences other than KL: total variation, and the alpha-beta family.

The alpha-beta family contains both directions of KL.
"""

from dataclasses import dataclass
from typing import Self

import torch

from redistill.errors import ConfigError, check_field
from redistill.losses.divergences.softened import Softened, log_ratio

SMALLEST_EXPONENT = 0.01  # for smaller exponents, the terms of alpha-beta cancel in float32


@dataclass(frozen=True, kw_only=True)
class TotalVariation(Softened):
    r"""Total variation: half the L1 distance of the two distributions.

    .. math:: D(p, q) = \tfrac{1}{2} \sum_v |p_v - q_v|

    p is the teacher, q the student. Source: f-distill (arXiv 2307.15190), per token; "TVD" in Table 3c of MGSR. The value is a
    probability mass per token, in [0, 1], and 0 exactly when p = q. The gradient flows through q only; with respect to q_v it
    is +-1/2, independent of the size of the difference.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> TotalVariation()(logq_NV, logp_NV)
        tensor([0.7000])

    See also: JensenShannon, which is bounded and smooth.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        return 0.5 * (logp_NV.exp() - logq_NV.exp()).abs().sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class AlphaBeta(Softened):
    r"""Alpha-beta divergence; forward KL at (1, 0), reverse KL at (0, 1).

    .. math:: D(p, q) = \frac{1}{\alpha \beta} \sum_v \Bigl( \frac{\alpha}{s} p_v^{s} + \frac{\beta}{s} q_v^{s}
              - p_v^{\alpha} q_v^{\beta} \Bigr), \qquad s = \alpha + \beta

    p is the teacher, q the student. For an exponent of 0, D is defined as the limit,

    .. math:: \beta = 0:\; \frac{1}{\alpha^2} \sum_v \Bigl( p_v^{\alpha} \log \frac{p_v^{\alpha}}{q_v^{\alpha}}
              - p_v^{\alpha} + q_v^{\alpha} \Bigr).

    For alpha = 0, D is the formula for beta = 0 with p and q exchanged, and with beta in place of alpha. Source:
    Cichocki et al. (2011); for distillation, ABKD (arXiv 2505.04560), whose public implementations use alpha = 0.2 and
    beta = 0.7 by default. D >= 0, and 0 exactly when p = q. The unit is nats per token only if s = 1. The gradient flows
    through q only; with respect to log q it is q^beta (q^alpha - p^alpha) / alpha.

    Args:
        alpha: Exponent of the teacher, 0 or at least 0.01. The gradient with respect to log q has the factor
            (q^alpha - p^alpha) / alpha, which is q - p for alpha = 1, and log(q / p) for alpha = 0.
        beta: Exponent of the student, 0 or at least 0.01; at least one exponent is above 0. The gradient has the factor
            q^beta.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: an exponent is negative, not finite or in (0, 0.01), or both are 0.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log()
        >>> AlphaBeta(alpha=1.0, beta=0.0)(logq_NV, logp_NV)
        tensor([1.1457])

    See also: ForwardKL (alpha 1, beta 0), ReverseKL (alpha 0, beta 1).
    """

    alpha: float = 0.2
    beta: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"must be 0, or finite and at least {SMALLEST_EXPONENT}; use 0 for a smaller value"
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            check_field(self, name, value == 0 or SMALLEST_EXPONENT <= value < float("inf"), allowed)
        if self.alpha == self.beta == 0:
            raise ConfigError("alpha = beta = 0: at least one must be above 0; ABKD uses 0.2 and 0.7")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        alpha, beta, total = self.alpha, self.beta, self.alpha + self.beta
        if beta == 0:
            return _power_kl(logp_NV, logq_NV, alpha)
        if alpha == 0:
            return _power_kl(logq_NV, logp_NV, beta)
        own_NV = (alpha / total) * (total * logp_NV).exp() + (beta / total) * (total * logq_NV).exp()
        return (own_NV - (alpha * logp_NV + beta * logq_NV).exp()).sum(dim=-1) / (alpha * beta)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (
            cls(),
            cls(alpha=0.5, beta=0.5),
            cls(alpha=1.0, beta=0.0),
            cls(alpha=0.0, beta=0.7, temperature=2.0),
            cls(teacher_temperature=0.7),
        )


def _power_kl(log_a_NV: torch.Tensor, log_b_NV: torch.Tensor, power: float) -> torch.Tensor:
    """Return the generalised KL divergence of powers of a and b, for each row.

    The powers are a^power and b^power, and the result is divided by power^2.  a and b are the distributions of the two
    arguments; their powers are not normalised.  A class with log-probability -inf in `log_a_NV` or `log_b_NV` contributes
    0.
    """
    powered_NV = (power * log_a_NV).exp()
    terms_NV = powered_NV * (power * log_ratio(log_a_NV, log_b_NV) - 1) + (power * log_b_NV).exp()
    return terms_NV.masked_fill(log_a_NV.isneginf() | log_b_NV.isneginf(), 0.0).sum(dim=-1) / power**2
