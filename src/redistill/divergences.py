"""How far the student's next-token distribution is from the teacher's: one frozen dataclass a divergence.

A member's fields are its hyper-parameters, and its call obeys `contracts.Divergence`.  To add one, write its class here, give
it `examples()`, and put it into the union at the foot: the configuration and the laws in tests/laws pick it up from there.

A log-probability of -inf marks a class that a model rules out (vocabulary padding, a mask).  Such a class contributes 0
whichever of the two models rules it out, since an infinite loss would end the run over a class that nobody can predict.

Nothing here reduces over rows, learns, or knows where the rows come from.
"""

from dataclasses import dataclass
from typing import Self

import torch

from redistill.tensors import loss_dtype


@dataclass(frozen=True, kw_only=True)
class ForwardKL:
    r"""Forward KL, the classic distillation loss: the student must cover the teacher.

    .. math:: D(p, q) = \mathrm{KL}(p \,\|\, q) = \sum_v p_v \log \frac{p_v}{q_v}

    p is the teacher, q the student. Source: Hinton et al. (arXiv 1503.02531); the paper's Eq. 1 and Table 3c's "Forward KL".
    Nats per token, D >= 0, 0 exactly when p = q. The teacher's entropy is part of the value. The gradient flows through q
    only; with respect to the student's logits it is q - p.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> logq_NV = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        >>> ForwardKL()(logq_NV, logp_NV)
        tensor([0.0000, 0.6931])

    See also: ReverseKL.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = _ready(logq_NV, logp_NV)
        return (logp_NV.exp() * _log_ratio(logp_NV, logq_NV)).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """The members that the laws are tried on."""
        return (cls(),)


@dataclass(frozen=True, kw_only=True)
class ReverseKL:
    r"""Reverse KL: the student may leave out what it cannot cover, but must not invent.

    .. math:: D(p, q) = \mathrm{KL}(q \,\|\, p) = \sum_v q_v \log \frac{q_v}{p_v}

    p is the teacher, q the student. Source: MiniLLM (arXiv 2306.08543), here token by token; Table 3c's "Reverse KL", and
    Eq. 3's measure of where the student went wrong. Nats per token, D >= 0, 0 exactly when p = q. The gradient flows through
    q only; with respect to the student's logits it is q (log(q / p) - D).

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        Returns divergence_N, unreduced.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
        >>> logq_NV = torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log()
        >>> ReverseKL()(logq_NV, logp_NV)
        tensor([0.0000, 0.6931])

    See also: ForwardKL.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        logq_NV, logp_NV = _ready(logq_NV, logp_NV)
        return (logq_NV.exp() * _log_ratio(logq_NV, logp_NV)).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """The members that the laws are tried on."""
        return (cls(),)


def _ready(logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the dtype of a loss, the teacher cut off from the graph."""
    dtype = loss_dtype(logq_NV)
    return logq_NV.to(dtype), logp_NV.detach().to(dtype)


def _log_ratio(log_a_NV: torch.Tensor, log_b_NV: torch.Tensor) -> torch.Tensor:
    """log(a / b), 0 where either is ruled out; filled before it meets a factor, so that no gradient is 0 * inf."""
    return (log_a_NV - log_b_NV).masked_fill(log_a_NV.isneginf() | log_b_NV.isneginf(), 0.0)


Divergence = ForwardKL | ReverseKL
