"""The cached teacher, whose distributions come from a store.

The teacher computes logits from stored hidden states, or reads some classes of each distribution.  No teacher model is in
memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from redistill.contracts import (
    Batch,
    Generation,
    GenerationRequest,
    SampledClasses,
    Sampling,
    TeacherCapabilities,
    TeacherTarget,
    TokenSequence,
    TopClasses,
)
from redistill.errors import ConfigError, DataError
from redistill.teachers.forms import Form, Full, Tensors, joined
from redistill.teachers.head_rows import HeadRows
from redistill.teachers.store import TeacherStore, batch_keys
from redistill.vocab_pass.head import Head


@dataclass(frozen=True, kw_only=True)
class CachedTeacherConfig:
    """A teacher whose distributions are stored in a folder.

    The folder has the teacher's head and last hidden states, or some classes of each distribution (a compact form). No
    teacher model is loaded. With hidden states, the logits of the stored training and validation data are exact over the
    whole vocabulary.

    Args:
        path: The folder that `redistill cache-teacher` wrote.
        form: The form in which the teacher was stored; it must be the `cache_form` with which the folder was written.
            "full" stands for hidden states, "top_k" for the most probable classes and the remaining mass, and "sampled" for
            classes that were sampled from the teacher.

    Raises:
        ConfigError: `path` is empty.

    Example:
        >>> CachedTeacherConfig(path="caches/smollm2").capabilities.new_text
        False
    """

    kind: ClassVar[str] = "cached"

    path: str
    form: Form = field(default_factory=Full)

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise ConfigError("path = '': must be the folder of a cached teacher; make one with redistill cache-teacher")

    @property
    def capabilities(self) -> TeacherCapabilities:
        """The features of the teacher, which depend on the form."""
        return self.form.capabilities


class CachedTeacher:
    """A teacher whose distributions are read from a store (contracts.TextTeacher).

    Args:
        store: The store.
        vocabulary: Number of classes that the student has as well, from class 0 on.  Probabilities are normalised over
            these classes.
        device: Device of the batches; the head is copied to it, unless it is the CPU.

    Raises:
        ConfigError: a compact form was made for another number of classes than `vocabulary`.
    """

    def __init__(self, store: TeacherStore, *, vocabulary: int, device: torch.device | str) -> None:
        self._store, self._device, self.capabilities = store, torch.device(device), store.form.capabilities
        if store.head is None and store.layout.classes != vocabulary:
            raise ConfigError(
                f"{store.folder}: has probabilities over {store.layout.classes} classes, but student and teacher share "
                f"{vocabulary}; run `redistill cache-teacher` with this recipe and a new folder"
            )
        self._source = _Classes(store, device) if store.head is None else _States(store, store.head, vocabulary, device)

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Do nothing: `rows` reads the store."""

    @torch.no_grad()
    def rows(self, batch: Batch) -> TeacherTarget:
        """Return the function that returns teacher distributions for rows of the batch.

        This call copies the stored tensors of the batch's sequences to the device.  Sequences without distillation terms
        are not used.

        Raises:
            DataError: a sequence is not stored.
        """
        return self._source.target([self._stored(key, sample) for key, sample in zip(batch_keys(batch), batch.samples)])

    def faults(self) -> torch.Tensor:
        """Return the number of rows with non-finite teacher logits since the last call.

        A row is the teacher's prediction of one token.  The number is a tensor; see `HeadRows.faults`.
        """
        return self._source.faults()

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

    def _stored(self, key: bytes, sample: int) -> Tensors:
        found = self._store.rows(key)
        if found is None:
            raise DataError(
                f"{self._store.folder}: has no hidden states of the sequence of example {sample}; only gold answers "
                "are stored and, with the policy teacher_generated, the teacher's answers; use a local teacher for other text"
            )
        return found


class _States:
    """Computes logits from stored hidden states with the teacher's head."""

    def __init__(self, store: TeacherStore, head: Head, vocabulary: int, device: torch.device | str) -> None:
        bias_V = None if head.bias_V is None else head.bias_V.to(device)
        self._rows = HeadRows(replace(head, weight_VD=head.weight_VD.to(device), bias_V=bias_V, vocabulary=vocabulary), device)
        self.faults = self._rows.faults

    def target(self, sequences: Sequence[Tensors]) -> TeacherTarget:
        """Return the function that computes the teacher's logits for a slice of rows.

        The rows are the targets of all sequences.  `sequences` has the stored tensors of each sequence.
        """
        weight_VD = self._rows.head.weight_VD
        found = [weight_VD.new_empty((0, weight_VD.shape[1])), *(sequence["hidden_NE"] for sequence in sequences)]
        # Converted to the dtype of the teacher: with float32 states, products that the teacher computes in bf16 would be fp32.
        return self._rows.target(torch.cat([hidden_NE.to(weight_VD) for hidden_NE in found]))


class _Classes:
    """Returns the most probable classes, or sampled classes, from a compact form."""

    def __init__(self, store: TeacherStore, device: torch.device | str) -> None:
        assert not isinstance(store.form, Full)
        self._form, self._device = store.form, device
        self._faults = torch.zeros((), dtype=torch.long, device=device)

    def target(self, sequences: Sequence[Tensors]) -> TeacherTarget:
        """Return the function that returns the stored classes for a slice of rows.

        The rows are the targets of all sequences.  `sequences` has the stored tensors of each sequence.
        """
        found = self._form.classes(joined(sequences)) if sequences else None

        def classes(rows: slice) -> TopClasses | SampledClasses:
            assert found is not None, "the batch has no rows with distillation terms"
            some = type(found)(*(tensor[rows].to(self._device) for tensor in found))
            # The last tensor, the rest or the entropy, is NaN if a logit of the teacher was not finite.
            self._faults += some[2].isnan().sum()
            return some

        return classes

    def faults(self) -> torch.Tensor:
        """Return the number of rows with non-finite teacher logits since the last call.

        A row is the teacher's prediction of one token.  The number is a tensor; see `HeadRows.faults`.
        """
        faults = self._faults.clone()
        self._faults.zero_()
        return faults
