"""DAC-KL: divergence from a teacher that is clipped to a predicted interval.

The divergence is summed over some vocabulary classes only.  For each row (one predicted token), a small network f_sub predicts
an interval.  A class is kept if its score lies in the interval; by default, the score is the teacher's probability.  By default
the teacher's arg max is always kept.

Source: MGSR (arXiv 2407.10068), section 4.2, Eq. 5-8.  `clipped_divergence` computes the divergence on the kept classes.
`DacKL` combines this divergence with f_sub (clip_network.py) and the selection of classes (clip_ranks.py).  Where the paper
is ambiguous, a field of `DacKLConfig` selects the interpretation.  The defaults are closest to the paper; dac_kl_options.py
computes the other options.

The functions return one value per row, and depend on no language model.  The [N, V] tensors of a chunk of rows need most of
the memory, so they are never concatenated.  For the same reason, the soft gate (the smooth function from which f_sub gets
its gradient) is not stored, but computed again in the backward pass.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self, get_args

import torch
from torch import Tensor, nn

from redistill.contracts import Needs
from redistill.errors import check_field
from redistill.losses import dac_kl_options
from redistill.losses.clip_network import ClipNetwork, ClipNetworkConfig, StraightThrough
from redistill.losses.clip_ranks import at_class, class_scores, score_bounds, within
from redistill.losses.dac_kl_options import Gate, Mode, Normalise
from redistill.losses.divergences.softened import log_ratio
from redistill.tensors import loss_dtype

# --- the divergence on the kept classes ---------------------------------------------------------------------------------


def clipped_divergence(logq_NV: Tensor, logp_NV: Tensor, keep_NV: Tensor, normalise: Normalise = "none") -> Tensor:
    r"""Compute the KL from the clipped teacher to the student, per row.

    p is the teacher and q the student, over all classes.  S is the set of kept classes, P the sum of p over S, and Q the sum of
    q over S.  p_S and q_S equal p and q on S, and are 0 elsewhere.  There are four normalisations:

    .. math::
        \text{none (Eq. 8):}   \quad & L = \sum_{v \in S} p_v \log (p_v / q_v) \\
        \text{renormalise:}    \quad & L / P - \log P + \log Q = \mathrm{KL}(p_S / P \,\|\, q_S / Q) \\
        \text{other\_bin:}     \quad & L + (1 - P) \log \frac{1 - P}{1 - Q} \\
        \text{teacher:}        \quad & L / P - \log P = \mathrm{KL}(p_S / P \,\|\, q)

    The unit is nats per token.  "none" can be negative; its minimum is P log P.  The others are >= 0 if `keep_NV` is a mask.
    The gradient of "none" with respect to the student's logit of class k is q_k P - p_k if k is in S, and q_k P if not.  This
    gradient is 0 for all classes if q = p_S / P; then q has no mass outside S.  An empty S gives 0 without gradient.  A class
    with log-probability -inf contributes 0 to L.

    Args:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, no gradient.
        keep_NV: The set S as a bool mask, or a weight g in [0, 1] for the summand of each class (a gate).  With a gate, P is
            the sum of g p and Q the sum of g q over all classes.  In "other_bin", 1 - P is the sum of (1 - g) p, and 1 - Q the
            sum of (1 - g) q.  The gradient also flows through the gate.
        normalise: One of the four normalisations.

    Returns:
        divergence_N, unreduced.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()
        >>> keep_NV = torch.tensor([[True, True, False]])
        >>> clipped_divergence(logq_NV, logp_NV, keep_NV), clipped_divergence(logq_NV, logp_NV, keep_NV, "teacher")
        (tensor([0.2310]), tensor([0.3621]))
    """
    assert normalise in get_args(Normalise), normalise
    dtype = loss_dtype(logq_NV)
    logq_NV, logp_NV = logq_NV.to(dtype), logp_NV.detach().to(dtype)
    kept_NV = logp_NV.exp() * keep_NV
    divergence_N = (kept_NV * log_ratio(logp_NV, logq_NV)).sum(dim=-1)
    if normalise == "none":
        return divergence_N
    return dac_kl_options.normalised(divergence_N, kept_NV.sum(dim=-1), logq_NV, logp_NV, keep_NV, normalise)


@torch.no_grad()
def dropped_above(p_NV: Tensor, keep_NV: Tensor) -> Tensor:
    """Return the mass of dropped classes that are more probable than a kept class.

    This mass is 0 if the kept classes are the most probable classes.  It is high if only the tail and the arg max are kept.

    Args:
        p_NV: Probabilities of the teacher.
        keep_NV: Mask of the kept classes.

    Returns:
        mass_N, in [0, 1]; 0 where no class is kept.

    Example:
        >>> p_NV = torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
        >>> dropped_above(p_NV, torch.tensor([[True, True, False], [True, False, True]]))
        tensor([0.0000, 0.3000])
    """
    least_N1 = p_NV.masked_fill(~keep_NV, torch.inf).amin(dim=-1, keepdim=True)
    return p_NV.masked_fill(keep_NV | (p_NV <= least_N1), 0.0).sum(dim=-1)


def recovered(diagnostics: Mapping[str, float]) -> float:
    r"""Return the kept fraction of the teacher's mass outside its arg max.

    .. math:: \frac{P - a\, p_{max}}{1 - p_{max}}

    P is the kept mass and p_max the mass of the arg max; a is 1 if the arg max is kept, else 0.  The fraction is 0 if only the
    arg max is kept, and it is 1 if p_max is 1.

    Args:
        diagnostics: Diagnostics of `DacKL` for one row, or their means over rows: `kept_mass`, `top_mass`, and
            `kept_top_mass`, which is a p_max.  If `kept_top_mass` is missing, the arg max is kept in every row.

    Example:
        >>> recovered({"kept_mass": 0.75, "top_mass": 0.5})
        0.5
        >>> recovered({"kept_mass": 0.25, "top_mass": 0.5, "kept_top_mass": 0.0})
        0.5
    """
    rest = 1 - diagnostics["top_mass"]
    kept_top = diagnostics.get("kept_top_mass", diagnostics["top_mass"])
    return (diagnostics["kept_mass"] - kept_top) / rest if rest > 0 else 1.0


# --- DAC-KL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DacKLConfig:
    r"""Settings of DAC-KL; the defaults are closest to the paper's text.

    .. math:: L = \sum_{v \in S} p_v \log \frac{p_v}{q_v}, \qquad
        S = \{v : l \le p_v \le u\} \cup \{\arg\max p\}, \qquad u, l = \sigma(f_{sub}(p, q))

    p is the teacher, q the student, and f_sub a network that predicts the interval [l, u]. Source: MGSR (arXiv 2407.10068),
    section 4.2, Eq. 6-8. The unit is nats per token; the value can be negative.

    Args:
        mode: The score that decides whether a class is kept: the teacher's probability of the class ("value", Eq. 7); its
            ratio to the largest probability ("relative"); the sum of the larger probabilities ("mass"); or the fraction of
            all classes that are less probable, near 1 for the most probable class ("entry_quantile").
        normalise: How the divergence is normalised.  "none" is Eq. 8, without normalisation.  "renormalise" normalises p and q
            over the kept classes, and "teacher" only p.  "other_bin" adds a summand for all other classes together.
            `clipped_divergence` has the equations.
        gate: How f_sub gets a gradient.  The hard mask of Eq. 7 (1 for classes in S, 0 for others) has no gradient.  The soft
            gate is a product of two sigmoids of the score: about 1 inside the interval, and about 0 outside.
            "straight_through" uses the hard mask in the forward pass and the soft gate in the backward pass.  "soft" uses the
            soft gate in both.  "none" uses only the hard mask, so f_sub is not trained.
        network: Settings of f_sub; they have no effect with `fixed_interval` or `fixed_top`.
        keep_target: Whether the teacher's arg max is kept for any interval, as in Eq. 7.  Table 3b of the paper has results for
            False.
        target_twice: Whether the arg max is summed a second time if the interval contains it; needs `normalise: none` and
            `keep_target: true`.
        fixed_interval: A constant interval (lower, upper) that replaces f_sub, 0 <= lower <= upper <= 1.  In mode "relative",
            (0.05, 1) keeps the classes of min-p 0.05.
        fixed_top: Number k >= 1; the k most probable classes of each row are kept.  This replaces f_sub, and needs mode
            "entry_quantile".
        gate_temperature: Width of the sigmoids of the soft gate, > 0, in units of their argument x.  In mode "mass", x is the
            score; in mode "entry_quantile", x is ln(1 - score); in the other modes, x is ln(score).  If None, the width is 0.02
            in mode "mass" and 0.5 in the other modes.

    Raises:
        ConfigError: a field is out of range, or two fields cannot be combined.

    Example:
        >>> DacKLConfig().has_network, DacKLConfig(fixed_interval=(0.01, 1.0)).has_network
        (True, False)
        >>> DacKLConfig(fixed_interval=(0.5, 0.1))
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: fixed_interval = (0.5, 0.1): must satisfy 0 <= lower <= upper <= 1; put lower first

    See also: DacKL, keep_mask, clipped_divergence.
    """

    mode: Mode = "value"
    normalise: Normalise = "none"
    gate: Gate = "straight_through"
    network: ClipNetworkConfig = field(default_factory=ClipNetworkConfig)
    keep_target: bool = True
    target_twice: bool = False
    fixed_interval: tuple[float, float] | None = None
    fixed_top: int | None = None
    gate_temperature: float | None = None

    @property
    def needs(self) -> Needs:
        """The requirement of DAC-KL: teacher logits over the whole vocabulary.

        A teacher that returns only its most probable classes cannot be used: f_sub needs all probabilities.
        """
        return Needs(full_vocabulary=True, probabilities=True)

    def __post_init__(self) -> None:
        for name, kind in (("mode", Mode), ("normalise", Normalise), ("gate", Gate)):
            check_field(self, name, getattr(self, name) in get_args(kind), f"must be one of {', '.join(get_args(kind))}")
        good = self.gate_temperature is None or 0 < self.gate_temperature < math.inf
        check_field(self, "gate_temperature", good, "must be above 0; leave it out for the mode's default")
        good = not self.target_twice or (self.normalise == "none" and self.keep_target)
        check_field(
            self, "target_twice", good, "needs normalise: none and keep_target: true; set both, or leave target_twice out"
        )
        lower, upper = self.fixed_interval or (0.0, 1.0)
        check_field(self, "fixed_interval", 0 <= lower <= upper <= 1, "must satisfy 0 <= lower <= upper <= 1; put lower first")
        if self.fixed_top is not None:
            check_field(self, "fixed_top", self.fixed_top >= 1, "must be at least 1; 200 is a usual control")
            good = self.mode == "entry_quantile" and self.fixed_interval is None
            remedy = "set mode to entry_quantile and leave out fixed_interval"
            check_field(self, "fixed_top", good, f"needs mode entry_quantile and no fixed_interval; {remedy}")

    @property
    def has_network(self) -> bool:
        """Whether the network f_sub predicts the interval [l, u] of each row.

        If `fixed_interval` or `fixed_top` is set, there is no network.
        """
        return self.fixed_interval is None and self.fixed_top is None

    @property
    def trains_network(self) -> bool:
        """Whether the network f_sub exists and is trained.

        Without training, the interval cannot collapse.
        """
        return self.has_network and self.gate != "none"

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances with each mode, normalisation and gate.

        Tests build `DacKL` from each instance, and check the properties of the divergence.
        """
        small, exact = ClipNetworkConfig(hidden=4), ClipNetworkConfig(hidden=4, sorted="exact")
        biased = ClipNetworkConfig(hidden=4, upper_bias=3.0, lower_bias=-1.0)
        return (
            cls(network=small),
            cls(network=exact, mode="mass", normalise="other_bin"),
            cls(network=small, mode="relative", target_twice=True),
            cls(network=biased, mode="entry_quantile", gate="soft"),
            cls(network=exact, gate="soft", normalise="teacher"),
            cls(network=small, gate="none", normalise="renormalise", keep_target=False),
            cls(fixed_interval=(0.01, 0.5)),
            cls(mode="entry_quantile", fixed_top=3),
        )


class DacKL(nn.Module):
    """DAC-KL: divergence from the teacher clipped to a predicted interval (Eq. 6-8).

    The unit is nats per token.  DAC-KL is not a divergence in the strict sense.  Without normalisation it may be negative.  The
    network f_sub, which predicts the interval, can reduce the loss by excluding every class with p > q (p is the teacher, q the
    student).  If student and f_sub both minimise the loss, the kept classes shrink to the tail and the arg max, and finally to
    the arg max alone.  To detect this, monitor the metric `recovered`: the fraction of the teacher's mass outside its arg max
    that is kept.

    Args:
        config: Settings of DAC-KL.
        vocabulary: Number V of classes.
        seed: Seed of f_sub's initial weights.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.tensor([[0.5, 0.2, 0.3]]).log()
        >>> value_N, rows = DacKL(DacKLConfig(fixed_interval=(0.2, 1.0)), vocabulary=3)(logq_NV, logp_NV)
        >>> value_N, rows["kept_mass"]
        (tensor([0.2310]), tensor([0.9000]))
    """

    def __init__(self, config: DacKLConfig, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.temperature = config.gate_temperature or dac_kl_options.GATE_TEMPERATURE[config.mode]
        self.network = None
        if config.has_network:
            self.network = ClipNetwork(vocabulary, config.network, start=dac_kl_options.START[config.mode], seed=seed)
            self.network.requires_grad_(config.trains_network)  # otherwise weight decay would change untrained weights

    def forward(self, logq_NV: Tensor, logp_NV: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the divergence and the diagnostics of each row.

        Args:
            logq_NV: Student log-probabilities.  No gradient flows to them through f_sub, since its inputs are detached.
            logp_NV: Teacher log-probabilities, no gradient.

        Returns:
            divergence_N, and a mapping from the names of the diagnostics to float32 tensors with one value per row.  S is
            the set of kept classes.  The diagnostics are `kept_mass` (the teacher's probability of S), `top_mass` (the
            teacher's largest probability), `dropped_above` (mass of dropped classes that are more probable than a kept
            one), `kept_classes` (size of S), `lower` and `upper` (the interval), and `target_only` (1 if S consists of the
            teacher's arg max only, else 0).  Without `keep_target`, there is also `kept_top_mass`: the teacher's largest
            probability if S contains its class, else 0.
        """
        logp_NV = logp_NV.detach().to(loss_dtype(logq_NV))
        p_NV = logp_NV.exp()
        top_N1 = p_NV.argmax(dim=-1, keepdim=True)
        target_N1 = top_N1 if self.config.keep_target else None
        score_NV, lower_N, upper_N = self._interval(logq_NV, logp_NV, p_NV)
        ends = score_bounds(lower_N, upper_N, self.config.mode)
        keep_NV = within(score_NV, *ends, self.config.mode, target_N1)
        gate_NV = self._gate(score_NV, logp_NV, keep_NV, ends, target_N1)
        divergence_N = clipped_divergence(logq_NV, logp_NV, gate_NV, self.config.normalise)
        if self.config.target_twice:
            score_N1, logq_N1, logp_N1 = (rows_NV.gather(-1, top_N1) for rows_NV in (score_NV, logq_NV, logp_NV))
            gate_N1 = self._gate(score_N1, logp_N1, within(score_N1, *ends, self.config.mode, None), ends, None)
            divergence_N = divergence_N + clipped_divergence(logq_N1, logp_N1, gate_N1)
        kept_N, top_mass_N = keep_NV.sum(dim=-1), p_NV.gather(-1, top_N1).squeeze(-1)
        rows = {
            "kept_mass": (p_NV * keep_NV).sum(dim=-1),
            "top_mass": top_mass_N,
            "dropped_above": dropped_above(p_NV, keep_NV),
            "kept_classes": kept_N,
            "lower": lower_N,
            "upper": upper_N,
            "target_only": (kept_N == 1) & (keep_NV & at_class(top_N1, keep_NV.shape[-1])).any(dim=-1),
        }
        if not self.config.keep_target:
            rows["kept_top_mass"] = top_mass_N * keep_NV.gather(-1, top_N1).squeeze(-1)
        return divergence_N, {name: row_N.detach().float() for name, row_N in rows.items()}

    @torch.no_grad()
    def kept(self, logq_NV: Tensor, logp_NV: Tensor) -> Tensor:
        """Return the set of kept classes of each row as the bool mask keep_NV.

        `forward` uses the same set.  If `SpanConfig.vectors` is "clipped", the span loss uses this set as well.
        """
        logp_NV = logp_NV.to(loss_dtype(logq_NV))
        score_NV, lower_N, upper_N = self._interval(logq_NV, logp_NV, logp_NV.exp())
        target_N1 = logp_NV.argmax(dim=-1, keepdim=True) if self.config.keep_target else None
        return within(score_NV, *score_bounds(lower_N, upper_N, self.config.mode), self.config.mode, target_N1)

    def _interval(self, logq_NV: Tensor, logp_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return score_NV, and the interval of each row as lower_N and upper_N."""
        score_NV, sorted_NV = class_scores(logp_NV, p_NV, self.config.mode)
        if self.network is None:
            top = self.config.fixed_top
            ends = (max(0.0, 1 - top / logp_NV.shape[-1]), 1.0) if top is not None else self.config.fixed_interval
            assert ends is not None, "without a network, fixed_top or fixed_interval must be set"
            lower_N, upper_N = (logp_NV.new_full(logp_NV.shape[:1], end) for end in ends)
        else:
            lower_N, upper_N = self.network(p_NV, logq_NV.detach().to(logp_NV.dtype).exp(), sorted_NV)
        return score_NV, lower_N.to(logp_NV.dtype), upper_N.to(logp_NV.dtype)

    def _gate(
        self, score_NV: Tensor, logp_NV: Tensor, keep_NV: Tensor, ends: tuple[Tensor, Tensor], target_N1: Tensor | None
    ) -> Tensor:
        """Return the weight of each class in the divergence.

        The weight is `keep_NV` (0 or 1), or a gate in [0, 1].  `ends` are the lower and the upper bound of the scores.
        `target_N1` is the class of each row that is always kept, or None.  The gate is a product of two sigmoids.  The
        argument of the sigmoids is the score in mode "mass", and the logarithm of the score in the other modes.
        """
        if self.config.gate == "none" or (self.config.gate == "straight_through" and not ends[0].requires_grad):
            return keep_NV
        if self.config.mode != "mass":
            tiny = torch.finfo(logp_NV.dtype).tiny  # otherwise a bound of 0 and a score of 0 give -inf - -inf
            ends = (ends[0].clamp(min=tiny).log(), ends[1].clamp(min=tiny).log())
            score_NV = logp_NV if self.config.mode == "value" else score_NV.log()
        score_NV = score_NV.to(logp_NV.dtype)
        if self.config.gate == "straight_through":
            gate_NV: Tensor = StraightThrough.apply(*ends, score_NV, keep_NV, target_N1, self.temperature)  # type: ignore[no-untyped-call]  # not annotated in torch
            return gate_NV
        gate_NV = dac_kl_options.soft_gate(score_NV, *ends, self.temperature)
        return gate_NV if target_N1 is None else gate_NV.masked_fill(at_class(target_N1, gate_NV.shape[-1]), 1.0)
