"""Options of DAC-KL other than its defaults.

The defaults are Eq. 6-8 of MGSR (arXiv 2407.10068) as printed.

dac_kl.py and clip_ranks.py implement the defaults.  This module computes scores other than the probability of a class,
normalised divergences, and the soft gate.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Mode = Literal["value", "relative", "mass", "entry_quantile"]
Normalise = Literal["none", "renormalise", "other_bin", "teacher"]
Gate = Literal["straight_through", "soft", "none"]

# Units: nats of log p ("value", "relative"), probability mass ("mass"), nats of log rank ("entry_quantile").
GATE_TEMPERATURE: dict[Mode, float] = {"value": 0.5, "relative": 0.5, "mass": 0.02, "entry_quantile": 0.5}
# Initial logits of u and l.  "value" keeps classes with 9e-4 <= p <= 0.98.  "relative" keeps classes with p >= p_max / 400; u
# is so close to 1 that a second class with almost the same p is kept.  "mass" keeps the most probable classes with 98 % of the
# mass; l excludes only the arg max, which `keep_target` keeps.  "entry_quantile" keeps one class in 1000; u is 1 - 2e-6, since
# 1 - 6e-6 would exclude the second of 262,144 classes.
START = {"value": (4.0, -7.0), "relative": (12.0, -6.0), "mass": (4.0, -7.0), "entry_quantile": (13.0, 6.9)}


def scores_of_mode(logp_NV: Tensor, mode: Mode) -> tuple[Tensor, Tensor | None]:
    """Compute the score of each class in a mode other than "value".

    Args:
        logp_NV: Teacher log-probabilities.
        mode: Definition of the score s_v of a class; see `clip_ranks.keep_mask`.

    Returns:
        score_NV, and the teacher's probabilities [N, V] in descending order (None in mode "relative").  score_NV is s_v,
        except in mode "entry_quantile", where it is 1 - s_v.
    """
    if mode == "relative":
        return (logp_NV - logp_NV.amax(dim=-1, keepdim=True)).exp(), None
    # float64, so that no two different log-probabilities become equal.
    sorted_NV, order_NV = torch.sort(logp_NV.double().exp(), dim=-1, descending=True, stable=True)
    if mode == "mass":
        before_NV = functional.pad(sorted_NV[:, :-1].cumsum(dim=-1), (1, 0))
        # The score is below 1 exactly for classes with mass, whatever the rounding error of the sum is.
        before_NV = before_NV.clamp_(max=1 - 2**-53).masked_fill_(sorted_NV == 0, 1.0)
    else:
        vocabulary = logp_NV.shape[-1]
        above_V = (torch.arange(vocabulary, dtype=sorted_NV.dtype, device=logp_NV.device) + 0.5) / vocabulary
        before_NV = above_V.expand_as(sorted_NV)
    return torch.empty_like(sorted_NV).scatter_(-1, order_NV, before_NV), sorted_NV


def normalised(
    divergence_N: Tensor, mass_N: Tensor, logq_NV: Tensor, logp_NV: Tensor, keep_NV: Tensor, normalise: Normalise
) -> Tensor:
    """Return DAC-KL's divergence (MGSR, Eq. 8), normalised in one of three ways.

    p is the teacher, q the student, and S the set of kept classes.  `dac_kl.clipped_divergence` has the equations.

    Args:
        divergence_N: L, the sum of p log(p / q) over S.
        mass_N: P, the sum of p over S.
        logq_NV, logp_NV: Log-probabilities of student and teacher.
        keep_NV: S as a bool mask, or a weight in [0, 1] for each class.
        normalise: The normalisation, other than "none".

    Returns:
        The normalised divergence_N, 0 where S is empty.
    """
    any_N = mass_N > 0
    if normalise == "other_bin":
        rest_NV = ~keep_NV if keep_NV.dtype == torch.bool else 1 - keep_NV
        (log_p_N, p_any_N), (log_q_N, q_any_N) = _log_mass(logp_NV, rest_NV), _log_mass(logq_NV, rest_NV)
        other_N = torch.where(p_any_N & q_any_N, log_p_N.exp() * (log_p_N - log_q_N), 0.0)
        return torch.where(any_N, divergence_N + other_N, 0.0)
    mass_N = torch.where(any_N, mass_N, 1.0)
    divergence_N = divergence_N / mass_N - mass_N.log()
    if normalise == "renormalise":
        log_student_mass_N, student_any_N = _log_mass(logq_NV, keep_NV)
        divergence_N, any_N = divergence_N + log_student_mass_N, any_N & student_any_N
    return torch.where(any_N, divergence_N, 0.0)


def _log_mass(log_NV: Tensor, weight_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log of the weighted mass of each row, and whether the mass is > 0.

    The mass of a row is the sum over classes of `weight_NV` times exp(`log_NV`), with weights in [0, 1].  The logarithm of
    a mass of 0 is replaced by a finite number.
    """
    peak_N1 = log_NV.detach().masked_fill(weight_NV == 0, -torch.inf).amax(dim=-1, keepdim=True)
    peak_N1 = peak_N1.masked_fill(peak_N1.isneginf(), 0.0)
    # A class of weight 0 may be far above the peak.  The clamp keeps its exp finite, so that 0 times exp is 0 and not NaN.
    total_N = (weight_NV * (log_NV - peak_N1).clamp(max=60).exp()).sum(dim=-1)
    any_N = total_N > 0
    return torch.where(any_N, total_N, 1.0).log() + peak_N1.squeeze(-1), any_N


def soft_gate(score_NV: Tensor, low_N: Tensor, high_N: Tensor, temperature: float) -> Tensor:
    """Return each class's weight: about 1 for a score in the bounds, else about 0.

    The weight (the soft gate) is a product of two sigmoids, and differentiable in both bounds.

    Args:
        score_NV: Scores of the classes.
        low_N, high_N: Bounds of each row.
        temperature: Width of the sigmoids, in units of the score, > 0.

    Returns:
        gate_NV, in [0, 1].
    """
    above_NV = ((score_NV - low_N.unsqueeze(-1)) / temperature).sigmoid()
    return above_NV * ((high_N.unsqueeze(-1) - score_NV) / temperature).sigmoid()
