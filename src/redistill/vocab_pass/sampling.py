"""Sampling of classes by inverting cumulative distributions.

The vocabulary is divided into ranges of classes, each range into smaller ranges, and so on down to single classes.  A class
is sampled by choosing a range of the vocabulary, then a range inside this range, and so on.
"""

import torch

from redistill.errors import TrainingError

FAN_OUT = 8
NUMBERS_PER_DRAW = 6
INVALID = -1
"""Result of `sample_rows` for a row from which no class can be sampled."""
NUCLEUS = 0.9
"""Total probability of the classes from which the statistic `teacher_nucleus_sample` is sampled."""
BLOCK_CLASSES = FAN_OUT**2  # number of classes that are summed at once; sums of 8 neighbours over a whole vocabulary are slow


def sample_rows(probabilities_NV: torch.Tensor, uniforms_NK: torch.Tensor) -> torch.Tensor:
    """Sample one class per row by descending a tree of ranges of classes.

    A range is a set of consecutive class ids.  The vocabulary is divided into ranges, each range is divided into eight
    smaller ranges, and so on down to single classes.  There are six levels, each with its own uniform number u.  On each
    level, one part of the current range is selected: the first part at which the cumulative mass exceeds u times the mass
    of all parts.

    A single uniform number for the whole vocabulary would also be correct, but less robust to rounding.  Cumulative masses
    change by rounding if the batch size changes, and the intervals of a large vocabulary are narrow.  With one number per
    level, each number is compared with only a few boundaries, so rounding rarely changes the sampled class.

    Sums over 64 consecutive classes have the dtype of the probabilities; sums over more classes are float64.  A class with
    probability 0 is never sampled.

    Args:
        probabilities_NV: Numbers >= 0.  Each row has a positive sum, which need not be 1.
        uniforms_NK: K = 6 uniform numbers in [0, 1) for each row, one for each level, coarsest level first.

    Returns:
        token_N, int64.  The result is `INVALID` for a row whose mass is not finite or is below the smallest normal float64
        number.  A diverged model causes such rows.  `sample_rows` raises no error, because the host would have to wait for
        the GPU to detect such rows; call `check_sampled` later.

    Example:
        >>> uniforms_NK = torch.tensor([[0.0], [0.25], [0.99]]).expand(3, NUMBERS_PER_DRAW)
        >>> sample_rows(torch.tensor([[0.25, 0.0, 0.75]]).expand(3, 3), uniforms_NK)
        tensor([0, 2, 2])
    """
    shape = len(probabilities_NV), NUMBERS_PER_DRAW
    assert uniforms_NK.shape == shape, "uniforms_NK must have one number for each row and level"
    blocks_NBK = _grouped(probabilities_NV, BLOCK_CLASSES)
    levels = [blocks_NBK.sum(-1).double()]
    while len(levels) < NUMBERS_PER_DRAW - 2:
        levels.insert(0, _grouped(levels[0], FAN_OUT).sum(-1))
    total_N = levels[0].sum(-1)
    is_valid_N = total_N.isfinite() & (total_N >= torch.finfo(total_N.dtype).tiny)
    uniforms = uniforms_NK.to(total_N).unbind(-1)
    row_N = torch.arange(len(total_N), device=total_N.device)
    node_N = _invert(levels[0], uniforms[0])
    for masses_NB, uniform_N in zip(levels[1:], uniforms[1:]):
        if masses_NB.shape[-1] > 1:
            node_N = node_N * FAN_OUT + _invert(_grouped(masses_NB, FAN_OUT)[row_N, node_N], uniform_N)
    inside_NKK = blocks_NBK[row_N, node_N].double().unflatten(-1, (FAN_OUT, FAN_OUT))
    part_N = _invert(inside_NKK.sum(-1), uniforms[-2])
    class_N = _invert(inside_NKK[row_N, part_N], uniforms[-1])
    return torch.where(is_valid_N, node_N * BLOCK_CLASSES + part_N * FAN_OUT + class_N, INVALID)


def check_sampled(lowest_token: int) -> None:
    """Check that `sample_rows` has sampled a token in each row.

    Args:
        lowest_token: Minimum of the results of `sample_rows`.

    Raises:
        TrainingError: the minimum is `INVALID`.

    Example:
        >>> check_sampled(INVALID)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        redistill.errors.TrainingError: generation: no token can be sampled, because...
    """
    if lowest_token == INVALID:
        raise TrainingError(
            "generation: no token can be sampled, because the student's probabilities are not finite; "
            "lower the learning rate and resume from the last checkpoint"
        )


def nucleus(probabilities_NV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest most probable classes that reach a total probability.

    Source: top-p sampling (Holtzman et al., arXiv 1904.09751).

    Args:
        probabilities_NV: Probabilities; each row sums to 1.
        top_p: Total probability, in (0, 1].

    Returns:
        The probabilities of the kept classes, normalised; excluded classes are exactly 0.

    Example:
        >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]), 0.7)
        tensor([[0.6250, 0.3750, 0.0000]])
    """
    sorted_NV, class_NV = probabilities_NV.sort(dim=-1, descending=True, stable=True)
    before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
    kept_NV = sorted_NV.masked_fill(before_NV >= top_p, 0.0)
    found_NV = torch.zeros_like(probabilities_NV).scatter(-1, class_NV, kept_NV)
    return found_NV / found_NV.sum(dim=-1, keepdim=True)


def _grouped(masses_NV: torch.Tensor, size: int) -> torch.Tensor:
    """Return each row reshaped into groups of `size` neighbours.

    The last group is padded with 0.
    """
    padding = -masses_NV.shape[-1] % size
    padded_NV = torch.nn.functional.pad(masses_NV, (0, padding)) if padding else masses_NV
    grouped_NBK: torch.Tensor = padded_NV.unflatten(-1, (-1, size))
    return grouped_NBK


def _invert(masses_NK: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """Return for each row the first index whose cumulative mass exceeds a threshold.

    The threshold is `uniform_N` times the largest cumulative mass of the row, so such an index always exists.  An index
    with mass 0 is never returned, even if rounding increases the cumulative mass at this index.
    """
    cumulative_NK = masses_NK.cumsum(-1).masked_fill(masses_NK <= 0, -1.0)
    threshold_N = uniform_N * cumulative_NK.amax(-1)
    return (cumulative_NK > threshold_N[:, None]).int().argmax(-1)
