"""Rows of data as arrays, and records that are created from them on access.

A row takes about 60 bytes more than its text. As Python objects, a row would take much more memory.
"""

import contextlib
import gc
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self, overload

import numpy as np

from redistill.data.forms import ParsedRow, answer_texts, parse_row, texts_of
from redistill.records import Conversation, Instruction, RawPrompt, Record

Prompt = Instruction | RawPrompt | Conversation
Question = tuple[str, ...]


def question(record: Record) -> Question:
    """Return a key that is equal for prompts that differ only in white space.

    Blank texts, such as an empty input, are ignored. A run does not train on rows whose key equals that of a test row.

    Example:
        >>> from redistill.records import Instruction
        >>> question(Record(record_id="", prompt=Instruction(" Add.\\n", "1  2"), references=()))
        ('Add.', '1 2')
    """
    return tuple(" ".join(text.split()) for text in texts_of(record.prompt) if text.strip())


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Disable Python's cyclic garbage collector while the context is active.

    The collector takes a quarter of the time of a loop that creates many objects.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def content_digest(record: Record) -> bytes:
    """Return a 16-byte hash of a record's prompt and references.

    The hash also depends on the type of the prompt and on the roles of its turns.
    """
    prompt = record.prompt
    roles = [turn.role for turn in prompt.turns] if isinstance(prompt, Conversation) else []
    answers = (*record.references, *answer_texts(record.answer))
    return _digest([type(prompt).__name__, *roles, "", *texts_of(prompt), "", *answers], len(roles))


def question_digest(record: Record) -> bytes:
    """Return a 16-byte hash of a record's prompt.

    Prompts that differ only in white space have equal hashes.
    """
    return _digest(question(record))


def _digest(texts: Iterable[str], *counts: int) -> bytes:
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.array([*counts, *map(len, encoded)], dtype=np.int64).tobytes()  # different lists never give equal bytes
    return hashlib.blake2b(lengths + b"".join(encoded), digest_size=16).digest()


def first_of_digests(digests: np.ndarray) -> np.ndarray:
    """For each row of `digests`, return the index of the first equal row.

    Args:
        digests: int64 hashes, [N, 2].

    Returns:
        int64 indices, [N].  If no earlier row is equal to row n, element n is n.
    """
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: the first of equal rows comes first
    ordered = digests[order]
    starts = np.flatnonzero(np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])[: len(ordered)])
    first = np.empty(len(order), dtype=np.int64)
    first[order] = np.repeat(order[starts], np.diff(starts, append=len(order)))
    return first


@dataclass(frozen=True, kw_only=True)
class Table:
    """The usable rows of one source.

    Args:
        source: The file or hub data set, for messages.
        stem: The first part of record ids, which are "<stem>:<line>".
        texts: The rows as JSON, one after the other (uint8).
        ends: For each row, the index after its last byte in `texts` (int64).
        lines: For each row, its line number in the source, from 1 (int64).
        contents: For each row, a hash of its prompt and answers; int64 [N, 2], computed by `content_digest`.
        questions: For each row, a hash of its prompt that ignores white space; int64 [N, 2], computed by `question_digest`.
    """

    source: str
    stem: str
    texts: np.ndarray
    ends: np.ndarray
    lines: np.ndarray
    contents: np.ndarray
    questions: np.ndarray

    def record(self, row: int) -> Record:
        """Return the record of the row with the index `row`."""
        begin, end = self.ends[row - 1] if row else 0, self.ends[row]
        parsed = parse_row(json.loads(self.texts[begin:end].tobytes()), require_answer=False)
        return parsed.record(f"{self.stem}:{self.lines[row]}")


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Record]):
    """Records of one or more sources; a record is created on access.

    Args:
        tables: One table for each source.
        table_N: For each record, the index of its table in `tables`.
        row_N: For each record, the index of its row in that table.
    """

    tables: tuple[Table, ...]
    table_N: np.ndarray = field(repr=False)
    row_N: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, table: Table) -> Self:
        """Return the records of one table, one for each row."""
        count = len(table.ends)
        return cls((table,), np.zeros(count, dtype=np.int32), np.arange(count, dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> Self:
        """Return the records of all `parts`, one part after the other."""
        tables: list[Table] = []
        numbers = [np.zeros(0, dtype=np.int32)]
        for part in parts:
            numbers.append(part.table_N + len(tables))
            tables += part.tables
        row_N = np.concatenate([np.zeros(0, dtype=np.int64), *(part.row_N for part in parts)])
        return cls(tuple(tables), np.concatenate(numbers), row_N)

    def __len__(self) -> int:
        return len(self.row_N)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Rows": ...

    def __getitem__(self, index: int | slice) -> "Record | Rows":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._table(index).record(int(self.row_N[index]))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def _table(self, index: int) -> Table:
        return self.tables[int(self.table_N[index])]

    def take(self, indices: np.ndarray) -> "Rows":
        """Return the selected records.

        `indices` is an array of record indices, in the order of the result. It may also be a boolean mask with one element for
        each record.
        """
        return Rows(self.tables, self.table_N[indices], self.row_N[indices])

    def where(self, index: int) -> tuple[str, int]:
        """Return the source and the line number of the record with this index."""
        table = self._table(index)
        return table.source, int(table.lines[self.row_N[index]])

    def record_id(self, index: int) -> str:
        """Return the id of the record with this index."""
        table = self._table(index)
        return f"{table.stem}:{table.lines[self.row_N[index]]}"

    @property
    def num_bytes(self) -> int:
        """The size of the JSON texts of the records, in bytes."""
        sizes = [np.diff(table.ends, prepend=0) for table in self.tables]
        return sum(int(size[self.row_N[self.table_N == number]].sum()) for number, size in enumerate(sizes))

    @property
    def contents(self) -> np.ndarray:
        """A hash of the prompt and answers of each record; int64 [N, 2]."""
        return self._column([table.contents for table in self.tables])

    @property
    def questions(self) -> np.ndarray:
        """A hash of the prompt of each record; int64 [N, 2].

        Prompts that differ only in white space have equal hashes.
        """
        return self._column([table.questions for table in self.tables])

    def _column(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        found = np.empty((len(self), 2), dtype=np.int64)
        for number, column in enumerate(columns):
            mine = self.table_N == number
            found[mine] = column[self.row_N[mine]]
        return found


def asks_one_of(rows: Rows, questions: Iterable[bytes]) -> np.ndarray:
    """Return a mask of the records whose prompt has a hash in `questions`.

    The mask is boolean, with one element for each record.  `question_digest` computes the hashes; prompts that differ only in
    white space have equal hashes.
    """
    wanted = np.frombuffer(b"".join(questions), dtype=np.int64).reshape(-1, 2)
    found = rows.questions
    maybe = np.flatnonzero(np.isin(found[:, 0], wanted[:, 0]))
    pairs = {tuple(pair) for pair in wanted.tolist()}
    mask = np.zeros(len(rows), dtype=bool)
    mask[[index for index, pair in zip(maybe, found[maybe].tolist()) if tuple(pair) in pairs]] = True
    return mask


class TableBuilder:
    """Collects the rows of a source in arrays, from which a `Table` is created."""

    def __init__(self) -> None:
        self._texts, self._contents, self._questions = bytearray(), bytearray(), bytearray()
        self._ends, self._lines = array("q"), array("q")

    def add(self, line: int, text: bytes, parsed: ParsedRow) -> None:
        """Append a row to the arrays.

        Args:
            line: The line number of the row in its source, from 1.
            text: The row as one line of JSON.
            parsed: The result of `parse_row` for the row.
        """
        record = parsed.record("")
        self._texts += text
        self._ends.append(len(self._texts))
        self._lines.append(line)
        self._contents += content_digest(record)
        self._questions += question_digest(record)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays for a `Table`, by field name."""
        return {
            "texts": np.frombuffer(self._texts, dtype=np.uint8),
            "ends": np.frombuffer(self._ends, dtype=np.int64),
            "lines": np.frombuffer(self._lines, dtype=np.int64),
            "contents": np.frombuffer(self._contents, dtype=np.int64).reshape(-1, 2),
            "questions": np.frombuffer(self._questions, dtype=np.int64).reshape(-1, 2),
        }
