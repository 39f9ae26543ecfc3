"""What every policy is made of: the tools that it is given, and sources that answer the prompts of a step.

A *policy node* (`Fixed`, `StudentGenerated`, `Revised` ...) is a frozen dataclass, so it is its own YAML; `bind(tools)` makes
its running *source*.  What a source remembers - buffers, roll-outs - is gathered from all processes, so that a draw depends
neither on their number nor on a resume.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from redistill.contracts import ONE_PROCESS, Engine, Needs, Processes, Sampling, TextTeacher, TokenSequence
from redistill.policies.order import GoldBatches, GoldItem
from redistill.policies.scorer import Scorer


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
    """What sources are given: the lower layers, as protocols and callables.

    Args:
        engine: Generates text of the student.
        teacher: Generates text of the teacher; None where it does not, or where the run has none.
        scorer: Statistics of both models on sequences; None where the run has no teacher.
        gold: The gold examples in the order of training, for sources that look beyond the items of one step.
        processes: This process among those of the job.
        updates: Optimiser steps of the whole run.
        end_ids: Tokens that end a response.
        response_tokens: Length limit of a response.
        batch_size: Sequences that one process generates at a time.
        seed: The run's seed.
        folder: The run folder, for what a source writes to disk; None keeps it in memory.
        on_revision: Called with every correction, for the log.
    """

    engine: Engine
    teacher: TextTeacher | None = None
    scorer: Scorer | None = None
    gold: GoldBatches
    processes: Processes = ONE_PROCESS
    updates: int
    end_ids: tuple[int, ...]
    response_tokens: int
    batch_size: int
    seed: int
    folder: Path | None = None
    on_revision: Callable[[Revision], None] = lambda revision: None


class Source(Protocol):
    """Answers to the prompts of a step: one for each item, in order, and behind them whatever else the source adds.

    Every process asks at every step, also for no items, since a source may gather from all of them.
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
        """How the student's text is sampled, or None where it generates none."""
        ...

    @property
    def needs(self) -> Needs:
        """What it requires of teacher and engine."""
        ...


class WrappingNode:
    """A policy node that wraps another, its `source`, and requires what that one does."""

    source: Any

    @property
    def sampling(self) -> Sampling | None:
        sampling: Sampling | None = self.source.sampling
        return sampling

    @property
    def needs(self) -> Needs:
        needs: Needs = self.source.needs
        return needs
