"""What every divergence starts from: both models' rows in a loss's dtype, at one temperature, with classes ruled out."""

import math
from dataclasses import dataclass

import torch

from redistill.errors import ConfigError
from redistill.tensors import loss_dtype


@dataclass(frozen=True, kw_only=True)
class Softened:
    r"""A divergence of two rows at a temperature.

    .. math:: D_T(p, q) = D\bigl(\mathrm{softmax}(\log p / T),\; \mathrm{softmax}(\log q / T)\bigr)

    There is no factor T^2, so gradients shrink about as 1 / T^2; the weight of the term makes up for it where that is wanted.

    Args:
        temperature: Softens both distributions before they are compared, > 0; 1 leaves them as they are, as the paper does.

    Raises:
        ConfigError: temperature not above 0, or not finite.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature = {self.temperature}: must be > 0 and finite; 1 compares the rows as they are")

    def softened(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in the dtype of a loss and at the temperature, the teacher cut off from the graph."""
        dtype = loss_dtype(logq_NV)
        logq_NV, logp_NV = logq_NV.to(dtype), logp_NV.detach().to(dtype)
        if self.temperature == 1.0:
            return logq_NV, logp_NV
        return torch.log_softmax(logq_NV / self.temperature, dim=-1), torch.log_softmax(logp_NV / self.temperature, dim=-1)


def log_ratio(log_a_NV: torch.Tensor, log_b_NV: torch.Tensor) -> torch.Tensor:
    """log(a / b), 0 where either is ruled out; filled before it meets a factor, so that no gradient is 0 * inf."""
    return (log_a_NV - log_b_NV).masked_fill(log_a_NV.isneginf() | log_b_NV.isneginf(), 0.0)


def bounded(log_NV: torch.Tensor) -> torch.Tensor:
    """`log_NV` without -inf: cut where its exp is 0 in its dtype anyway, so that differences stay finite."""
    return log_NV.clamp(min=2 * math.log(torch.finfo(log_NV.dtype).tiny))


def fraction(name: str, value: float, advice: str) -> None:
    """Refuse a share that does not lie between 0 and 1.

    Raises:
        ConfigError: value outside (0, 1).
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name} = {value}: must lie in (0, 1); {advice}")
