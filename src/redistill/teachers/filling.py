"""Writes the store of a cached teacher.

If the teacher's answers are needed, they are written first.  The teacher's head and its last hidden states, or a compact
form of its distributions, are written afterwards.  `store` describes the format.  Each file is written atomically.
`filling.jsonl` lists the finished files until the store is complete, so that an interrupted call can be repeated and then
resumes. Interruptions do not change the bits of the resulting folder.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple, overload

import torch

from redistill.contracts import Batch, Generation, GenerationRequest, Sampling, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.data.grouping import grouped, read_cost
from redistill.errors import ConfigError
from redistill.processes import signals
from redistill.records import Json
from redistill.storage import files
from redistill.storage.tensors import write_tensors
from redistill.teachers.forms import Form, Full, Sampled, Tensors, chunks, described, joined, row_generators
from redistill.teachers.head_rows import HeadRows
from redistill.teachers.store import (
    FILLING,
    HEAD,
    MANIFEST,
    MANIFEST_HASH,
    SCHEMA,
    TEXTS,
    Layout,
    check_source,
    rounded,
    sequence_key,
    shard_name,
    text_key,
)
from redistill.vocab_pass.head import Head
from redistill.vocab_pass.rules import whole

SHARD_BYTES = 32_000_000
"""Largest size of the states in a shard; an interrupted call loses at most the work for one shard."""
TIMED_SEQUENCES = 4
"""Number of sequences of median length that are read before the work starts, to estimate its time."""

Tick = Callable[[float], None]
Progress = Callable[[int, int, int], None]
"""Function that receives three numbers: finished items, all items, and tokens that the current call has read."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """The teacher that fills a store.

    Args:
        read: Function of a list of batches and a callback.  It yields for each batch the last hidden states of the rows,
            [N, E], without gradient.  It repeatedly calls the callback with the fraction of the work that is done.
        head: The head of the teacher.  If hidden states are stored, the head has all classes of the teacher.  If a compact
            form is stored, the head has only the classes that the student has as well.
        form: The form of the rows.
        dtype: dtype of the stored states.
        pad_id: Padding token.
        batch_size: Maximum number of sequences per forward pass; if None, the number of tokens is limited instead.
        tokens_at_once: Minimum number of tokens per call of `read`; the last call may have fewer.  A large number is
            efficient if each call reads the teacher's layers from disk.
    """

    read: Callable[[Sequence[Batch], Tick], Iterable[torch.Tensor]]
    head: Head
    form: Form
    dtype: torch.dtype
    pad_id: int
    batch_size: int | None
    tokens_at_once: int = 0

    @property
    def row_bytes(self) -> int:
        """Size of the stored row of one target in bytes.

        For sampled classes, it is the largest possible size.
        """
        return self.form.row_bytes(self.head.weight_VD.shape[1] * self.dtype.itemsize)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The head's tensors that are stored, by name; empty for a compact form."""
        bias_V = self.head.bias_V
        if not isinstance(self.form, Full):
            return {}
        return {"weight_VD": self.head.weight_VD} | ({} if bias_V is None else {"bias_V": bias_V})

    def groups(self, sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        """Divide sequences into one group per forward pass, longest first."""
        items, cost = items_of(sequences, "distillation"), read_cost(self.head.weight_VD.device)
        return [[item.sequence for item in group] for group in grouped(items, self.batch_size, cost)]

    def rows(self, groups: Sequence[Sequence[TokenSequence]], tick: Tick) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the tensors of all targets of each group of sequences, on the CPU.

        `tick` is called repeatedly with the fraction of the work that is done.

        Raises:
            ModelError: a state exceeds the range of `dtype`.
        """
        device = self.head.weight_VD.device
        batches = [collate(items_of(group, "distillation"), pad_id=self.pad_id, device=device) for group in groups]
        return map(self._rows, groups, self.read(batches, tick))

    def _rows(self, sequences: Sequence[TokenSequence], hidden_NE: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors to store for some sequences, on the CPU.

        `hidden_NE` has the last hidden states that predict the targets of these sequences.
        """
        form = self.form
        if isinstance(form, Full):
            return {"hidden_NE": rounded(hidden_NE, self.dtype).cpu()}
        seed = form.seed if isinstance(form, Sampled) else 0
        keys = [sequence_key(each.token_ids, each.supervised) for each in sequences]
        generators = row_generators(seed, keys, [each.num_targets for each in sequences])
        logits, parts = HeadRows(self.head, hidden_NE.device).target(hidden_NE), list[Tensors]()
        for rows in chunks(len(hidden_NE), self.head.num_classes):
            found = form.stored(whole(logits(rows)), generators[rows])
            parts.append({name: tensor.cpu() for name, tensor in found.items()})
        return joined(parts)


class Rows(NamedTuple):
    """Training sequences, each of which is created when it is accessed.

    Args:
        number: Number of sequences.
        create: Function that receives an index and returns the sequence.
    """

    number: int
    create: Callable[[int], TokenSequence]


class Joined(Sequence[TokenSequence]):
    """The concatenation of several `Rows` objects.

    Args:
        parts: The objects that are concatenated.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts, self._ends = parts, list(accumulate(part.number for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...

    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        if index >= len(self):  # ends an iteration
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self._parts[number].create(index - (self._ends[number - 1] if number else 0))


class Plan:
    """The order of the sequences in a store, and their division into shards.

    The plan depends only on the set of sequences.  Equal sequences are stored once.  The longest sequences come first, so
    that a lack of memory is detected early.

    Args:
        sequences: The sequences, at least one.  They are created on access, so that a large data set need not be in memory.
        row_bytes: Size of the stored state of one target.
    """

    def __init__(self, sequences: Sequence[TokenSequence], row_bytes: int) -> None:
        self._sequences = sequences
        found: dict[bytes, tuple[int, int, int]] = {}
        for index, each in enumerate(sequences):
            key = sequence_key(each.token_ids, each.supervised)
            found.setdefault(key, (len(each.token_ids), index, each.num_targets))
        ordered = sorted((-tokens, key, index, targets) for key, (tokens, index, targets) in found.items())
        self.num_sequences, self.num_tokens = len(ordered), -sum(entry[0] for entry in ordered)
        self.num_targets = sum(entry[3] for entry in ordered)
        self.shards, filled = list[list[int]](), SHARD_BYTES
        for _, _, index, targets in ordered:
            if filled + targets * row_bytes > SHARD_BYTES:
                self.shards.append([])
                filled = 0
            self.shards[-1].append(index)
            filled += targets * row_bytes

    def shard(self, number: int) -> list[TokenSequence]:
        """Return the sequences of a shard, in the order of the store."""
        return [self._sequences[index] for index in self.shards[number]]

    def layout(self, teacher: Reader) -> Layout:
        """Return the numbers that describe the store, as its manifest contains them."""
        return Layout(
            sequences=self.num_sequences,
            targets=self.num_targets,
            shards=len(self.shards),
            form=described(teacher.form),
            classes=teacher.head.num_classes,
            width=teacher.head.weight_VD.shape[1],
            dtype=_name(teacher.dtype),
            scale=teacher.head.scale,
            softcap=teacher.head.softcap,
        )

    def seconds(self, teacher: Reader, clock: Callable[[], float] = time.perf_counter) -> float:
        """Estimate the seconds that the teacher needs to read all sequences.

        The teacher reads a few sequences of median length, and the same time per token is assumed for all others.
        """
        middle = [index for shard in self.shards for index in shard][self.num_sequences // 2 :][:TIMED_SEQUENCES]
        some = [self._sequences[index] for index in middle]
        began = clock()
        for _ in teacher.rows(teacher.groups(some), lambda fraction: None):
            pass
        return (clock() - began) * self.num_tokens / sum(len(each.token_ids) for each in some)


class StoreWriter:
    """Fills the store in a folder, which the caller has locked.

    Args:
        folder: The folder of the store: empty, or with the files of an interrupted call with the same `source`.
        source: What the states depend on, by name; see `TeacherStore`.

    Raises:
        ConfigError: the folder contains other files, or the files of an interrupted call with another `source`.
    """

    def __init__(self, folder: Path, source: Mapping[str, Json]) -> None:
        self._folder, self._source = folder, source
        lines = files.read_lines(folder / FILLING)
        if not lines and (other := sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))):
            raise ConfigError(f"{folder}: contains {other[0]} and no cached teacher; choose another folder, or empty this one")
        if lines:
            check_source(folder, lines[0], source, sorted({*lines[0], *source}))
        files.rewrite_lines(folder / FILLING, lines or [source])  # removes an incomplete last line
        self._finished: dict[str, str] = {line["file"]: line["sha256"] for line in lines[1:]}

    def texts(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        generate: Callable[[Sequence[GenerationRequest], Sampling], list[Generation]],
        *,
        batch_size: int,
        progress: Progress,
    ) -> list[Generation]:
        """Generate and store the answers to requests, and return all answers.

        The answers are generated in blocks of `batch_size`.  Stored blocks of an interrupted call are not generated again.
        """
        path, tokens = self._folder / TEXTS, 0
        lines = files.read_lines(path)
        if len(lines) < len(requests):
            lines = lines[: len(lines) // batch_size * batch_size]
        files.rewrite_lines(path, lines)  # removes an incomplete last block
        found = [Generation(token_ids=tuple(line["token_ids"]), finished=line["finished"]) for line in lines]
        while len(found) < len(requests):
            signals.poll()
            progress(len(found), len(requests), tokens)
            block = requests[len(found) : len(found) + batch_size]
            made, keys = generate(block, sampling), [text_key(request, sampling) for request in block]
            pairs = zip(keys, made, strict=True)
            files.append_lines(
                path, [{"key": key, "token_ids": text.token_ids, "finished": text.finished} for key, text in pairs]
            )
            found, tokens = found + made, tokens + sum(len(text.token_ids) for text in made)
        progress(len(found), len(requests), tokens)
        self._finished[TEXTS] = files.digest(path)
        return found

    def states(self, plan: Plan, teacher: Reader, progress: Progress) -> None:
        """Write the LM head (if it is stored) and the rows; mark the store as complete.

        Finished shards of an interrupted call are not computed again.

        Raises:
            ModelError: a state exceeds the range of the stored dtype.
            OutputError: a file cannot be written; `DiskFullError` if the disk is full.
        """
        if teacher.weights:
            self._write(HEAD, lambda: teacher.weights)
        done, read = 0, _Read(teacher, progress, plan.num_sequences)
        for number, indices in enumerate(plan.shards):
            progress(done, plan.num_sequences, read.num_tokens)
            self._write(shard_name(number), partial(read.shard, plan, number, done))
            done += len(indices)
        progress(done, plan.num_sequences, read.num_tokens)
        self._complete(plan.layout(teacher))

    def _write(self, name: str, tensors: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Write a file and record its hash.

        If an interrupted call has finished the file, nothing is written.
        """
        path = self._folder / name
        if name in self._finished and path.is_file() and files.digest(path) == self._finished[name]:
            return
        self._finished[name] = write_tensors(path, tensors())
        files.append_line(self._folder / FILLING, {"file": name, "sha256": self._finished[name]})

    def _complete(self, layout: Layout) -> None:
        """Mark the store as complete: write the manifest and its hash.

        The list of finished files is removed.
        """
        listed = dict(sorted(self._finished.items()))
        about = {"schema": SCHEMA, "source": self._source, "layout": asdict(layout), "files": listed}
        digest = files.write_json(self._folder / MANIFEST, about)
        files.write_text(self._folder / MANIFEST_HASH, f"{digest}\n")
        files.disk.remove(self._folder / FILLING)
        files.sync(self._folder)


@dataclass
class _Read:
    """Reads the sequences of shards, and reports the progress.

    Args:
        teacher: The teacher.
        progress: Function that receives the progress.
        total: Number of sequences of all shards.
        num_tokens: Number of tokens that have been read.
        ready: Tensors of the shards that have been read but not written, by the number of the shard.
    """

    teacher: Reader
    progress: Progress
    total: int
    num_tokens: int = 0
    ready: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict)

    def shard(self, plan: Plan, number: int, done: int) -> dict[str, torch.Tensor]:
        """Return the tensors of shard `number`; shards before it have `done` sequences."""
        if number not in self.ready:
            self.ready = self._shards(plan, number, done)
        return self.ready.pop(number)

    def _shards(self, plan: Plan, number: int, done: int) -> dict[int, dict[str, torch.Tensor]]:
        """Return the tensors of the shards from `number` on, by shard number.

        The shards are those whose sequences the teacher reads in one call.
        """
        shards, tokens = dict[int, list[TokenSequence]](), 0
        while number + len(shards) < len(plan.shards) and (not shards or tokens < self.teacher.tokens_at_once):
            shards[number + len(shards)] = sequences = plan.shard(number + len(shards))
            tokens += sum(len(each.token_ids) for each in sequences)
        groups = {each: self.teacher.groups(sequences) for each, sequences in shards.items()}
        count = sum(map(len, shards.values()))

        def tick(fraction: float) -> None:
            signals.poll()
            self.progress(done + int(fraction * count), self.total, self.num_tokens + int(fraction * tokens))

        found = self.teacher.rows([group for some in groups.values() for group in some], tick)
        made = {each: joined(list(islice(found, len(some)))) for each, some in groups.items()}
        self.num_tokens += tokens
        return {each: tensors | _index(shards[each]) for each, tensors in made.items()}


def _index(sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
    """Return the keys of the sequences of a shard, and where their rows end.

    `end_S` has for each sequence the index after its last row.
    """
    keys = b"".join(sequence_key(each.token_ids, each.supervised) for each in sequences)
    return {
        "key_SK": torch.frombuffer(bytearray(keys), dtype=torch.uint8).reshape(len(sequences), -1),
        "end_S": torch.tensor([each.num_targets for each in sequences]).cumsum(dim=0),
    }


def store_bytes(layout: Layout, teacher: Reader) -> int:
    """Return the size in bytes of the states, keys and head of a store.

    Headers of files (a few hundred bytes each), the manifest and texts are not counted.
    """
    return layout.state_bytes + sum(weight.nbytes for weight in teacher.weights.values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
