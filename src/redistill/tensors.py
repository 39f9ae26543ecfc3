"""Shapes and the few tensor moves that everything shares: padding, the shift by one, dtype of a loss.

Shape letters, used as suffixes everywhere:

    B batch (sequences)      T tokens of a padded sequence     N supervised rows, flattened over B and T
    V vocabulary             D student width                   E teacher width
    S spans                  C rows of one chunk               K classes kept or listed

The shift by one lives here and nowhere else: the hidden state at position t predicts the token at t + 1, so the *row* of a
supervised token at position t is the flat index of position t - 1.
"""

from collections.abc import Sequence

import torch


def pad(rows: Sequence[Sequence[int]], value: int, *, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as one tensor, and the mask of what is real.

    Args:
        rows: B sequences of ids.
        value: What fills the rest; any id will do, since the mask decides.
        side: "right" for training, "left" for generating.

    Returns:
        ids_BT and mask_BT, both int64; T is the longest row.
    """
    assert side in {"left", "right"}, side
    longest = max(len(row) for row in rows)
    ids_BT = torch.full((len(rows), longest), value, dtype=torch.long)
    mask_BT = torch.zeros((len(rows), longest), dtype=torch.long)
    for b, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids_BT[b, where] = torch.as_tensor(row, dtype=torch.long)
        mask_BT[b, where] = 1
    return ids_BT, mask_BT


def loss_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for all else: no loss is ever computed in less."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
