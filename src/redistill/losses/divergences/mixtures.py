"""Divergences to a mixture of teacher and student.

The divergences are finite even if a model gives a class the probability 0.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch

from redistill.losses.divergences.softened import Softened, bounded, fraction


@dataclass(frozen=True, kw_only=True)
class JensenShannon(Softened):
    r"""Generalised Jensen-Shannon divergence: KL of both models to their mixture.

    .. math:: D(p, q) = w\,\mathrm{KL}(p \,\|\, m) + (1 - w)\,\mathrm{KL}(q \,\|\, m), \qquad m = w p + (1 - w) q

    p is the teacher, q the student, m the mixture, and w is `teacher_weight`. Source: GKD (arXiv 2306.13649), which calls w
    beta; "JSD" in Table 3c of MGSR. With the default w = 0.1, m is mostly the student. The published DistiLLM code also has
    w = 0.1 (there lambda = 1 - w = 0.9), and TRL has w = 0.5. D is in nats per token, and D = 0 exactly when p = q. D is at
    most the entropy of (w, 1 - w), and so at most log 2. The gradient flows through q, including q in m. For w near 0, D is
    about w KL(p || q); for w near 1, D is about (1 - w) KL(q || p). Gradients are small in both cases.

    Args:
        teacher_weight: Weight of the teacher in the mixture, and of the KL from the teacher to the mixture, in (0, 1).

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: teacher_weight outside (0, 1).

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
        >>> JensenShannon(teacher_weight=0.5)(logq_NV, logp_NV)
        tensor([0.6931])

    See also: SkewForwardKL and SkewReverseKL, which consist of one of the two terms.
    """

    teacher_weight: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("teacher_weight", self.teacher_weight, "the reference code uses 0.1, TRL's GKD 0.5")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        weight = self.teacher_weight
        return weight * _kl_to_mixture(logp_NV, logq_NV, weight) + (1 - weight) * _kl_to_mixture(logq_NV, logp_NV, 1 - weight)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(teacher_weight=0.5), cls(teacher_weight=0.9, temperature=2.0), cls(teacher_temperature=0.7))


@dataclass(frozen=True, kw_only=True)
class SkewForwardKL(Softened):
    r"""Forward KL toward a mixture of teacher and student.

    .. math:: D(p, q) = \mathrm{KL}\bigl(p \,\|\, \alpha p + (1 - \alpha) q\bigr)

    p is the teacher, q the student. Source: DistiLLM (arXiv 2402.03898), its skew KL; SFKL in Table 3c of MGSR. D is in nats
    per token, 0 <= D <= -log(alpha), and D = 0 exactly when p = q. The gradient flows through q only.

    Args:
        alpha: Weight of the teacher in the mixture, in (0, 1); the paper's value is 0.1.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: alpha outside (0, 1).

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
        >>> SkewForwardKL(alpha=0.1)(logq_NV, logp_NV)
        tensor([2.3026])

    See also: ForwardKL (alpha -> 0), JensenShannon.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("alpha", self.alpha, "the paper uses 0.1; forward_kl is the limit 0")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        return _kl_to_mixture(logp_NV, logq_NV, self.alpha)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(alpha=0.5, temperature=2.0), cls(teacher_temperature=0.7))


@dataclass(frozen=True, kw_only=True)
class SkewReverseKL(Softened):
    r"""Reverse KL toward a mixture of teacher and student.

    .. math:: D(p, q) = \mathrm{KL}\bigl(q \,\|\, (1 - \alpha) p + \alpha q\bigr)

    p is the teacher, q the student. Source: DistiLLM (arXiv 2402.03898), its skew reverse KL; SRKL in Table 3c of MGSR. D is in
    nats per token, 0 <= D <= -log(alpha), and D = 0 exactly when p = q. The gradient flows through both occurrences of q.

    Args:
        alpha: Weight of the student in the mixture, in (0, 1); the paper's value is 0.1.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: alpha outside (0, 1).

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.0, 1.0]]).log()
        >>> SkewReverseKL(alpha=0.1)(logq_NV, logp_NV)
        tensor([2.3026])

    See also: ReverseKL (alpha -> 0), JensenShannon.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("alpha", self.alpha, "the paper uses 0.1; reverse_kl is the limit 0")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        return _kl_to_mixture(logq_NV, logp_NV, self.alpha)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(alpha=0.5, temperature=2.0), cls(teacher_temperature=0.7))


def _kl_to_mixture(log_a_NV: torch.Tensor, log_b_NV: torch.Tensor, weight: float) -> torch.Tensor:
    """Return KL(a || m) of each row, with the mixture m = weight a + (1 - weight) b.

    The KL is computed from log(m / a), which is accurate if a and b are close.
    """
    odds_NV = bounded(log_b_NV) - bounded(log_a_NV) + math.log1p(-weight) - math.log(weight)
    # log(m / a) = log(weight) + log(1 + exp(odds)).  Softplus saves one tensor for the backward pass, and logaddexp would save
    # three.
    log_mixture_NV = torch.nn.functional.softplus(odds_NV, threshold=50.0) + math.log(weight)
    return -(log_a_NV.exp() * log_mixture_NV).sum(dim=-1)
