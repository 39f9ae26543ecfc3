"""Forward and reverse KL, combined by class or by the teacher's entropy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from redistill.errors import check_field
from redistill.losses.divergences.softened import Softened, log_ratio


@dataclass(frozen=True, kw_only=True)
class ToDi(Softened):
    r"""Token-wise distillation (ToDi): forward and reverse KL, weighted per class.

    .. math:: D(p, q) = \sum_v \Bigl( w_v\, p_v \log \frac{p_v}{q_v} + (1 - w_v)\, q_v \log \frac{q_v}{p_v} \Bigr),
              \qquad w_v = \sigma\Bigl( \beta \log \frac{p_v}{q_v} \Bigr)

    p is the teacher, q the student, sigma the logistic function, beta = `sharpness`. Classes that the student underestimates
    get more of forward KL, and classes that it overestimates more of reverse KL. Source: Jung et al. (arXiv 2505.16297), whose
    ToDi has beta = 1. D is in nats per token, each summand is >= 0, and D = 0 exactly when p = q. The gradient flows through q
    only, and treats the weights as constants.

    Args:
        sharpness: Factor beta of the log-ratio, >= 0 and finite; with 0, D is `SymmetricKL`.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: sharpness is negative or not finite.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> ToDi()(logq_NV, logp_NV)
        tensor([1.0986])

    See also: SymmetricKL, AdaptiveKL.
    """

    disobeys: ClassVar[Mapping[str, str]] = {
        "gradient_matches_finite_differences": "the weights depend on the student, but have no gradient (arXiv 2505.16297)"
    }

    kind: ClassVar[str] = "todi"
    sharpness: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "sharpness", 0 <= self.sharpness < float("inf"), "must be finite and at least 0; the paper uses 1")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        ratio_NV = log_ratio(logp_NV, logq_NV)
        weight_NV = torch.sigmoid(self.sharpness * ratio_NV.detach())
        return ((weight_NV * logp_NV.exp() - (1 - weight_NV) * logq_NV.exp()) * ratio_NV).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(sharpness=0.3), cls(temperature=2.0), cls(teacher_temperature=0.7))


@dataclass(frozen=True, kw_only=True)
class EntropyAware(Softened):
    r"""Reverse KL, plus forward KL where the teacher is uncertain.

    .. math:: D(p, q) = \mathrm{KL}(q \,\|\, p) + \mathbb{1}[H(p) > \tau]\, \mathrm{KL}(p \,\|\, q),
              \qquad H(p) = -\sum_v p_v \log p_v

    p is the teacher, q the student, tau = `threshold_nats`. An uncertain teacher divides its probability among many
    classes, of which reverse KL alone covers only a few. Source: entropy-aware on-policy distillation (arXiv 2603.07079). D
    is in nats per token, D >= 0, and D = 0 exactly when p = q. The gradient flows through q only.

    Args:
        threshold_nats: Entropy tau of the teacher above which forward KL is added, in nats, >= 0.  If tau is infinite, D is
            reverse KL.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: threshold_nats is negative or not a number.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> EntropyAware(threshold_nats=0.8)(logq_NV, logp_NV), EntropyAware(threshold_nats=0.5)(logq_NV, logp_NV)
        (tensor([0.1308]), tensor([0.2747]))

    See also: ReverseKL, SymmetricKL.
    """

    threshold_nats: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "threshold_nats", self.threshold_nats >= 0, "must be at least 0; 0 adds forward KL in each row")

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        ratio_NV, p_NV = log_ratio(logp_NV, logq_NV), logp_NV.exp()
        entropy_N1: torch.Tensor = torch.special.entr(p_NV).sum(dim=-1, keepdim=True)
        forward_NV = p_NV * (entropy_N1 > self.threshold_nats)
        return ((forward_NV - logq_NV.exp()) * ratio_NV).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(threshold_nats=0.0), cls(threshold_nats=1.5, temperature=2.0), cls(teacher_temperature=0.7))
