"""Teachers: logits of a batch's sampled rows, handed out slice by slice.

A teacher reads only sequences that carry distillation terms, stops at its hidden states, and multiplies by its head slice by
slice: neither the [rows, vocabulary] tensor of a batch nor its gradient ever exists.  What it has read of a step's drafts it
need not read again of the texts that were made of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from redistill.contracts import Batch, TeacherCapabilities, TeacherTarget
from redistill.generation.prefix import PrefixMemory, PrefixReader
from redistill.models.families import head
from redistill.vocab_pass.head import Products


class LocalTeacher:
    """A teacher model in this process, frozen and in eval mode.

    Args:
        model: A causal language model; it is moved to `device` and its parameters stop asking for gradients.
        vocabulary: Number of leading classes shared with the student; softmax over them renormalises.
        device: Where it runs.

    Example:
        >>> target = LocalTeacher(model, vocabulary=50257, device="cuda").rows(batch)  # doctest: +SKIP
        >>> target(slice(0, 128)).shape  # doctest: +SKIP
        torch.Size([128, 50257])
    """

    capabilities = TeacherCapabilities(full_vocabulary=True)

    def __init__(self, model: nn.Module, *, vocabulary: int, device: torch.device | str) -> None:
        model.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._reader = PrefixReader(model)
        self._memory: PrefixMemory | None = None
        self._remembers = self._in_autocast = False
        self._head = head(model, vocabulary)
        self._faults = torch.zeros((), dtype=torch.long, device=device)

    @torch.no_grad()
    def rows(self, batch: Batch) -> TeacherTarget:
        """Read the batch's sampled sequences once; see `contracts.TeacherTarget`."""
        first = slice(0, batch.num_sampled)
        weight_VD = self._head.weight_VD
        if batch.num_sampled_rows == 0:
            hidden_NE = weight_VD.new_empty((0, weight_VD.shape[1]))
        else:
            hidden_NE = self._reader.rows(
                batch.input_ids_BT[first].to(self._device),
                batch.attention_mask_BT[first].to(self._device),
                batch.position_N[: batch.num_sampled_rows].to(self._device),
                self._memory if self._autocasts() == self._in_autocast else None,  # what is known has one precision
                remember=self._remembers,
            )

        # Settled here: whoever asks for rows may do so inside autocast or outside, and must get the same p.
        products, classifier = Products.like(hidden_NE), self._head.prepared(hidden_NE)

        @torch.no_grad()
        def target(rows: slice) -> torch.Tensor:
            logits_NV = classifier.finish(classifier.raw(hidden_NE[rows], products))
            # One reduction, small beside the product: NaN and +inf come through a maximum, and so does a row of -inf alone.
            self._faults += (~logits_NV.amax(dim=-1).isfinite()).sum()
            return logits_NV

        return target

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Forget what was read; what is read inside is remembered until this is entered again, within a bound of bytes."""
        self._memory, self._remembers, self._in_autocast = PrefixMemory(), True, self._autocasts()
        try:
            yield
        finally:
            self._remembers = False

    def forget(self) -> None:
        """Let go of what was remembered."""
        self._memory = None

    def _autocasts(self) -> bool:
        return torch.is_autocast_enabled(self._device.type)

    def take_faults(self) -> int:
        """Rows handed out since this was last asked whose logits were not finite; what is learned from them is NaN."""
        faults = int(self._faults)
        self._faults.zero_()
        return faults
