"""Drawing classes from rows of probabilities by inverting cumulative distributions, from coarse ranges of classes to fine."""

import torch

from redistill.errors import TrainingError

FAN_OUT = 8
NUMBERS_PER_DRAW = 6
BLOCK_CLASSES = FAN_OUT**2  # summed in one go: sums of eight neighbours, over a whole vocabulary, are slow


def sample_rows(probabilities_NV: torch.Tensor, uniforms_NK: torch.Tensor) -> torch.Tensor:
    """One class per row, found by descending a tree: a range of classes, one of the eight ranges in it, and so on to a class.

    At each of the six levels the child is drawn whose cumulative mass is the first to exceed a uniform number of that level's
    own.  One number inverted over the whole vocabulary would be as right, but fragile: a large vocabulary is narrow intervals,
    and whoever sums logits in another order (another batch size does) shifts them all under the number.  Here each number
    meets few boundaries, and text differs about as rarely as the distributions do.  Masses of blocks of 64 classes have the
    probabilities' dtype, all sums above are float64.  A class without mass is never drawn.

    Args:
        probabilities_NV: >= 0, each row with some mass; rows need not sum to 1, numbers are scaled to what is there.
        uniforms_NK: In [0, 1), coarsest level first; K is NUMBERS_PER_DRAW.

    Returns:
        token_N, int64.

    Raises:
        TrainingError: a row has no mass that a normal number can hold, or is not finite: what a diverged model gives.

    Example:
        >>> uniforms_NK = torch.tensor([[0.0], [0.25], [0.99]]).expand(3, NUMBERS_PER_DRAW)
        >>> sample_rows(torch.tensor([[0.25, 0.0, 0.75]]).expand(3, 3), uniforms_NK)
        tensor([0, 2, 2])
    """
    assert uniforms_NK.shape == (len(probabilities_NV), NUMBERS_PER_DRAW), "as many numbers a row as the tree has levels"
    blocks_NBK = _grouped(probabilities_NV, BLOCK_CLASSES)
    levels = [blocks_NBK.sum(-1).double()]
    while len(levels) < NUMBERS_PER_DRAW - 2:
        levels.insert(0, _grouped(levels[0], FAN_OUT).sum(-1))
    total_N = levels[0].sum(-1)
    if not bool((total_N.isfinite() & (total_N >= torch.finfo(total_N.dtype).tiny)).all()):
        raise TrainingError(
            "generation: the student's probabilities are not finite, and no token can be drawn from them; "
            "lower the learning rate and resume from the last checkpoint"
        )
    uniforms = uniforms_NK.to(total_N).unbind(-1)
    row_N = torch.arange(len(total_N), device=total_N.device)
    node_N = _invert(levels[0], uniforms[0])
    for masses_NB, uniform_N in zip(levels[1:], uniforms[1:]):
        if masses_NB.shape[-1] > 1:
            node_N = node_N * FAN_OUT + _invert(_grouped(masses_NB, FAN_OUT)[row_N, node_N], uniform_N)
    inside_NKK = blocks_NBK[row_N, node_N].double().unflatten(-1, (FAN_OUT, FAN_OUT))
    part_N = _invert(inside_NKK.sum(-1), uniforms[-2])
    class_N = _invert(inside_NKK[row_N, part_N], uniforms[-1])
    return node_N * BLOCK_CLASSES + part_N * FAN_OUT + class_N


def _grouped(masses_NV: torch.Tensor, size: int) -> torch.Tensor:
    """Neighbours together, masses_NBK with K = `size`; the last group is filled up with 0."""
    padding = -masses_NV.shape[-1] % size
    padded_NV = torch.nn.functional.pad(masses_NV, (0, padding)) if padding else masses_NV
    return padded_NV.unflatten(-1, (-1, size))


def _invert(masses_NK: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """The first entry with mass whose cumulative mass exceeds the number times the largest of them; one always does.

    Entries without mass are told by their mass: a parallel cumulative sum need not be monotonic.
    """
    cumulative_NK = masses_NK.cumsum(-1).masked_fill(masses_NK <= 0, -1.0)
    threshold_N = uniform_N * cumulative_NK.amax(-1)
    return (cumulative_NK > threshold_N[:, None]).int().argmax(-1)
