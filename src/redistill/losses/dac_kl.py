"""DAC-KL: divergence from a teacher that is clipped to an interval, which a small network predicts.

Source: MGSR (arXiv 2407.10068), section 4.2, Eq. 5-8.  `clipped_divergence` is the divergence on the kept classes.  The module
`DacKL`, built from `DacKLConfig`, combines it with the network that predicts the interval (`ClipNetwork` in clip_network.py)
and the classes that the interval keeps (`keep_mask` in clip_ranks.py).  Where the paper is ambiguous, each interpretation is a
field of the configuration; the defaults are closest to its text.

Nothing here reduces over rows or depends on models.  Rows come in chunks, and a chunk's [N, V] tensors dominate memory: nothing
is concatenated, and the soft gate is recomputed in the backward pass and not stored.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from redistill.contracts import Needs
from redistill.errors import ConfigError
from redistill.losses.clip_network import ClipNetwork, ClipNetworkConfig, StraightThrough, soft_gate
from redistill.losses.clip_ranks import Mode, at_class, class_scores, score_bounds, within
from redistill.tensors import loss_dtype

Normalise = Literal["none", "renormalise", "other_bin", "teacher"]
Gate = Literal["straight_through", "soft", "none"]

MASS_FLOOR_WEIGHT = 10.0
# Units: nats of log p ("value", "relative"), probability mass ("mass"), nats of log rank ("entry_quantile").
GATE_TEMPERATURE: dict[Mode, float] = {"value": 0.5, "relative": 0.5, "mass": 0.02, "entry_quantile": 0.5}
# Initial logits of u and l.  "value": keeps classes with p >= 9e-4.  "relative": those above p_max / 400; u is so close to 1
# that a second class with almost the same p is kept.  "mass": the head with 98 % of the mass; l cuts the arg max only, which is
# always kept.  "entry_quantile": one class in 1000; u = 1 - 2e-6, since 1 - 6e-6 would drop the second of 262,144 classes.
START: dict[Mode, tuple[float, float]] = {
    "value": (4.0, -7.0),
    "relative": (12.0, -6.0),
    "mass": (4.0, -7.0),
    "entry_quantile": (13.0, 6.9),
}


# --- the divergence on the kept classes ---------------------------------------------------------------------------------


def clipped_divergence(logq_NV: Tensor, logp_NV: Tensor, keep_NV: Tensor, normalise: Normalise = "none") -> Tensor:
    r"""KL from the clipped teacher to the student, in one of four normalisations.

    P is the sum of p over S, Q that of q; q is always the softmax over all classes:

    .. math::
        \text{none (Eq. 8):}   \quad & L = \sum_{v \in S} p_v \log (p_v / q_v) \\
        \text{renormalise:}    \quad & L / P - \log P + \log Q = \mathrm{KL}(p_S / P \,\|\, q_S / Q) \\
        \text{other\_bin:}     \quad & L + (1 - P) \log \frac{1 - P}{1 - Q} \\
        \text{teacher:}        \quad & L / P - \log P = \mathrm{KL}(p_S / P \,\|\, q)

    Nats per token.  "none" may be negative, down to P log P; the others are >= 0 for a mask.  The gradient of "none" with
    respect to the student's logits is q_k P - p_k [k in S]: it is 0 where q = p_S / P, with no mass outside S.  An empty S
    gives 0 without gradient.  A class at -inf contributes 0 to L.

    Args:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, no gradient.
        keep_NV: S as a bool mask, or a gate in [0, 1] that weights each class's summand (1 - gate in the other bin); the
            gradient flows through it.
        normalise: The normalisation.

    Returns:
        divergence_N, unreduced.
    """
    assert normalise in get_args(Normalise), normalise
    dtype = loss_dtype(logq_NV)
    logq_NV, logp_NV = logq_NV.to(dtype), logp_NV.detach().to(dtype)
    kept_NV = logp_NV.exp() * keep_NV
    # Masked before any multiplication, so that no gradient is 0 * inf.
    log_ratio_NV = (logp_NV - logq_NV).masked_fill(logp_NV.isneginf() | logq_NV.isneginf(), 0.0)
    divergence_N = (kept_NV * log_ratio_NV).sum(dim=-1)
    if normalise == "none":
        return divergence_N
    mass_N = kept_NV.sum(dim=-1)
    any_N = mass_N > 0
    if normalise == "other_bin":
        return torch.where(any_N, divergence_N + _other_bin(logq_NV, logp_NV, keep_NV), 0.0)
    mass_N = torch.where(any_N, mass_N, 1.0)
    divergence_N = divergence_N / mass_N - mass_N.log()
    if normalise == "renormalise":
        log_student_mass_N, student_any_N = _log_mass(logq_NV, keep_NV)
        divergence_N, any_N = divergence_N + log_student_mass_N, any_N & student_any_N
    return torch.where(any_N, divergence_N, 0.0)


def _other_bin(logq_NV: Tensor, logp_NV: Tensor, keep_NV: Tensor) -> Tensor:
    """(1 - P) log((1 - P) / (1 - Q)), 0 where either model has no mass outside S."""
    rest_NV = ~keep_NV if keep_NV.dtype == torch.bool else 1 - keep_NV
    (log_p_N, p_any_N), (log_q_N, q_any_N) = _log_mass(logp_NV, rest_NV), _log_mass(logq_NV, rest_NV)
    return torch.where(p_any_N & q_any_N, log_p_N.exp() * (log_p_N - log_q_N), 0.0)


def _log_mass(log_NV: Tensor, weight_NV: Tensor) -> tuple[Tensor, Tensor]:
    """log of the weighted mass by logsumexp over weights > 0 (1 - mass would cancel), and whether there is any."""
    peak_N1 = log_NV.detach().masked_fill(weight_NV == 0, -torch.inf).amax(dim=-1, keepdim=True)
    peak_N1 = peak_N1.masked_fill(peak_N1.isneginf(), 0.0)
    # A class of weight 0 may be far above the peak: clamped, its exp times 0 is 0 and not NaN.
    total_N = (weight_NV * (log_NV - peak_N1).clamp(max=60).exp()).sum(dim=-1)
    any_N = total_N > 0
    return torch.where(any_N, total_N, 1.0).log() + peak_N1.squeeze(-1), any_N


# --- DAC-KL -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DacKLConfig:
    """Settings of DAC-KL; the defaults are closest to the paper's text.

    Args:
        mode: What the interval bounds: each class's probability ("value", Eq. 7), that over the largest one ("relative"), the
            teacher's mass before the class ("mass"), or the class's quantile among the entries; see `keep_mask`.
        normalise: "none" is Eq. 8; see `clipped_divergence`.
        gate: How gradients reach f_sub through the interval: "straight_through" (hard mask forward, soft gate backward), "soft"
            (soft gate in both), or "none" (f_sub is not trained: the hard set of Eq. 7, taken literally, has no gradient).
        network: f_sub.
        mass_floor: Penalty against collapse, not in the paper: adds 10 relu(floor - P)^2; in (0, 1); 0.9 is robust.
        keep_target: Whether the teacher's arg max is always kept (Eq. 7's max); Table 3b drops it.
        target_twice: Whether the kept arg max counts a second time where the interval contains it; needs `normalise: none`.
        fixed_interval: (lower, upper) instead of f_sub, 0 <= lower <= upper <= 1; in mode "relative", (0.05, 1) is min-p 0.05.
        fixed_top: Number of most probable classes to keep instead of f_sub, >= 1; needs mode "entry_quantile".
        gate_temperature: Width of the soft gate, > 0; the default is a mass of 0.02 in mode "mass", else 0.5 nats of log p or
            log rank.

    Raises:
        ConfigError: a field is out of range, or cannot be combined with another.
    """

    mode: Mode = "value"
    normalise: Normalise = "none"
    gate: Gate = "straight_through"
    network: ClipNetworkConfig = field(default_factory=ClipNetworkConfig)
    mass_floor: float | None = None
    keep_target: bool = True
    target_twice: bool = False
    fixed_interval: tuple[float, float] | None = None
    fixed_top: int | None = None
    gate_temperature: float | None = None

    @property
    def needs(self) -> Needs:
        """Ranks of all classes."""
        return Needs(full_vocabulary=True)

    def __post_init__(self) -> None:
        for name, choices in (("mode", get_args(Mode)), ("normalise", get_args(Normalise)), ("gate", get_args(Gate))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(choices)}")
        if self.gate_temperature is not None and not 0 < self.gate_temperature < math.inf:
            raise ConfigError(
                f"gate_temperature = {self.gate_temperature}: must be above 0; leave it out for the mode's default"
            )
        if self.target_twice and (self.normalise != "none" or not self.keep_target):
            raise ConfigError("target_twice = True: needs normalise none and keep_target; weights above 1 have no remainder")
        self._check_clip()

    def _check_clip(self) -> None:
        """Check the fields that replace f_sub's interval, and the mass floor."""
        if self.fixed_interval is not None:
            lower, upper = self.fixed_interval
            if not 0 <= lower <= upper <= 1:
                raise ConfigError(
                    f"fixed_interval = {self.fixed_interval}: must satisfy 0 <= lower <= upper <= 1; put lower first"
                )
        if self.fixed_top is not None:
            if self.fixed_top < 1:
                raise ConfigError(f"fixed_top = {self.fixed_top}: must be at least 1; 200 is a usual control")
            if self.mode != "entry_quantile" or self.fixed_interval is not None:
                raise ConfigError(
                    f"fixed_top = {self.fixed_top}: needs mode entry_quantile and no fixed_interval; set mode to "
                    "entry_quantile and leave out fixed_interval"
                )
        if self.mass_floor is not None:
            if not 0 < self.mass_floor < 1:
                raise ConfigError(f"mass_floor = {self.mass_floor}: must lie in (0, 1); use 0.9, or leave it out for no floor")
            if self.gate == "none" or not self.has_network:
                raise ConfigError(
                    f"mass_floor = {self.mass_floor}: needs a trained f_sub; leave it out, or set gate to straight_through and "
                    "leave out fixed_interval and fixed_top"
                )

    @property
    def has_network(self) -> bool:
        """Whether f_sub predicts the interval."""
        return self.fixed_interval is None and self.fixed_top is None

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """The settings that the laws are tested with, one of each interpretation."""
        small, exact = ClipNetworkConfig(hidden=4), ClipNetworkConfig(hidden=4, sorted="exact")
        biased = ClipNetworkConfig(hidden=4, upper_bias=3.0, lower_bias=-1.0)
        return (
            cls(network=small),
            cls(network=exact, mode="mass", normalise="other_bin", mass_floor=0.9),
            cls(network=small, mode="relative", target_twice=True),
            cls(network=biased, mode="entry_quantile", gate="soft"),
            cls(network=exact, gate="soft", normalise="teacher"),
            cls(network=small, gate="none", normalise="renormalise", keep_target=False),
            cls(fixed_interval=(0.01, 0.5)),
            cls(mode="entry_quantile", fixed_top=3),
        )


class DacKL(nn.Module):
    """DAC-KL: divergence from the teacher clipped to a predicted interval (Eq. 6-8).

    Nats per token.  It is not a divergence in the strict sense: unnormalised it may be negative, and minimising it jointly over
    student and f_sub rewards dropping every class with p > q.  Therefore monitor the diagnostics `kept_mass` and `target_only`.

    Args:
        config: Settings.
        vocabulary: V.
        seed: Seed of f_sub's initial weights.
    """

    def __init__(self, config: DacKLConfig, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.temperature = config.gate_temperature or GATE_TEMPERATURE[config.mode]
        self.network = None
        if config.has_network:
            self.network = ClipNetwork(vocabulary, config.network, start=START[config.mode], seed=seed)
            self.network.requires_grad_(config.gate != "none")  # else weight decay would change it without a gradient

    def forward(self, logq_NV: Tensor, logp_NV: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The divergence of each row, and diagnostics.

        Args:
            logq_NV: Student log-probabilities; their gradient comes from the divergence only, never through the network.
            logp_NV: Teacher log-probabilities, no gradient.

        Returns:
            divergence_N, including the mass-floor penalty, and float32 rows by name: `kept_mass` (of p, on the hard set S),
            `kept_classes`, `lower`, `upper`, `target_only` (1 where S is the arg max only).
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
        if self.config.mass_floor is not None:
            shortfall_N = (self.config.mass_floor - (gate_NV * p_NV).sum(dim=-1)).relu()
            divergence_N = divergence_N + MASS_FLOOR_WEIGHT * shortfall_N.square()
        kept_N = keep_NV.sum(dim=-1)
        rows = {
            "kept_mass": (p_NV * keep_NV).sum(dim=-1),
            "kept_classes": kept_N,
            "lower": lower_N,
            "upper": upper_N,
            "target_only": (kept_N == 1) & (keep_NV & at_class(top_N1, keep_NV.shape[-1])).any(dim=-1),
        }
        return divergence_N, {name: row_N.detach().float() for name, row_N in rows.items()}

    @torch.no_grad()
    def kept(self, logq_NV: Tensor, logp_NV: Tensor) -> Tensor:
        """The hard set S of each row, keep_NV, bool.

        It is the same as in `forward`; the span loss of clipped vectors uses it.
        """
        logp_NV = logp_NV.to(loss_dtype(logq_NV))
        score_NV, lower_N, upper_N = self._interval(logq_NV, logp_NV, logp_NV.exp())
        target_N1 = logp_NV.argmax(dim=-1, keepdim=True) if self.config.keep_target else None
        return within(score_NV, *score_bounds(lower_N, upper_N, self.config.mode), self.config.mode, target_N1)

    def _interval(self, logq_NV: Tensor, logp_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """score_NV, and the interval lower_N, upper_N; the network reuses the row that the mode has sorted."""
        score_NV, sorted_NV = class_scores(logp_NV, p_NV, self.config.mode)
        if self.network is None:
            top = self.config.fixed_top
            ends = (max(0.0, 1 - top / logp_NV.shape[-1]), 1.0) if top is not None else self.config.fixed_interval
            assert ends is not None, "without a network fixed_interval must be set"
            lower_N, upper_N = (logp_NV.new_full(logp_NV.shape[:1], end) for end in ends)
        else:
            lower_N, upper_N = self.network(p_NV, logq_NV.detach().to(logp_NV.dtype).exp(), sorted_NV)
        return score_NV, lower_N.to(logp_NV.dtype), upper_N.to(logp_NV.dtype)

    def _gate(
        self, score_NV: Tensor, logp_NV: Tensor, keep_NV: Tensor, ends: tuple[Tensor, Tensor], target_N1: Tensor | None
    ) -> Tensor:
        """Weight of each class; a soft gate is computed in mass in mode "mass", else in logarithms."""
        if self.config.gate == "none" or (self.config.gate == "straight_through" and not ends[0].requires_grad):
            return keep_NV
        if self.config.mode != "mass":
            tiny = torch.finfo(logp_NV.dtype).tiny  # log 0 minus that of a ruled-out class would be -inf - -inf
            ends = (ends[0].clamp(min=tiny).log(), ends[1].clamp(min=tiny).log())
            score_NV = logp_NV if self.config.mode == "value" else score_NV.log()
        score_NV = score_NV.to(logp_NV.dtype)
        if self.config.gate == "straight_through":
            gate_NV: torch.Tensor = StraightThrough.apply(*ends, score_NV, keep_NV, target_N1, self.temperature)  # type: ignore[no-untyped-call]  # not annotated in torch
            return gate_NV
        gate_NV = soft_gate(score_NV, *ends, self.temperature)
        return gate_NV if target_N1 is None else gate_NV.masked_fill(at_class(target_N1, gate_NV.shape[-1]), 1.0)
