"""The classes that DAC-KL's interval keeps, and the compact form of sorted rows.

Source: MGSR (arXiv 2407.10068), Eq. 6 and 7.  All functions are pure functions of probabilities; clip_network.py has the
network that predicts the interval.

The rank of a class is its index, from 0, in descending order of probability.  A bucket is a range of consecutive ranks, and its
mass is the sum of their probabilities.  The compact form of a row consists of its 512 largest probabilities, and the masses of
at most 16 buckets for the other ranks.  A histogram gives the compact form in a third of the time of a sort.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from redistill.losses.dac_kl_options import Mode, scores_of_mode

TOP_CLASSES = 512
TAIL_BUCKETS = 16
HISTOGRAM_CLASSES = 8192  # from this number of classes on, a histogram is faster than a sort on a CPU


# --- which classes are kept ---------------------------------------------------------------------------------------------


@torch.no_grad()
def keep_mask(logp_NV: Tensor, lower_N: Tensor, upper_N: Tensor, mode: Mode = "value", keep_target: bool = True) -> Tensor:
    r"""Compute the set S of classes that the interval of each row keeps.

    .. math:: S = \{v : l \le s_v \le u\} \cup \{\arg\max p\} \quad\text{(Eq. 7)}

    p is the teacher and [l, u] the interval.  The score s_v of class v depends on the mode.  r_v is the rank of class v by
    descending p, from 0; classes with equal p are ranked by id.  The modes are:

    - "value", the formula of Eq. 7: s_v = p_v.
    - "relative": s_v = p_v / max p.  With u = 1 the kept classes are those of min-p sampling with threshold l.
    - "entry_quantile": s_v = 1 - (r_v + 1/2) / V, the quantile of p_v among the V probabilities.  l = 1 - k/V and u = 1 keep
      the k most probable classes.
    - "mass": s_v is the mass of the classes ranked before v, and l <= s_v < u.  In this mode, u excludes the least probable
      classes, and l the most probable classes.  In the other modes, u excludes the most probable classes, and l the least
      probable classes.  u = 1 excludes no class of positive probability.

    Scores are computed and compared in float64 for inputs of any dtype.  In float32, the mass of all classes before a class of
    low probability can be rounded to 1: the rounding error exceeds the mass of the class.

    Args:
        logp_NV: Teacher log-probabilities.
        lower_N, upper_N: The interval of each row, in [0, 1].
        mode: Definition of the score s_v, one of the modes above.
        keep_target: Whether the arg max of p (the lowest id if several are equal) is kept for any interval.

    Returns:
        keep_NV, bool.

    Example:
        >>> logp_NV = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
        >>> keep_mask(logp_NV, torch.tensor([0.1]), torch.tensor([0.4]))
        tensor([[ True,  True,  True, False]])
        >>> keep_mask(logp_NV, torch.tensor([0.1]), torch.tensor([0.9]), mode="mass", keep_target=False)
        tensor([[False,  True,  True, False]])
    """
    logp_NV = logp_NV.double()
    ends = score_bounds(lower_N.double(), upper_N.double(), mode)
    score_NV, _ = class_scores(logp_NV, logp_NV.exp(), mode)
    return within(score_NV, *ends, mode, logp_NV.argmax(dim=-1, keepdim=True) if keep_target else None)


def class_scores(logp_NV: Tensor, p_NV: Tensor, mode: Mode) -> tuple[Tensor, Tensor | None]:
    """Compute the score of each class, which decides whether DAC-KL keeps the class.

    A class is kept if its score lies in the interval of the row; `keep_mask` has the exact condition.

    Args:
        logp_NV: Teacher log-probabilities.
        p_NV: Teacher probabilities, the exp of logp_NV.
        mode: Definition of the score s_v; see `keep_mask`.

    Returns:
        score_NV, and the teacher's probabilities [N, V] in descending order.  The second result is None in modes "value"
        and "relative", which need no sort.  score_NV is s_v, except in mode "entry_quantile".  In that mode, it is the
        complement of s_v, which is more precise in floating point for the most probable classes.
    """
    return (p_NV, None) if mode == "value" else scores_of_mode(logp_NV, mode)


def score_bounds(lower_N: Tensor, upper_N: Tensor, mode: Mode) -> tuple[Tensor, Tensor]:
    """Convert bounds on the scores s_v to bounds on the results of `class_scores`.

    DAC-KL keeps the classes whose score s_v lies between lower and upper.  In mode "entry_quantile", `class_scores`
    returns 1 - s_v, so the converted bounds are 1 - upper and 1 - lower.  In the other modes, `class_scores` returns s_v, and
    the bounds are not changed.

    Returns:
        low_N and high_N, the bounds of each row.
    """
    return (1 - upper_N, 1 - lower_N) if mode == "entry_quantile" else (lower_N, upper_N)


def within(score_NV: Tensor, low_N: Tensor, high_N: Tensor, mode: Mode, target_N1: Tensor | None) -> Tensor:
    """Return keep_NV, bool: True for each class whose score lies within the bounds.

    Both bounds are inclusive, except `high_N` in mode "mass".  `target_N1` is the teacher's arg max of each row, if this
    class is kept for any score; otherwise None.
    """
    low_N1, high_N1 = low_N.to(score_NV.dtype).unsqueeze(-1), high_N.to(score_NV.dtype).unsqueeze(-1)
    keep_NV = score_NV >= low_N1
    keep_NV &= score_NV < high_N1 if mode == "mass" else score_NV <= high_N1
    return keep_NV if target_N1 is None else keep_NV | at_class(target_N1, keep_NV.shape[-1])


def at_class(class_N1: Tensor, num_classes: int) -> Tensor:
    """Return a bool mask [N, V] that is True only at the class `class_N1` of each row.

    V is `num_classes`.  The mask is computed by comparison, since scattering is slow in compiled code.
    """
    return torch.arange(num_classes, device=class_N1.device) == class_N1


# --- the sorted row -----------------------------------------------------------------------------------------------------


def rank_edges(vocabulary: int) -> tuple[int, ...]:
    """Return the first rank of each bucket of the compact form, followed by V.

    V is `vocabulary`.  The rank of a class is its index in descending order of probability.  The compact form of a row has
    the probabilities of ranks 0 to 511, and one sum for each bucket of the remaining ranks.  There are 16 buckets, and each
    is wider than the previous one by about the same factor.  If at most 16 ranks remain, each bucket has one rank.  No
    bucket is empty, so the compact form has min(V, 528) numbers.

    Example:
        >>> rank_edges(50257)[:3], rank_edges(515), rank_edges(100)
        ((512, 682, 908), (512, 513, 514, 515), (100,))
    """
    edges = [min(TOP_CLASSES, vocabulary)]
    num_buckets = min(TAIL_BUCKETS, vocabulary - edges[0])
    for bucket in range(1, num_buckets + 1):
        geometric = round(TOP_CLASSES * (vocabulary / TOP_CLASSES) ** (bucket / num_buckets))
        edges.append(min(max(geometric, edges[-1] + 1), vocabulary - (num_buckets - bucket)))
    return tuple(edges)


def top_and_masses(sorted_NV: Tensor, edges: Sequence[int]) -> Tensor:
    """Return the compact form of rows that are sorted in descending order.

    The compact form has the edges[0] largest probabilities, and then one sum for each bucket.  Bucket i sums the probabilities
    with the indices edges[i], ..., edges[i + 1] - 1.

    Args:
        sorted_NV: Probabilities in descending order.
        edges: Index of the first probability of each bucket, followed by V; see `rank_edges`.

    Returns:
        ranked_NK, the compact form; K = edges[0] + len(edges) - 1.
    """
    masses = [sorted_NV[:, start:stop].sum(dim=-1, keepdim=True) for start, stop in pairwise(edges)]
    return torch.cat([sorted_NV[:, : edges[0]], *masses], dim=-1)


# The next two functions are registered as torch operators, so that torch.compile treats them as opaque.


@torch.library.custom_op("redistill::sort_descending", mutates_args=())
def sort_descending(p_NV: Tensor) -> Tensor:
    """Return a copy of p_NV in which each row is in descending order.

    On a CPU, NumPy's vectorised sort is used; it is 4 to 20 times faster than the sort of torch.
    """
    if p_NV.device.type != "cpu":
        return torch.sort(p_NV, dim=-1, descending=True).values
    negated_NV = np.negative(p_NV.numpy())
    negated_NV.sort(axis=-1)
    return torch.from_numpy(np.negative(negated_NV, out=negated_NV))


@sort_descending.register_fake
def _(p_NV: Tensor) -> Tensor:
    return torch.empty_like(p_NV, memory_format=torch.contiguous_format)


@torch.library.custom_op("redistill::compact_ranks", mutates_args=())
def compact_ranks(p_NV: Tensor, edges: Sequence[int]) -> Tensor:
    """Return the compact form of unsorted rows of probabilities.

    The result ranked_NK equals that of `top_and_masses` for the sorted rows and the same `edges`.  For float32 rows of at
    least 8192 classes on a CPU, a histogram is used, which is faster than a sort.
    """
    if p_NV.device.type != "cpu" or p_NV.dtype != torch.float32 or p_NV.shape[1] < HISTOGRAM_CLASSES:
        return top_and_masses(sort_descending(p_NV), edges)
    ranked_NK = p_NV.new_empty(p_NV.shape[0], edges[0] + len(edges) - 1)
    for p_V, ranked_K in zip(p_NV.contiguous().numpy(), ranked_NK.numpy(), strict=True):
        ranked_K[:] = _compact_row(p_V, np.array(edges))
    return ranked_NK


@compact_ranks.register_fake
def _(p_NV: Tensor, edges: Sequence[int]) -> Tensor:
    return p_NV.new_empty(p_NV.shape[0], edges[0] + len(edges) - 1)


def _compact_row(p_V: NDArray[np.float32], edges: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the compact form of one row, computed with a histogram of probabilities.

    The upper 16 bits of a float32 probability are the index of its histogram bin, so the bins are in the order of the
    probabilities.  The compact form consists of the `edges[0]` largest probabilities, and of the sum of each bucket.  The ranks
    in `edges` are the bounds of the buckets.  The function sorts only two kinds of bins: those with any of the largest
    probabilities, and those in which a bucket begins.  All other bins lie inside one bucket, so their sums are sufficient.
    """
    bits_V = (p_V.view(np.uint32) >> 16).astype(np.intp)
    count_B, mass_B = np.bincount(bits_V)[::-1], np.bincount(bits_V, weights=p_V)[::-1]  # bins in descending order
    through_B = count_B.cumsum()
    cut_E = through_B.searchsorted(edges)  # the bin that contains each edge, or ends at it
    sorted_B = np.arange(len(count_B)) <= cut_E[0]
    sorted_B[cut_E] = True
    members = np.sort(p_V[sorted_B[::-1][bits_V]])[::-1]
    sums = np.concatenate([[0.0], members.cumsum(dtype=np.float64)])
    first_E = (count_B * sorted_B).cumsum()[cut_E] - count_B[cut_E]  # index of the first class of each cut bin in `members`
    stop_E = first_E + edges - (through_B - count_B)[cut_E]
    above_E = (mass_B.cumsum() - mass_B)[cut_E] + sums[stop_E] - sums[first_E]
    return np.concatenate([members[: edges[0]], np.diff(above_E)])
