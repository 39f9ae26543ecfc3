"""What every policy is made of: the order of the gold data, and sources that answer its prompts.

A *policy node* (`Fixed`, `StudentGenerated`, `Revised` ...) is a frozen dataclass, so it is its own YAML; `bind(tools)` makes
its running *source*.  `Policy` joins a source with the gold data.  Every draw is keyed by (seed, purpose, step, sample), and
what is remembered - buffers, roll-outs - is gathered from all processes, so what is drawn does not depend on the
number of processes or on a resume.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch

from redistill.contracts import Batch, Draw, Example, Generate, GenerateMixture, Origin, Sampling, Teacher, TokenSequence
from redistill.randomness import generator
from redistill.vocab_pass import Head

Item = TypeVar("Item")
Gather = Callable[[list[Any]], list[Any]]
Coin = Literal["sample", "step"]
# The teacher's text is data like any other.
REWRITTEN: frozenset[Origin] = frozenset({"student", "mixture", "revised", "replay"})


@dataclass(frozen=True)
class GoldItem:
    """A training example and its gold sequence."""

    example: Example
    sequence: TokenSequence


@dataclass(frozen=True)
class Revision:
    """One SCRG correction, as logged in revisions.jsonl and marked in the report.

    `position` counts response tokens from 0; `kl` is the detection divergence there, in nats.
    """

    step: int
    sample: int
    position: int
    kl: float
    before: TokenSequence
    after: TokenSequence


@dataclass(frozen=True, kw_only=True)
class PolicyTools:
    """What sources are handed: the lower layers, as callables.

    Args:
        generate: The current student, in evaluation mode.
        generate_teacher: The teacher; None where the run has none.
        generate_mixture: Both together: each token is drawn from (1 - share) q + share p.  None where the run has no teacher.
        student_rows: A batch -> the student's hidden states of its rows [N, D], and its head, without gradient.
        teacher: None where no source asks it anything.
        gold: The gold examples in the order of training, for sources that look beyond the items of one step.
        gather: Every process hands in a list and gets all of them, joined in the order of the processes.
        updates: Optimiser steps of the whole run.
        end_ids: Tokens that end a response.
        pad_id: Filler of short rows.
        response_tokens: Length budget of a response.
        score_batch_size: Sequences read at once when drafts are scored.
        seed: The run's seed.
        folder: The run folder, for what a source writes to disk; None keeps it in memory.
        is_main: Whether this process is the one that writes.
        on_revision: Told every correction, for the log.
    """

    generate: Generate
    generate_teacher: Generate | None = None
    generate_mixture: GenerateMixture | None = None
    student_rows: Callable[[Batch], tuple[torch.Tensor, Head]]
    teacher: Teacher | None
    gold: "GoldBatches"
    gather: Gather = lambda values: values
    updates: int
    end_ids: tuple[int, ...]
    pad_id: int
    response_tokens: int
    score_batch_size: int
    seed: int
    device: torch.device | str = "cpu"
    folder: Path | None = None
    is_main: bool = True
    on_revision: Callable[[Revision], None] = lambda revision: None


class Source(Protocol):
    """Answers to the prompts of a step: one for each item, in order, and behind them whatever else the source adds.

    Every process asks at every step, if need be for no items, since a source may gather from all of them.
    """

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]: ...

    def observe(self, validation_loss: float) -> None: ...

    def metrics(self) -> Mapping[str, Any]: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stateless:
    """The empty state of a source that remembers nothing."""

    def observe(self, validation_loss: float) -> None:
        """A source without state learns nothing from validation."""

    def metrics(self) -> Mapping[str, Any]:
        return {}

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"a source without state was given {sorted(state)}"


class Wrapping:
    """The state of what wraps one source and remembers nothing itself."""

    _source: Source

    def observe(self, validation_loss: float) -> None:
        self._source.observe(validation_loss)

    def metrics(self) -> Mapping[str, Any]:
        return self._source.metrics()

    def state_dict(self) -> Mapping[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._source.load_state_dict(state)


class PolicyNode(Protocol):
    """A policy as configuration."""

    def bind(self, tools: PolicyTools) -> Source: ...

    @property
    def sampling(self) -> Sampling | None:
        """How the student writes, or None where it does not."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher has a part in the sequences."""
        ...


class Shuffled(Generic[Item]):
    """Items in the order of training: a fresh permutation each epoch, none left over between epochs.

    Args:
        items: What there is, at least one.
        batch_size: Items of one update over all processes.
        seed: The run's seed.
        purpose: Tells the order of one kind of items from that of another.
        rank, world: This process and their number; each takes its contiguous share of every batch.
    """

    def __init__(
        self, items: Sequence[Item], *, batch_size: int, seed: int, purpose: str, rank: int = 0, world: int = 1
    ) -> None:
        assert items and batch_size % world == 0
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self._items, self._seed, self._purpose = items, seed, purpose
        self._order = lru_cache(maxsize=2)(self._shuffled)  # a batch may lie in two epochs

    def items(self, step: int) -> list[Item]:
        """This process's share of the step's global batch."""
        return self.share(self.all_items(step))

    def all_items(self, step: int) -> list[Item]:
        """The step's global batch, the same on every process."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {place // len(self._items) for place in places}}
        return [self._items[orders[place // len(self._items)][place % len(self._items)]] for place in places]

    def share(self, values: Sequence[Any]) -> list[Any]:
        """This process's part of what belongs to a global batch, in order; the parts of all processes join to the whole."""
        start, stop = (len(values) * rank // self.world for rank in (self.rank, self.rank + 1))
        return list(values[start:stop])

    def _shuffled(self, epoch: int) -> list[int]:
        return generator(self._seed, self._purpose, epoch).permutation(len(self._items)).tolist()


class GoldBatches(Shuffled[GoldItem]):
    """The gold examples in the order of training, each with its gold sequence.

    Args:
        examples: The training set.
        batch_size, seed, rank, world: As for `Shuffled`.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        items = [GoldItem(example, gold_sequence(example)) for example in examples]
        super().__init__(items, batch_size=batch_size, seed=seed, purpose="order", rank=rank, world=world)


class Policy(Wrapping):
    """Gold data and a source, as the loop sees them (contracts.SequencePolicy).

    Args:
        mark_spans: Adds spans to sequences that have none, or None where no term needs them.
        corpus: Blocks of text for the pre-training term, or None where it is left out.
        rewrite: Changes what the student wrote, roll-outs aside, before it is learned from; None leaves it as it is.
        drawing: Entered while a draw is made; inside, the models' weights stay as they are.
    """

    def __init__(
        self,
        gold: GoldBatches,
        source: Source,
        mark_spans: Callable[[Sequence[TokenSequence]], list[TokenSequence]] | None = None,
        *,
        corpus: Shuffled[TokenSequence] | None = None,
        rewrite: Callable[[TokenSequence], TokenSequence] | None = None,
        drawing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._gold, self._source, self._mark_spans = gold, source, mark_spans
        self._corpus, self._rewrite, self._drawing = corpus, rewrite, drawing

    def draw(self, step: int) -> Draw:
        items = self._gold.items(step)
        gold = [item.sequence for item in items]
        with self._drawing():
            sampled = self._source.sequences(step, items)
        if self._rewrite is not None:
            sampled = [self._rewrite(s) if s.origin in REWRITTEN and s.rollout is None else s for s in sampled]
        if self._mark_spans is not None:
            marked = self._mark_spans(sampled)
            replaced = {id(old): new for old, new in zip(sampled, marked, strict=True)}
            gold = [replaced.get(id(sequence), sequence) for sequence in gold]  # stays the same object as in `sampled`
            sampled = marked
        corpus = () if self._corpus is None else tuple(self._corpus.items(step))
        return Draw(gold=tuple(gold), sampled=tuple(sampled), corpus=corpus)


def gold_sequence(example: Example) -> TokenSequence:
    """An example's own answer as a sequence to learn from."""
    return TokenSequence(sample=example.sample, token_ids=example.token_ids, supervised=example.supervised, origin="dataset")


def coin(seed: int, step: int, item: GoldItem, kind: Coin) -> float:
    """A number in [0, 1) that belongs to the step and, unless one coin falls for all of them, to the sample."""
    return float(generator(seed, "coin", step, *([item.example.sample] if kind == "sample" else [])).random())
