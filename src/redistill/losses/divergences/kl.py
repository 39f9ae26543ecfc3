"""Forward and reverse KL, and fixed and adaptive combinations of both."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch

from redistill.contracts import Needs
from redistill.losses.divergences.softened import Softened, fraction, log_ratio


@dataclass(frozen=True, kw_only=True)
class ForwardKL(Softened):
    r"""Forward KL, the standard distillation loss (mode-covering).

    .. math:: D(p, q) = \mathrm{KL}(p \,\|\, q) = \sum_v p_v \log \frac{p_v}{q_v}

    p is the teacher, q the student. Source: Hinton et al. (arXiv 1503.02531); MGSR (arXiv 2407.10068), Eq. 1 and "Forward KL"
    in Table 3c. D is in nats per token, D >= 0, and D = 0 exactly when p = q. D is the cross entropy of p and q minus the
    entropy of p. The gradient flows through q only; with respect to the student's logits it is q - p.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> logq_NV = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        >>> ForwardKL()(logq_NV, logp_NV)
        tensor([0.0000, 0.6931])

    See also: ReverseKL, SkewForwardKL.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        return (logp_NV.exp() * log_ratio(logp_NV, logq_NV)).sum(dim=-1)

    @property
    def needs(self) -> Needs:
        """What the divergence requires of the teacher.

        With temperature 1, classes that were sampled from the teacher are sufficient.
        """
        return replace(super().needs, probabilities=False)

    def of_samples(self, logq_NK: torch.Tensor, weight_NK: torch.Tensor, entropy_N: torch.Tensor) -> torch.Tensor:
        r"""Estimate the divergence from classes that were sampled from the teacher.

        .. math:: \hat D = -\sum_k w_k \log q_{c_k} - H(p), \qquad \mathbb{E}\,\hat D = \mathrm{KL}(p \,\|\, q)

        The estimate and its gradient are unbiased.  A single estimate can be negative.

        Args:
            logq_NK: Student log-probabilities of the sampled classes.
            weight_NK: Weights w of these classes (`contracts.SampledClasses`); a class of weight 0 is ignored.
            entropy_N: Entropy H(p) of the teacher's distribution, in nats.

        Returns:
            divergence_N, unreduced.

        Example:
            >>> logq_NK, weight_NK = torch.tensor([[0.25, 0.5]]).log(), torch.tensor([[0.75, 0.25]])
            >>> ForwardKL().of_samples(logq_NK, weight_NK, torch.tensor([0.5]))
            tensor([0.7130])
        """
        return -(weight_NK * logq_NK.masked_fill(weight_NK == 0, 0.0)).sum(dim=-1) - entropy_N


@dataclass(frozen=True, kw_only=True)
class ReverseKL(Softened):
    r"""Reverse KL (mode-seeking).

    .. math:: D(p, q) = \mathrm{KL}(q \,\|\, p) = \sum_v q_v \log \frac{q_v}{p_v}

    p is the teacher, q the student. Source: MiniLLM (arXiv 2306.08543), but computed per token; "Reverse KL" in Table 3c of
    MGSR. In Eq. 3, MGSR uses D to select the token of a generated text that the teacher replaces. D is in nats per token, D
    >= 0, and D = 0 exactly when p = q. The gradient flows through q only; with respect to the student's logits it is q
    (log(q / p) - D).

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        >>> logq_NV = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> ReverseKL()(logq_NV, logp_NV)
        tensor([0.0000, 0.6931])

    See also: ForwardKL, SkewReverseKL.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        return (logq_NV.exp() * log_ratio(logq_NV, logp_NV)).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(temperature=0.5), cls(teacher_temperature=0.7))


@dataclass(frozen=True, kw_only=True)
class SymmetricKL(Softened):
    r"""A weighted sum of forward and reverse KL with fixed weights.

    .. math:: D(p, q) = a\,\mathrm{KL}(p \,\|\, q) + (1 - a)\,\mathrm{KL}(q \,\|\, p)

    p is the teacher, q the student, a = `forward_weight`. Source: "Symmetric KL" in Table 3c of MGSR. With the default a = 0.5,
    D is half of Jeffreys's divergence. The published DistiLLM code has a symmetric KL with a = 0.1, which none of its methods
    uses. D is in nats per token, D >= 0, and D = 0 exactly when p = q. The gradient flows through q only.

    Args:
        forward_weight: Weight of the forward KL, in (0, 1).

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: forward_weight outside (0, 1).

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> SymmetricKL()(logq_NV, logp_NV)
        tensor([0.5493])

    See also: ForwardKL, ReverseKL, AdaptiveKL.
    """

    forward_weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("forward_weight", self.forward_weight, "for one direction alone use forward_kl or reverse_kl")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        weight_NV = self.forward_weight * logp_NV.exp() - (1 - self.forward_weight) * logq_NV.exp()
        return (weight_NV * log_ratio(logp_NV, logq_NV)).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(forward_weight=0.1), cls(temperature=2.0), cls(teacher_temperature=0.7))


@dataclass(frozen=True, kw_only=True)
class AdaptiveKL(Softened):
    r"""Adaptive KL (AKL): forward and reverse KL, weighted per row.

    .. math:: D(p, q) = \frac{g_h\,\mathrm{KL}(p \,\|\, q) + g_t\,\mathrm{KL}(q \,\|\, p)}{g_h + g_t},
              \qquad g_h = \sum_{v \in \mathrm{head}} |p_v - q_v|,\quad g_t = \sum_{v \in \mathrm{tail}} |p_v - q_v|

    p is the teacher, q the student; g_h and g_t are the absolute differences, summed over the head and over the tail. The head
    is the largest set of the teacher's most probable classes whose total probability is at most `head_mass`. The most probable
    class always belongs to the head, even if its probability is higher. All other classes form the tail. (The paper's prose
    defines the head as the smallest set that reaches the mass, which has one class more; this implementation follows the
    paper's code.) Source: Wu et al. (arXiv 2404.02657). D is in nats per token, D >= 0, and D = 0 exactly when p = q. The
    gradient flows through q only, and treats the weights as constants.

    Args:
        head_mass: Limit on the total teacher probability of the head, in (0, 1); the paper's mu is 0.5.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: head_mass outside (0, 1).

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> AdaptiveKL()(logq_NV, logp_NV)
        tensor([0.5493])

    See also: SymmetricKL, which has fixed weights.
    """

    disobeys: ClassVar[Mapping[str, str]] = {
        "gradient_matches_finite_differences": "the weights depend on the student, but have no gradient (arXiv 2404.02657)"
    }

    head_mass: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        fraction("head_mass", self.head_mass, "the paper uses 0.5")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        sorted_NV, order_NV = logp_NV.exp().sort(dim=-1, descending=True, stable=True)
        gap_NV = (sorted_NV - logq_NV.detach().exp().gather(-1, order_NV)).abs_()
        whole_N1 = gap_NV.sum(dim=-1, keepdim=True)
        outside_NV = sorted_NV.cumsum(dim=-1) > self.head_mass
        outside_NV[:, :1] = False
        head_N1 = gap_NV.masked_fill_(outside_NV, 0.0).sum(dim=-1, keepdim=True)
        head_N1 = head_N1 / whole_N1.clamp(min=torch.finfo(whole_N1.dtype).tiny)  # g_h / (g_h + g_t)
        weight_NV = head_N1 * logp_NV.exp() - (1 - head_N1) * logq_NV.exp()
        return (weight_NV * log_ratio(logp_NV, logq_NV)).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(head_mass=0.9, temperature=2.0), cls(teacher_temperature=0.7))
