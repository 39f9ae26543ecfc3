"""Shape letters, padding, and the dtype of losses.

A supervised token is a token that the student is trained to predict. Its *row* is the distribution that predicts it. The row of
a token at position t is computed from the hidden state at position t - 1. Only data/collate.py applies this shift. Tensors
of shape [rows, vocabulary] are computed for one chunk of rows at a time, to save memory.

Shape letters are the suffixes of tensor names:

    B sequences of a batch      T tokens of a padded sequence       N rows of supervised tokens, flattened over B and T
    V classes (vocabulary)      D width of the student              E width of the teacher
    S spans (phrases)           C rows of one chunk                 K classes that are kept or listed, such as the top k
"""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


def pad(rows: Sequence[Sequence[int]], value: int, *, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Pad sequences to one length.

    Args:
        rows: B sequences of token ids, at least one.
        value: Token id of the padding. Any valid id works, since the mask excludes the padding.
        side: Side of the padding: "right" for training, "left" for generation.

    Returns:
        ids_BT and mask_BT, both int64; T is the length of the longest sequence. The mask is 1 for tokens and 0 for padding.
    """
    ids = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids_BT = pad_sequence(ids, batch_first=True, padding_value=value, padding_side=side)
    return ids_BT, pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side=side)


def loss_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of a loss: float64 for a float64 input, otherwise float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
