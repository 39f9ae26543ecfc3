"""The interfaces of policies: nodes and sources.

A *policy node* (`Fixed`, `StudentGenerated`, `Revised` ...) has the settings of a policy.  It is a frozen dataclass that is
decoded from the YAML of a recipe.  Its method `bind` creates a *source*, which returns the sequences.  The state of a
source (a buffer or roll-outs) is gathered from all processes.  Therefore the sequences of an update do not depend on the
number of processes, or on whether the run was resumed.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from redistill.contracts import (
    ONE_PROCESS,
    Engine,
    Needs,
    PolicyState,
    Processes,
    Sampling,
    StateValue,
    TextTeacher,
    TokenSequence,
)
from redistill.errors import ConfigError
from redistill.interfaces import Value
from redistill.policies.order import GoldBatches, GoldItem
from redistill.policies.scorer import Scorer
from redistill.records import Json

if TYPE_CHECKING:
    from redistill.policies import PolicyConfig


@dataclass(frozen=True)
class Revision:
    """One correction made by SCRG, as logged in revisions.jsonl and shown in reports.

    SCRG (sequence correction and re-generation, MGSR section 4.1) replaces one token of a draft by the teacher's token: the
    error token, at which student and teacher disagree most.  The student then generates the tokens after it again.

    Args:
        step: Number of updates done before the correction, from 0.
        sample: Index of the training example.
        position: Index of the error token in the response, from 0.
        kl: Disagreement of the models at the error token, in nats.  The setting `detection` selects the formula; for
            "random", this is KL(student || teacher).
        before: The draft.
        after: The revised sequence.

    Example:
        >>> supervised = (False, True, True)
        >>> draft = TokenSequence(sample=7, token_ids=(5, 6, 2), supervised=supervised, origin="student")
        >>> revised = TokenSequence(sample=7, token_ids=(5, 8, 2), supervised=supervised, origin="revised")
        >>> revision = Revision(step=0, sample=7, position=0, kl=1.5, before=draft, after=revised)
        >>> revision.before.response_ids[revision.position], revision.after.response_ids[revision.position]
        (6, 8)
    """

    step: int
    sample: int
    position: int
    kl: float
    before: TokenSequence
    after: TokenSequence


@dataclass(frozen=True, kw_only=True)
class PolicyTools:
    """The objects that policies use to create sequences, such as the engine.

    Args:
        engine: Generates the student's text.
        teacher: Generates the teacher's text; None if the run has no teacher that generates text.
        scorer: Computes divergences and log-probabilities of tokens; None if the run has no teacher that provides them.
        gold: The training examples of all steps in the order of training, with their gold answers.
        processes: Rank and number of processes, and the collective operation `gather`.
        updates: Optimiser steps of the run, >= 1.
        end_ids: Ids of the end tokens.
        response_tokens: Length limit of a response in tokens, >= 1.
        batch_size: Sequences that one process generates at once, >= 1.
        seed: The run's seed.
        folder: The run folder, for the files of policies.  If None, everything is kept in memory.
        on_revision: Function that receives each revision (correction of student text) and logs it.

    Example:
        >>> from redistill.policies import StudentGenerated
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> tools: PolicyTools = make_fixture().tools
        >>> source = StudentGenerated().bind(tools)
        >>> [sequence.origin for sequence in source.sequences(0, tools.gold.items(0))]
        ['student', 'student', 'student', 'student']
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


class Source(PolicyState, Protocol):
    """Returns the training sequences of a policy: answers to the prompts of a step."""

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        """Return an answer for each item, in order, then surplus sequences, if any.

        Surplus sequences are further answers to a prompt, such as the revision of a draft.  Every process calls this method
        at every step, even without items, since a source may gather data from all processes.
        """


def replaced(values: Sequence[Value], indices: Sequence[int], answers: Sequence[Value]) -> list[Value]:
    """Return a copy of `values` in which answers replace the values at `indices`.

    If there are more answers than indices, the remaining answers are appended.
    """
    found = list(values)
    for index, answer in zip(indices, answers):
        found[index] = answer
    return found + list(answers[len(indices) :])


class Stateless:
    """Base class of a source that has no state."""

    def observe(self, validation_loss: float) -> None:
        """Do nothing: a source without state does not depend on the validation loss."""

    def metrics(self) -> Mapping[str, Json]:
        return {}

    def state_dict(self) -> Mapping[str, StateValue]:
        return {}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        assert not state, f"a source without state cannot load the keys {sorted(state)}"


class Wrapping:
    """Base class of a source that wraps another source, `_source`.

    The wrapper has no state in addition to that of `_source`.
    """

    _source: Source

    def observe(self, validation_loss: float) -> None:
        self._source.observe(validation_loss)

    def metrics(self) -> Mapping[str, Json]:
        return self._source.metrics()

    def state_dict(self) -> Mapping[str, StateValue]:
        return self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        self._source.load_state_dict(state)


class PolicyNode(Protocol):
    """The configuration of a policy.

    By default, a policy generates no student text and requires no features of teacher and engine.  Subclasses override the
    properties `sampling` and `needs`.
    """

    @abstractmethod
    def bind(self, tools: PolicyTools) -> Source:
        """Create the source that returns the sequences of this policy.

        Args:
            tools: The objects of the run from which a source is built.
        """

    @property
    def sampling(self) -> Sampling | None:
        """Settings with which student text is sampled; None if no such text is generated."""
        return None

    @property
    def needs(self) -> Needs:
        """The features of teacher and engine that the policy requires."""
        return Needs()


def _student_generated() -> "PolicyConfig":
    from redistill.policies.generated import StudentGenerated  # not at the top, since that module imports this one

    return StudentGenerated()


@dataclass(frozen=True, kw_only=True)
class WrappingNode:
    """Base class of a policy that uses the answers of another policy, `source`.

    By default, the sampling settings and the requirements are those of `source`.

    Args:
        source: The policy whose answers are used; the student's text by default.
    """

    source: "PolicyConfig" = field(default_factory=_student_generated)

    @property
    def sampling(self) -> Sampling | None:
        """Settings with which `source` samples student text; None without such text."""
        return self.source.sampling

    @property
    def needs(self) -> Needs:
        """The features of teacher and engine that `source` requires."""
        return self.source.needs


def check_student_text(name: str, source: PolicyNode, remedy: str) -> None:
    """Check that the source of the policy `name` generates student text.

    Raises:
        ConfigError: the source generates no student text.  The message suggests `remedy` as an alternative.
    """
    if source.sampling is None:
        given = f"{name}.source = {type(source).__name__}"
        raise ConfigError(f"{given}: generates no student text; use student_generated, or {remedy}")
