"""Tokenized rows as arrays, and examples that are created from them on access."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, overload

import numpy as np

from redistill.contracts import Example
from redistill.records import Record

_HASHED_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """Tokenized records, created on access.

    A token takes 5 bytes.  `sample` is the index of the example.

    Args:
        records: The records that were tokenized.
        index_N: int64; for each example, the index of its record.
        prompt_N: int64; the number of tokens of its prompt.
        end_N: int64; the end of its tokens in `ids` and `supervised`.
        ids: int32; the token ids of all examples, one after the other.
        supervised: uint8; for each token, whether it is a target.
    """

    records: Sequence[Record] = field(repr=False)
    index_N: np.ndarray = field(repr=False)
    prompt_N: np.ndarray = field(repr=False)
    end_N: np.ndarray = field(repr=False)
    ids: np.ndarray = field(repr=False)
    supervised: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, records: Sequence[Record], arrays: Mapping[str, np.ndarray]) -> Self:
        """The examples of `arrays`, as `ExampleBuilder.arrays` returns them."""
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
        """The id of the record of an example."""
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
        """SHA-256 of the samples, token ids and targets.

        It is the hash of, for each example, `sample` and the ids as int64, then a byte for each token.
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


class ExampleBuilder:
    """Collects examples in arrays."""

    def __init__(self) -> None:
        self._index, self._prompt, self._end = array("q"), array("q"), array("q")
        self._ids, self._supervised = array("i"), bytearray()

    def __len__(self) -> int:
        return len(self._end)

    def add(self, index: int, prompt: int, ids: Sequence[int], supervised: Sequence[bool]) -> None:
        """Add the example of record `index`, which has `prompt` prompt tokens."""
        self._index.append(index)
        self._prompt.append(prompt)
        self._ids.extend(ids)
        self._supervised += bytes(supervised)
        self._end.append(len(self._ids))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of `Examples`, by the names of its fields."""
        return {
            "index_N": np.frombuffer(self._index, dtype=np.int64),
            "prompt_N": np.frombuffer(self._prompt, dtype=np.int64),
            "end_N": np.frombuffer(self._end, dtype=np.int64),
            "ids": np.frombuffer(self._ids, dtype=np.int32),
            "supervised": np.frombuffer(self._supervised, dtype=np.uint8),
        }
