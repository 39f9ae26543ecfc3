"""The base class of divergences, and functions that they share.

The base class converts the inputs to float32 or float64 and applies the temperature.  The functions compute log-ratios and
log-probabilities that are finite for classes with probability 0, and check settings.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch

from redistill.contracts import Needs
from redistill.errors import ConfigError, check_field
from redistill.tensors import loss_dtype


@dataclass(frozen=True, kw_only=True)
class Softened:
    r"""Base class of divergences; it applies temperatures to both distributions.

    .. math:: D_T(p, q) = D\bigl(\mathrm{softmax}(\log p / (T\, T_p)),\; \mathrm{softmax}(\log q / T)\bigr)

    D is the divergence that the subclass defines, p the teacher and q the student.  The divergence is not multiplied by T^2, so
    gradients are smaller by about 1 / T^2; increase the weight of the divergence in the objective to compensate.

    Args:
        temperature: Temperature T of both distributions, > 0; T = 1 does not change them.
        teacher_temperature: Temperature T_p of the teacher alone, > 0.  Below 1 it sharpens the teacher's distribution, which
            the student then learns; 1 does not change it.

    Raises:
        ConfigError: a temperature is not above 0, or not finite.

    Example:
        >>> rows_NV = torch.tensor([[0.8, 0.2]]).log()
        >>> logq_NV, logp_NV = Softened(temperature=2.0).softened(rows_NV, rows_NV)
        >>> logp_NV.exp()
        tensor([[0.6667, 0.3333]])
    """

    temperature: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("teacher_temperature", self.teacher_temperature)):
            check_field(self, name, 0 < value < math.inf, "must be > 0 and finite; 1 does not change the distributions")

    @property
    def needs(self) -> Needs:
        """What the divergence requires of the teacher.

        A temperature other than 1 requires the probabilities of all classes.  A teacher that returns only the total
        probability of some classes is not sufficient, because this total cannot be converted to another temperature.
        """
        is_tempered = (self.temperature, self.teacher_temperature) != (1.0, 1.0)
        return Needs(full_vocabulary=is_tempered, probabilities=True)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (cls(), cls(temperature=2.0), cls(teacher_temperature=0.7))

    def softened(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both inputs with their temperatures applied; logp_NV is detached.

        Both results are float64 if logq_NV is float64, and float32 otherwise.
        """
        dtype = loss_dtype(logq_NV)
        logq_NV, logp_NV = logq_NV.to(dtype), logp_NV.detach().to(dtype)
        return _tempered(logq_NV, self.temperature), _tempered(logp_NV, self.temperature * self.teacher_temperature)


def _tempered(log_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    return log_NV if temperature == 1.0 else torch.log_softmax(log_NV / temperature, dim=-1)


def log_ratio(log_a_NV: torch.Tensor, log_b_NV: torch.Tensor) -> torch.Tensor:
    """Return log(a / b); the result is 0 where log a or log b is -inf.

    The result is finite, so a divergence can multiply it by a probability of 0.  An infinite result would give 0 * inf = NaN,
    also in the gradient.

    Args:
        log_a_NV, log_b_NV: Log-probabilities in nats; -inf marks a class that a model rules out.

    Returns:
        Differences in nats, finite, of the same shape and dtype.

    Example:
        >>> log_ratio(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log())
        tensor([[-0.6931,  0.0000]])
    """
    return (log_a_NV - log_b_NV).masked_fill(log_a_NV.isneginf() | log_b_NV.isneginf(), 0.0)


def bounded(log_NV: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities clamped to finite values.

    Only values whose exp is 0 in their dtype are changed.  The difference of two results is always finite.

    Args:
        log_NV: Log-probabilities in nats, float32 or float64.

    Returns:
        Finite log-probabilities of the same shape and dtype; at least about -174.7 in float32, -1416.8 in float64.

    Example:
        >>> bounded(torch.tensor([[0.0, -float("inf")]]))
        tensor([[   0.0000, -174.6731]])
    """
    return log_NV.clamp(min=2 * math.log(torch.finfo(log_NV.dtype).tiny))


def fraction(name: str, value: float, advice: str) -> None:
    """Check that a value lies in (0, 1).

    Args:
        name: Name of the field, for the error message.
        value: The value of the field, in (0, 1).
        advice: End of the error message, which states what to do.

    Raises:
        ConfigError: value is outside (0, 1).

    Example:
        >>> fraction("alpha", 1.0, "the paper uses 0.1")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: alpha = 1.0: must lie in (0, 1); the paper uses 0.1
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name} = {value}: must lie in (0, 1); {advice}")
