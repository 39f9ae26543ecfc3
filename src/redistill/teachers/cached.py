"""The cached teacher, which computes logits from stored hidden states.

No teacher model is in memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from redistill.contracts import (
    Batch,
    Generation,
    GenerationRequest,
    Sampling,
    TeacherCapabilities,
    TeacherTarget,
    TokenSequence,
)
from redistill.errors import ConfigError, DataError
from redistill.teachers.head_rows import HeadRows
from redistill.teachers.hidden_states import HiddenStates, sequence_key

CACHED = TeacherCapabilities(full_vocabulary=True, generates=True, new_text=False)


@dataclass(frozen=True, kw_only=True)
class CachedTeacherConfig:
    """A teacher whose head and last hidden states are stored in a folder.

    No teacher model is loaded. The logits are exact, over the whole vocabulary, for the stored training and validation data.

    Args:
        path: The folder that `redistill cache-teacher` wrote.

    Raises:
        ConfigError: `path` is empty.

    Example:
        >>> CachedTeacherConfig(path="caches/smollm2").capabilities.new_text
        False
    """

    kind: ClassVar[str] = "cached"
    capabilities: ClassVar[TeacherCapabilities] = CACHED

    path: str

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError("path = '': must be the folder of a cached teacher; make one with redistill cache-teacher")


class CachedTeacher:
    """A teacher whose hidden states are read from a store (contracts.TextTeacher).

    Args:
        store: The store.
        vocabulary: Number of leading classes that the student has as well; probabilities are normalised over these classes.
        device: Device of the batches; the head is copied to it, unless it is the CPU.
    """

    capabilities = CACHED

    def __init__(self, store: HiddenStates, *, vocabulary: int, device: torch.device | str) -> None:
        self._store, self._device, head = store, torch.device(device), store.head
        bias_V = None if head.bias_V is None else head.bias_V.to(device)
        self._rows = HeadRows(replace(head, weight_VD=head.weight_VD.to(device), bias_V=bias_V, vocabulary=vocabulary), device)

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Do nothing: `rows` reads the store."""

    @torch.no_grad()
    def rows(self, batch: Batch) -> TeacherTarget:
        """Return the function that computes teacher logits for rows of the batch.

        The states of the sequences that have distillation terms are copied to the device in this call.

        Raises:
            DataError: a sequence is not stored.
        """
        weight_VD = self._rows.head.weight_VD
        found = [weight_VD.new_empty((0, weight_VD.shape[1])), *map(self._stored, _keys(batch), batch.samples)]
        # In the dtype in which the teacher computes them: states in float32 would make products in bf16 products in fp32.
        return self._rows.target(torch.cat([hidden_NE.to(self._device, weight_VD.dtype) for hidden_NE in found]))

    def faults(self) -> int:
        """Return the number of rows with non-finite logits since `faults` was last called."""
        return self._rows.faults()

    def release(self) -> None:
        """Do nothing: no data is kept for an update."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Return the stored answer to every request, in the order of the requests.

        Raises:
            DataError: an answer is not stored.
        """
        found = [self._store.text(request, sampling) for request in requests]
        texts = [text for text in found if text is not None]
        if len(texts) < len(found):
            raise DataError(
                f"{self._store.folder}: {len(found) - len(texts)} of {len(found)} answers are not stored; run `redistill "
                "cache-teacher` with this recipe and a new folder"
            )
        return texts

    def _stored(self, key: bytes, sample: int) -> torch.Tensor:
        hidden_NE = self._store.rows(key)
        if hidden_NE is None:
            raise DataError(
                f"{self._store.folder}: has no hidden states of the sequence of example {sample}; it stores the gold "
                "answers, and with the policy teacher_generated the teacher's answers; use a live teacher for other text"
            )
        return hidden_NE


def _keys(batch: Batch) -> list[bytes]:
    """Return the keys of the sequences that have distillation terms."""
    count, num_tokens = batch.num_sampled, batch.input_ids_BT.shape[1]
    ids_BT, lengths = batch.input_ids_BT[:count].cpu().numpy(), batch.attention_mask_BT[:count].sum(dim=1).tolist()
    supervised_BT = np.zeros((count, num_tokens), dtype=np.uint8)
    # The row at a position predicts the next token, which is the target.
    supervised_BT.reshape(-1)[batch.position_N[: batch.num_sampled_rows].cpu().numpy() + 1] = 1
    return [sequence_key(ids_BT[b, :length], supervised_BT[b, :length]) for b, length in enumerate(lengths)]
