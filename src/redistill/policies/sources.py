"""What every policy is made of: the order of the gold data, and sources that answer its prompts.

A *policy node* (`Fixed`, `StudentGenerated`, `Mixed`, `Revised`) is a frozen dataclass, so it is its own YAML; `bind(tools)`
makes the running *source* of it.  `Policy` joins a source with the gold data.  Coins fall per sample and every draw is keyed by
(seed, purpose, step, sample), so what is drawn does not depend on the number of processes or on a resume.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from redistill.contracts import Batch, Draw, Example, Generate, Sampling, Teacher, TokenSequence
from redistill.randomness import generator
from redistill.vocab_pass import Head


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
        student_rows: A batch -> the student's hidden states of its rows [N, D], and its head, without gradient.
        teacher: None where no source asks it anything.
        end_ids: Tokens that end a response.
        pad_id: Filler of short rows.
        response_tokens: Length budget of a response.
        score_batch_size: Sequences read at once when drafts are scored.
        seed: The run's seed.
        on_revision: Told every correction, for the log.
    """

    generate: Generate
    student_rows: Callable[[Batch], tuple[torch.Tensor, Head]]
    teacher: Teacher | None
    end_ids: tuple[int, ...]
    pad_id: int
    response_tokens: int
    score_batch_size: int
    seed: int
    device: torch.device | str = "cpu"
    on_revision: Callable[[Revision], None] = lambda revision: None


class Source(Protocol):
    """Answers to the prompts of a step, one for each item, in order."""

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]: ...

    def observe(self, validation_loss: float) -> None: ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Stateless:
    """The empty state of a source that remembers nothing."""

    def observe(self, validation_loss: float) -> None:
        """A source without state learns nothing from validation."""

    def state_dict(self) -> Mapping[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert not state, f"a source without state was given {sorted(state)}"


class Wrapping:
    """The state of what wraps one source and remembers nothing itself."""

    _source: Source

    def observe(self, validation_loss: float) -> None:
        self._source.observe(validation_loss)

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


class GoldBatches:
    """The gold examples in the order of training: a fresh permutation each epoch, no example left over between epochs.

    Args:
        examples: The training set.
        batch_size: Sequences of one update over all processes.
        seed: The run's seed.
        rank, world: This process and their number; each takes its contiguous share of every batch.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        assert examples and batch_size % world == 0
        self._items = [GoldItem(example, gold_sequence(example)) for example in examples]
        self._batch_size, self._seed = batch_size, seed
        share = batch_size // world
        self._share = range(rank * share, (rank + 1) * share)

    def items(self, step: int) -> list[GoldItem]:
        """This process's share of the step's global batch."""
        places = [step * self._batch_size + place for place in self._share]
        orders = {epoch: self._order(epoch) for epoch in {place // len(self._items) for place in places}}
        return [self._items[orders[place // len(self._items)][place % len(self._items)]] for place in places]

    def _order(self, epoch: int) -> list[int]:
        return generator(self._seed, "order", epoch).permutation(len(self._items)).tolist()


class Policy(Wrapping):
    """Gold data and a source, as the loop sees them (contracts.SequencePolicy).

    Args:
        mark_spans: Adds spans to sequences that have none, or None where no term needs them.
    """

    def __init__(
        self,
        gold: GoldBatches,
        source: Source,
        mark_spans: Callable[[Sequence[TokenSequence]], list[TokenSequence]] | None = None,
    ) -> None:
        self._gold, self._source, self._mark_spans = gold, source, mark_spans

    def draw(self, step: int) -> Draw:
        items = self._gold.items(step)
        gold = [item.sequence for item in items]
        sampled = self._source.sequences(step, items)
        if self._mark_spans is not None:
            marked = self._mark_spans(sampled)
            replaced = {id(old): new for old, new in zip(sampled, marked, strict=True)}
            gold = [replaced.get(id(sequence), sequence) for sequence in gold]  # stays the same object as in `sampled`
            sampled = marked
        return Draw(gold=tuple(gold), sampled=tuple(sampled))


def gold_sequence(example: Example) -> TokenSequence:
    """An example's own answer as a sequence to learn from."""
    return TokenSequence(sample=example.sample, token_ids=example.token_ids, supervised=example.supervised, origin="dataset")
