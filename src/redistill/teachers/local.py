"""The local teacher: a model of this process whose logits are given out slice by slice.

It reads only sequences that carry distillation terms, stops at its hidden states, and multiplies by its head slice by slice:
neither the [rows, vocabulary] tensor of a batch nor its gradient ever exists.  What it has read of a step's drafts it does not
read again in the texts that were made of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from redistill.contracts import (
    Batch,
    Engine,
    Generation,
    GenerationRequest,
    Sampling,
    TeacherCapabilities,
    TeacherTarget,
    TokenSequence,
)
from redistill.generation.prefix import PrefixMemory, PrefixReader
from redistill.models.families import head
from redistill.vocab_pass.head import Products

LOCAL = TeacherCapabilities(full_vocabulary=True, statistics=True, generates=True, mixture=True, prefix_memory=True)


class LocalTeacher:
    """A teacher model in this process, frozen and in eval mode (contracts.TextTeacher).

    Args:
        model: A causal language model; it is moved to `device` and its parameters stop requiring gradients.
        vocabulary: Number of leading classes shared with the student; softmax over them renormalises.
        device: Where it runs.
        engine: Generates its text; None where nothing asks for it.

    Example:
        >>> target = LocalTeacher(model, vocabulary=50257, device="cuda").rows(batch)  # doctest: +SKIP
        >>> target(slice(0, 128)).shape  # doctest: +SKIP
        torch.Size([128, 50257])
    """

    capabilities = LOCAL

    def __init__(self, model: nn.Module, *, vocabulary: int, device: torch.device | str, engine: Engine | None = None) -> None:
        model.to(device).eval().requires_grad_(False)
        self._device, self._engine = torch.device(device), engine
        self._reader = PrefixReader(model)
        self._memory: PrefixMemory | None = None
        self._remembers = self._in_autocast = False
        self._head = head(model, vocabulary)
        self._faults = torch.zeros((), dtype=torch.long, device=device)

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Does nothing: the model reads a batch when its rows are asked for."""

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

        # Settled here: rows may be asked for inside autocast or outside, and p must be the same.
        products, classifier = Products.like(hidden_NE), self._head.prepared(hidden_NE)

        @torch.no_grad()
        def target(rows: slice) -> torch.Tensor:
            logits_NV = classifier.finish(classifier.raw(hidden_NE[rows], products))
            # One reduction, small beside the product: NaN and +inf come through a maximum, and so does a row of -inf alone.
            self._faults += (~logits_NV.amax(dim=-1).isfinite()).sum()
            return logits_NV

        return target

    def faults(self) -> int:
        """Rows given out since the last call whose logits were not finite; what is learned from them is NaN."""
        faults = int(self._faults)
        self._faults.zero_()
        return faults

    def release(self) -> None:
        """Drop what was remembered of the update."""
        self._memory = None

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """The teacher's own continuations."""
        assert self._engine is not None, "a policy of teacher text is built with an engine for it"
        return self._engine.generate(requests, sampling)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """What is read inside is remembered until `release`, within a bound of bytes."""
        self._memory, self._remembers, self._in_autocast = PrefixMemory(), True, self._autocasts()
        try:
            yield
        finally:
            self._remembers = False

    def _autocasts(self) -> bool:
        return torch.is_autocast_enabled(self._device.type)
