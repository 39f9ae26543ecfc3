"""Drawing classes from rows of probabilities by inverting their cumulative distribution."""

import torch

from redistill.errors import TrainingError

BLOCK_CLASSES = 64


def sample_rows(probabilities_NV: torch.Tensor, uniforms_N: torch.Tensor) -> torch.Tensor:
    """One class per row: the first whose cumulative mass exceeds the row's uniform number.

    Two-level, because a cumulative sum over a whole vocabulary is slow: blocks of classes are summed, the block that the number
    falls into is found, then the class inside it.  Masses of blocks are float32, cumulative sums float64.  A class without
    mass is never drawn.

    Args:
        probabilities_NV: >= 0, each row with some mass; rows need not sum to 1, the number is scaled to what is there.
        uniforms_N: In [0, 1).

    Returns:
        token_N, int64.

    Raises:
        TrainingError: a row has no mass, or is not finite: what a diverged model gives.

    Example:
        >>> sample_rows(torch.tensor([[0.25, 0.0, 0.75]]).expand(3, 3), torch.tensor([0.0, 0.25, 0.99]))
        tensor([0, 2, 2])
    """
    num_blocks = -(-probabilities_NV.shape[1] // BLOCK_CLASSES)
    padding = num_blocks * BLOCK_CLASSES - probabilities_NV.shape[1]
    padded_NV = torch.nn.functional.pad(probabilities_NV, (0, padding)) if padding else probabilities_NV
    blocks_NBK = padded_NV.unflatten(1, (num_blocks, BLOCK_CLASSES))
    mass_NB = blocks_NBK.sum(-1).double()
    total_N = mass_NB.sum(-1)
    if not bool((total_N.isfinite() & (total_N > 0)).all()):
        raise TrainingError(
            "generation: the student's probabilities are not finite, and no token can be drawn from them; "
            "lower the learning rate and resume from the last checkpoint"
        )
    block_N, rest_N = _invert(mass_NB, uniforms_N.to(total_N) * total_N)
    inside_NK = blocks_NBK[torch.arange(len(block_N), device=block_N.device), block_N].double()
    class_N, _ = _invert(inside_NK, rest_N)
    return block_N * BLOCK_CLASSES + class_N


def _invert(mass_NK: torch.Tensor, threshold_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first entry with mass whose cumulative mass exceeds the threshold, and what is left of the threshold inside it.

    Rounding (a parallel cumulative sum need not be monotonic) can leave none that exceeds it: then the last entry with mass.
    """
    cumulative_NK = mass_NK.cumsum(-1)
    has_mass_NK = mass_NK > 0
    exceeds_NK = has_mass_NK & (cumulative_NK > threshold_N[:, None])
    last_N = mass_NK.shape[-1] - 1 - has_mass_NK.flip(-1).int().argmax(-1)
    index_N = torch.where(exceeds_NK.any(-1), exceeds_NK.int().argmax(-1), last_N)
    before_N = (cumulative_NK - mass_NK).gather(-1, index_N[:, None])[:, 0]
    return index_N, (threshold_N - before_N).clamp_min(0.0)
