"""The network f_sub of DAC-KL, and the gate from which f_sub gets its gradient.

DAC-KL compares teacher and student on some vocabulary classes only.  For each row (the distributions of both models for one
predicted token), f_sub predicts an interval of scores.  A class is kept if its score lies in the interval; by default, the
score is the teacher's probability.  clip_ranks.py computes which classes are kept, and dac_kl.py computes the divergence on
these classes.  Source: MGSR (arXiv 2407.10068), Eq. 6.

For each row, the network has three inputs: the teacher's V probabilities, the same probabilities in descending order, and the
student's V probabilities.  Each unsorted input needs a matrix product with a [V, hidden] weight.  The sorted input has one of
two forms.  The exact form needs a sort and another product of this size.  The compact form has at most 528 numbers
(clip_ranks.py), so its product is small.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from redistill.errors import check_field
from redistill.losses.clip_ranks import at_class, compact_ranks, rank_edges, sort_descending, top_and_masses
from redistill.randomness import torch_seed
from redistill.tensors import loss_dtype

SortedInput = Literal["exact", "compact"]


@dataclass(frozen=True, kw_only=True)
class ClipNetworkConfig:
    """Settings of f_sub, the network that predicts DAC-KL's interval.

    DAC-KL keeps the classes whose score lies in the interval [l, u]; by default, the score is the teacher's probability.
    Source: MGSR (arXiv 2407.10068), Eq. 6; `ClipNetwork` has the equation.

    Args:
        hidden: Number of hidden units, >= 1.
        sorted: Form of the input sort(p) of Eq. 6.  "exact" has all V probabilities.  "compact" has the 512 largest
            probabilities, and 16 sums over the others in descending order.  For at most 528 classes both forms are equal.
        upper_bias, lower_bias: Initial logits of the upper bound u and the lower bound l, finite.  None selects a logit
            that depends on `DacKLConfig.mode`.  The paper uses the logit 0 for both, so that training starts with u = l =
            0.5.  With these bounds, mode "value" keeps only the teacher's arg max.

    Raises:
        ConfigError: a field is out of range.

    Example:
        >>> ClipNetworkConfig(hidden=32).sorted
        'compact'
        >>> ClipNetworkConfig(hidden=0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: hidden = 0: must be at least 1; 64 is usual
    """

    hidden: int = 64
    sorted: SortedInput = "compact"
    upper_bias: float | None = None
    lower_bias: float | None = None

    def __post_init__(self) -> None:
        check_field(self, "hidden", self.hidden >= 1, "must be at least 1; 64 is usual")
        check_field(self, "sorted", self.sorted in get_args(SortedInput), f"must be one of {', '.join(get_args(SortedInput))}")
        for name, bias in (("upper_bias", self.upper_bias), ("lower_bias", self.lower_bias)):
            check_field(self, name, math.isfinite(bias or 0.0), "must be finite; leave it out for the mode's default")


class ClipNetwork(nn.Module):
    r"""The network f_sub, which predicts DAC-KL's interval of scores for each row.

    .. math:: u, l = \sigma\bigl(f_{sub}([p \mid \mathrm{sort}_\downarrow(p) \mid q])\bigr), \quad l \in [0, u]
        \quad\text{(Eq. 6)}

    p and q are the probabilities that teacher and student assign to the classes in a row (the prediction of one token).  u is
    the upper bound and l the lower bound of the interval.  DAC-KL keeps the classes whose score lies in the interval; by
    default, the score is p.  sigma is the sigmoid function, and | concatenates vectors.

    The network has one hidden layer with GELU.  The first layer is a sum of three linear maps.  This sum equals one linear map
    of the concatenated inputs, but no concatenated tensor is allocated.  The interval lies in (0, 1); l is clipped to at most
    u.

    The inputs of a row have a norm of at most about 1 for any V, so the first layer is initialised with standard normal
    weights.  With the usual scale for 3V inputs, the hidden units would be near 0 and have almost no effect.  The last layer is
    initialised with weights so small that the biases alone determine the initial interval of every row.

    Args:
        vocabulary: Number V of classes.
        config: Settings of the network, such as the number of hidden units.
        start: Initial logits of u and l; the default gives u = 0.98 and l = 9e-4.  If `config.upper_bias` is not None, it
            replaces the logit of u; `config.lower_bias` replaces that of l.
        seed: Seed of the initial weights; must be the same in every process.

    Example:
        >>> network = ClipNetwork(3, ClipNetworkConfig(hidden=4), seed=1)
        >>> p_NV, q_NV = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.5, 0.2, 0.3]])
        >>> lower_N, upper_N = network(p_NV, q_NV)
        >>> bool((lower_N < upper_N).all()), lower_N.shape
        (True, torch.Size([1]))
    """

    def __init__(
        self,
        vocabulary: int,
        config: ClipNetworkConfig = ClipNetworkConfig(),
        *,
        start: tuple[float, float] = (4.0, -7.0),
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(torch_seed(seed, "clip-network"))

        def normal(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=torch.float32).normal_(std=std, generator=generator))

        self.edges = None if config.sorted == "exact" else rank_edges(vocabulary)
        num_ranked = vocabulary if self.edges is None else self.edges[0] + len(self.edges) - 1
        # The shape is [V, hidden] and not nn.Linear's [hidden, V]: the product that computes the gradient is twice as fast.
        self.teacher_weight = normal(vocabulary, config.hidden, std=1.0)
        self.student_weight = normal(vocabulary, config.hidden, std=1.0)
        self.sorted_weight = normal(num_ranked, config.hidden, std=1.0)
        self.hidden_bias = nn.Parameter(torch.zeros(config.hidden))
        self.output_weight = normal(2, config.hidden, std=0.01 / math.sqrt(config.hidden))
        biases = [usual if own is None else own for own, usual in zip((config.upper_bias, config.lower_bias), start)]
        self.output_bias = nn.Parameter(torch.tensor(biases, dtype=torch.float32))

    def forward(self, p_NV: Tensor, q_NV: Tensor, sorted_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict the lower and the upper bound of the interval for each row.

        DAC-KL keeps the classes whose score lies in this interval.

        Args:
            p_NV, q_NV: Probabilities of the teacher and the student, [N, V]; they get no gradient.
            sorted_NV: p_NV, with each row in descending order.  If None, this method sorts p_NV.

        Returns:
            lower_N and upper_N with 0 <= lower <= upper <= 1, float32 also under autocast.

        Example:
            >>> p_NV, q_NV = torch.rand(2, 3, 8).softmax(dim=-1)
            >>> lower_N, upper_N = ClipNetwork(8)(p_NV, q_NV)
            >>> bool((lower_N <= upper_N).all())
            True
        """
        dtype = self.output_weight.dtype
        assert dtype == loss_dtype(self.output_weight), f"the clip network must be float32, not {dtype}"
        p_NV, q_NV = p_NV.detach(), q_NV.detach()
        with torch.autocast(device_type=p_NV.device.type, enabled=False):
            hidden_NH = torch.addmm(self.hidden_bias, p_NV.to(dtype), self.teacher_weight)
            hidden_NH = hidden_NH + q_NV.to(dtype) @ self.student_weight
            hidden_NH = hidden_NH + self._ranked(p_NV, sorted_NV).to(dtype) @ self.sorted_weight
            logits_N2 = functional.linear(functional.gelu(hidden_NH), self.output_weight, self.output_bias)
            upper_N, lower_N = logits_N2.sigmoid().unbind(dim=-1)
        return torch.minimum(lower_N, upper_N), upper_N

    def _ranked(self, p_NV: Tensor, sorted_NV: Tensor | None) -> Tensor:
        """Return the sorted input of the network: sorted p_NV, or the compact form of it.

        `ClipNetworkConfig.sorted` selects the form.  `sorted_NV` is p_NV in descending order, or None if not yet computed.
        """
        if self.edges is None:
            return sort_descending(p_NV) if sorted_NV is None else sorted_NV
        return compact_ranks(p_NV, self.edges) if sorted_NV is None else top_and_masses(sorted_NV, self.edges)


# --- the gate -----------------------------------------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """Straight-through gate: hard mask forward, soft gate backward.

    A gate gives each vocabulary class a weight.  The forward pass returns the hard mask: 1 for kept classes, and 0 for the
    other classes.  This mask has no gradient.  Therefore the backward pass uses the derivative of the soft gate, which is a
    smooth function of the interval's bounds.  `dac_kl_options.soft_gate` computes the soft gate.
    """

    @staticmethod
    def forward(
        low_N: Tensor, high_N: Tensor, score_NV: Tensor, keep_NV: Tensor, target_N1: Tensor | None, temperature: float
    ) -> Tensor:
        """Return the hard mask `keep_NV`, in the dtype of the scores.

        Args:
            low_N, high_N: Bounds on the scores of each row.
            score_NV: Scores of the classes.
            keep_NV: bool; True for kept classes.
            target_N1: The class of each row that is kept for any score: the teacher's arg max.  None if there is no such
                class.  The weight of this class has derivative 0, since the bounds do not affect the weight.
            temperature: Width of the sigmoids of the soft gate, in units of the score.
        """
        return keep_NV.to(score_NV.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Save the tensors and the temperature that `backward` needs."""
        low_N, high_N, score_NV, _, target_N1, ctx.temperature = inputs
        ctx.save_for_backward(low_N, high_N, score_NV, target_N1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of `low_N` and `high_N`, and None for the other arguments.

        The gradients are those of the soft gate.
        """
        low_N, high_N, score_NV, target_N1 = ctx.saved_tensors
        above_NV = ((score_NV - low_N.unsqueeze(-1)) / ctx.temperature).sigmoid()
        below_NV = ((high_N.unsqueeze(-1) - score_NV) / ctx.temperature).sigmoid()
        slope_NV = gradients[0] * above_NV * below_NV / ctx.temperature
        if target_N1 is not None:
            slope_NV = slope_NV.masked_fill(at_class(target_N1, slope_NV.shape[-1]), 0.0)
        low_gradient_N = -(slope_NV * (1 - above_NV)).sum(dim=-1)
        return low_gradient_N, (slope_NV * (1 - below_NV)).sum(dim=-1), None, None, None, None
