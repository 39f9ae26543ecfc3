"""The local teacher: a model in this process.

The body of the model (all layers before the head) runs only on sequences that have distillation terms.  The hidden states
are kept, and are multiplied by the head for a few positions at a time.  Therefore the logits of a whole batch never exist
in memory. A revised sequence shares its first tokens with its draft, the version before the revision.  The hidden states of
these tokens are computed once.
"""

from collections.abc import Callable, Iterator, Sequence
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
from redistill.generation.prefix import PrefixMemory, PrefixReader, memory_limit
from redistill.models.families import head
from redistill.models.offload import is_offloaded
from redistill.teachers.appended import AppendedStates
from redistill.teachers.head_rows import HeadRows

LOCAL = TeacherCapabilities(full_vocabulary=True, statistics=True, generates=True, mixture=True, prefix_memory=True)


class LocalTeacher:
    """A teacher model in this process (contracts.TextTeacher).

    The model is frozen and in eval mode.

    Args:
        model: A causal language model; it is moved to `device` unless its layers are offloaded, and its parameters no longer
            require gradients.  If it is sharded over processes, it may be used inside `FrozenShards.passes` only.
        vocabulary: Size of the vocabulary that student and teacher share.  Logits are computed only for token ids below
            this size.
        device: Device of the model.
        engine: Generates the teacher's text; None if no policy uses teacher text.
        states: Stored hidden states.  The model runs only on batches with a sequence that is not stored.  None without a cache.
        note: Function that prints one line to the user.  It is called once if the prefix memory was too small.

    Example:
        >>> from redistill.contracts import items_of
        >>> from redistill.data.collate import collate
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> teacher = LocalTeacher(model, vocabulary=6, device="cpu")
        >>> sequence = TokenSequence(sample=0, token_ids=(5, 4, 3), supervised=(False, True, True), origin="dataset")
        >>> teacher.rows(collate(items_of([sequence], "distillation"), pad_id=0))(slice(0, 2)).shape
        torch.Size([2, 6])
    """

    capabilities = LOCAL

    def __init__(
        self,
        model: nn.Module,
        *,
        vocabulary: int,
        device: torch.device | str,
        engine: Engine | None = None,
        states: AppendedStates | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        if not is_offloaded(model):
            model.to(device)
        model.eval().requires_grad_(False)
        self._device, self._engine, self._states, self._note = torch.device(device), engine, states, note
        self._reader = PrefixReader(model)
        self._memory: PrefixMemory | None = None
        self._remembers = self._in_autocast = False
        self._model, self._vocabulary = model, vocabulary
        self._rows = HeadRows(head(model, vocabulary), device)

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Announce the sequences of the next batches to the store of hidden states.

        If the teacher has no store, this method does nothing.
        """
        if self._states is not None:
            self._states.expect(sequences)

    @torch.no_grad()
    def rows(self, batch: Batch) -> TeacherTarget:
        """Return the function that computes teacher logits for rows of the batch.

        A row is the prediction of one target, a token that the student is trained to predict.  This method runs the layers
        before the head, on the sequences that have distillation terms.  The returned function (`contracts.TeacherTarget`)
        receives a slice of rows, and multiplies their hidden states by the head.
        """
        self._rows.head = head(self._model, self._vocabulary)  # gathering replaces the weight of a sharded teacher
        weight_VD = self._rows.head.weight_VD
        if batch.num_sampled_rows == 0:
            hidden_NE = weight_VD.new_empty((0, weight_VD.shape[1]))
        elif self._states is None or self._remembers:  # drafts need keys and values of the model, too, which are not stored
            hidden_NE = self._hidden_states(batch)
        else:
            # The same conversion as for the states of a cached teacher (see `cached`).
            hidden_NE = self._states.rows(batch, lambda: self._hidden_states(batch)).to(weight_VD)
        return self._rows.target(hidden_NE)

    def _hidden_states(self, batch: Batch) -> torch.Tensor:
        first = slice(0, batch.num_sampled)
        return self._reader.rows(
            batch.input_ids_BT[first].to(self._device),
            batch.attention_mask_BT[first].to(self._device),
            batch.position_N[: batch.num_sampled_rows].to(self._device),
            self._memory if self._autocasts() == self._in_autocast else None,  # its states have one precision
            texts=batch.token_ids[first],
            remember=self._remembers,
        )

    def faults(self) -> torch.Tensor:
        """Return how many rows had non-finite logits since the last call of `faults`.

        A row is the prediction of one token.  The loss of such rows is NaN.  The number is a tensor; see `HeadRows.faults`.
        """
        return self._rows.faults()

    def release(self) -> None:
        """Free the states of texts that `rows` stored in the context `remembering`."""
        if self._memory is not None and self._note is not None and self._memory.report("teacher", self._note):
            self._note = None
        self._memory = None

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Continue every request with text of the teacher, in the order of the requests."""
        assert self._engine is not None, "a teacher without an engine generates no text"
        return self._engine.generate(requests, sampling)

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Context in which `rows` stores the states of texts for reuse.

        The states are keys, values and hidden states; a later text with the same first tokens reuses them.  They are stored
        inside this context only, and are reused until `release` is called, also after the context.  Their maximum size is
        `prefix.memory_limit`.
        """
        memory = PrefixMemory(memory_limit(self._device))
        self._memory, self._remembers, self._in_autocast = memory, True, self._autocasts()
        try:
            yield
        finally:
            self._remembers = False

    def _autocasts(self) -> bool:
        return torch.is_autocast_enabled(self._device.type)
