"""Tokenized records in arrays, from which examples are created on access."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, overload

import numpy as np

from redistill.contracts import Example, TokenSequence
from redistill.records import Record

_HASHED_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Tokenized records as examples, which are created on access.

    A token takes 5 bytes of memory.  The field `sample` of an example is its index in this sequence.

    Args:
        records: The records that were tokenized.
        index_N: For each example, the index of its record (int64).
        prompt_N: For each example, the number of tokens of its prompt (int64).
        end_N: For each example, the index after its last token in `ids` and `supervised` (int64).
        ids: The token ids of all examples, one after the other (int32).
        supervised: For each token, 1 if it is a target (a token that the student is trained to predict), and 0 otherwise
            (uint8).
    """

    records: Sequence[Record] = field(repr=False)
    index_N: np.ndarray = field(repr=False)
    prompt_N: np.ndarray = field(repr=False)
    end_N: np.ndarray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    supervised: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, records: Sequence[Record], arrays: Mapping[str, np.ndarray]) -> Self:
        """Create examples from the arrays that `ExampleBuilder.arrays` returned."""
        return cls(records, **{name: arrays[name] for name in ("index_N", "prompt_N", "end_N", "ids", "supervised")})

    def __len__(self) -> int:
        return len(self.end_N)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        numbers = range(len(self))[index]
        return [self._example(number) for number in numbers] if isinstance(numbers, range) else self._example(numbers)

    def __iter__(self) -> Iterator[Example]:
        return map(self._example, range(len(self)))

    def record_id(self, sample: int) -> str:
        """Return the id of the record of the example with index `sample`."""
        return self.records[int(self.index_N[sample])].record_id

    @property
    def prompt_lengths(self) -> list[int]:
        """The number of prompt tokens of each example."""
        lengths: list[int] = self.prompt_N.tolist()
        return lengths

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each example."""
        lengths: list[int] = np.diff(self.end_N, prepend=0).tolist()
        return lengths

    def digest(self) -> str:
        """Return the SHA-256 of all examples, in hexadecimal.

        The hashed bytes of an example are its index and its token ids as int64, and then one byte for each token. The byte is 1
        for a target (a token that the student is trained to predict), and 0 for any other token.
        """
        found = hashlib.sha256()
        for first in range(0, len(self), _HASHED_AT_ONCE):
            ends = self.end_N[first : first + _HASHED_AT_ONCE]
            begin = int(self.end_N[first - 1]) if first else 0
            starts = np.concatenate([[begin], ends[:-1]]) - begin
            samples = np.arange(first, first + len(ends))
            values = np.insert(self.ids[begin : ends[-1]].astype(np.int64), starts, samples).data.cast("B")
            marks = self.supervised[begin : ends[-1]].data
            for number, (start, end) in enumerate(zip(starts.tolist(), (ends - begin).tolist())):
                found.update(values[8 * (start + number) : 8 * (end + number + 1)])
                found.update(marks[start:end])
        return found.hexdigest()

    def _example(self, sample: int) -> Example:
        begin, end = int(self.end_N[sample - 1]) if sample else 0, int(self.end_N[sample])
        ids = tuple(self.ids[begin:end].tolist())
        return Example(
            sample=sample,
            record=self.records[int(self.index_N[sample])],
            prompt_ids=ids[: int(self.prompt_N[sample])],
            token_ids=ids,
            supervised=tuple(map(bool, self.supervised[begin:end].tolist())),
        )


def answered_indices(examples: Sequence[Example]) -> Sequence[int]:
    """Return the indices of the examples that have an answer, in order.

    An example without an answer consists of a prompt alone.
    """
    if not isinstance(examples, Examples):
        return [index for index, example in enumerate(examples) if example.has_answer]
    marks = np.concatenate([[0], np.cumsum(examples.supervised, dtype=np.int64)])
    counts = np.diff(marks[examples.end_N], prepend=0)
    indices: list[int] = np.flatnonzero(counts).tolist()
    return indices


def digest_of(sequences: Sequence[Example | TokenSequence]) -> str:
    """Return the SHA-256 of sequences, in hexadecimal.

    The hashed bytes are those that `Examples.digest` defines.
    """
    if isinstance(sequences, Examples):
        return sequences.digest()
    found = hashlib.sha256()
    for sequence in sequences:
        found.update(array("q", [sequence.sample, *sequence.token_ids]).tobytes() + bytes(sequence.supervised))
    return found.hexdigest()


class ExampleBuilder:
    """Collects tokenized records in arrays, from which `Examples` is created."""

    def __init__(self) -> None:
        self._index, self._prompt, self._end = array("q"), array("q"), array("q")
        self._ids, self._supervised = array("i"), bytearray()

    def __len__(self) -> int:
        return len(self._end)

    def add(self, index: int, prompt: int, ids: Sequence[int], supervised: Sequence[bool]) -> None:
        """Append an example to the arrays.

        Args:
            index: Index of the record that was tokenized.
            prompt: Number of prompt tokens.
            ids: Token ids of prompt and answer.
            supervised: For each token, whether the student is trained to predict it.
        """
        self._index.append(index)
        self._prompt.append(prompt)
        self._ids.extend(ids)
        self._supervised += bytes(supervised)
        self._end.append(len(self._ids))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that `Examples.of` takes; the keys are fields of `Examples`."""
        return {
            "index_N": np.frombuffer(self._index, dtype=np.int64),
            "prompt_N": np.frombuffer(self._prompt, dtype=np.int64),
            "end_N": np.frombuffer(self._end, dtype=np.int64),
            "ids": np.frombuffer(self._ids, dtype=np.int32),
            "supervised": np.frombuffer(self._supervised, dtype=np.uint8),
        }
