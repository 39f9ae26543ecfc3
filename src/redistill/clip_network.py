"""f_sub, the network that predicts which interval of the teacher DAC-KL keeps, and the gates through which it learns.

Source: MGSR (arXiv 2407.10068), Eq. 6.  Which classes an interval keeps and what becomes of them is told in clipping.py.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from redistill.randomness import torch_seed
from redistill.tensors import loss_dtype


class ClipNetwork(nn.Module):
    r"""f_sub: reads a row of the teacher and of the student, predicts which interval to keep.

    .. math:: u, l = \sigma\bigl(f_{sub}([p \mid \mathrm{sort}_\downarrow(p) \mid q])\bigr), \quad l \in [0, u]
        \quad\text{(Eq. 6)}

    One hidden layer with GELU.  Its first layer is three [V, hidden] maps whose outputs are added, which equals one map of
    the concatenation and never builds it.  The interval is in (0, 1); l is cut to u where it exceeds it.

    A row's inputs have a norm of about 1 however large V is, so the first layer starts with unit normal weights (those of a
    layer of 3V inputs would leave the hidden units at 0, and them without gradient); the last one starts so small that every
    row begins at the biases: u = 0.98, l = 9e-4.  With both biases 0, the literal start, u = l = 0.5 keeps the target alone.

    Args:
        vocabulary: V.
        hidden: Hidden units.
        upper_bias, lower_bias: Where the logits of u and l start.
        seed: Seed of the initial weights; the same on every process.
    """

    def __init__(
        self, vocabulary: int, *, hidden: int = 64, upper_bias: float = 4.0, lower_bias: float = -7.0, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(torch_seed(seed, "clip-network"))

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.float32).normal_(std=std, generator=generator))

        self.teacher_weight = normal(hidden, vocabulary, std=1.0)
        self.sorted_weight = normal(hidden, vocabulary, std=1.0)
        self.student_weight = normal(hidden, vocabulary, std=1.0)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.output_weight = normal(2, hidden, std=0.01 / math.sqrt(hidden))
        self.output_bias = nn.Parameter(torch.tensor([upper_bias, lower_bias], dtype=torch.float32))

    def forward(self, p_NV: Tensor, q_NV: Tensor, sorted_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The interval of each row.

        Args:
            p_NV, q_NV: The teacher's probabilities and the student's; neither gets gradient from here.
            sorted_NV: p_NV in descending order, where the caller has it already.

        Returns:
            lower_N and upper_N with 0 <= lower <= upper <= 1, float32 under autocast too.

        Example:
            >>> p_NV, q_NV = torch.rand(2, 3, 8).softmax(dim=-1)
            >>> lower_N, upper_N = ClipNetwork(8)(p_NV, q_NV)
            >>> bool((lower_N <= upper_N).all())
            True
        """
        sorted_NV = sort_descending(p_NV) if sorted_NV is None else sorted_NV
        dtype = self.teacher_weight.dtype
        assert dtype == loss_dtype(self.teacher_weight), f"the clip network stays in float32, not {dtype}"
        with torch.autocast(device_type=p_NV.device.type, enabled=False):
            hidden_NH = functional.linear(p_NV.detach().to(dtype), self.teacher_weight, self.hidden_bias)
            hidden_NH = hidden_NH + functional.linear(sorted_NV.detach().to(dtype), self.sorted_weight)
            hidden_NH = hidden_NH + functional.linear(q_NV.detach().to(dtype), self.student_weight)
            upper_N, lower_N = (
                functional.linear(functional.gelu(hidden_NH), self.output_weight, self.output_bias).sigmoid().unbind(dim=-1)
            )
        return torch.minimum(lower_N, upper_N), upper_N


def soft_gate(score_NV: Tensor, low_N: Tensor, high_N: Tensor, temperature: float) -> Tensor:
    """1 well inside (low, high), 0 well outside, with a slope for both ends."""
    above_NV = ((score_NV - low_N.unsqueeze(-1)) / temperature).sigmoid()
    return above_NV * ((high_N.unsqueeze(-1) - score_NV) / temperature).sigmoid()


class StraightThrough(torch.autograd.Function):
    """Forward the hard mask, backward the soft gate, which is built only then; the target's gate has no gradient."""

    @staticmethod
    def forward(
        ctx: Any, low_N: Tensor, high_N: Tensor, score_NV: Tensor, keep_NV: Tensor, target_N1: Tensor | None, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(low_N, high_N, score_NV, target_N1)
        ctx.temperature = temperature
        return keep_NV.to(score_NV.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low_N, high_N, score_NV, target_N1 = ctx.saved_tensors
        (gradient_NV,) = gradients
        if target_N1 is not None:
            gradient_NV = gradient_NV.scatter(-1, target_N1, 0.0)
        with torch.enable_grad():
            ends = low_N.detach().requires_grad_(), high_N.detach().requires_grad_()
            gate_NV = soft_gate(score_NV, *ends, ctx.temperature)
        return *torch.autograd.grad(gate_NV, ends, gradient_NV), None, None, None, None


@torch.no_grad()
def sort_descending(p_NV: Tensor) -> Tensor:
    """p in descending order; NumPy's vectorised sort is 4 to 20 times faster than torch's on a CPU."""
    if p_NV.device.type != "cpu":
        return torch.sort(p_NV, dim=-1, descending=True).values
    negated_NV = np.negative(p_NV.numpy())
    negated_NV.sort(axis=-1)
    return torch.from_numpy(np.negative(negated_NV, out=negated_NV))
