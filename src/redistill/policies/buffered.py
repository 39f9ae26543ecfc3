"""Replay: training on text sampled from a buffer of recently generated text."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

from redistill.contracts import Origin, StateValue, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyNode, PolicyTools, Source, Wrapping, WrappingNode, check_student_text, replaced
from redistill.randomness import generator
from redistill.records import Json

BUFFERED_BATCHES = 125
"""Default size of a replay buffer in batches: the reference code has a buffer of 1000 sequences for batches of 8."""


@dataclass(frozen=True, kw_only=True)
class Buffered(WrappingNode):
    """Text sampled from a buffer of the newest `capacity` generated sequences.

    Another policy, `source`, generates text, which is added to a first-in, first-out buffer.  Then each generated answer is
    replaced by a sequence that is sampled from the buffer, uniformly and without replacement.  Gold answers that `source`
    returns are not replaced.  If `source` returns more sequences than prompts, such as a draft and its revision for one
    prompt, the surplus sequences are only added to the buffer.

    Source: the public code of DistiLLM (the reference code), where this is the "on-policy" setting for ImitKD and GKD. The
    reference code has one buffer per process.  This implementation has one buffer for all processes, so that the result
    does not depend on the number of processes.

    Args:
        source: The policy that generates the text.
        capacity: Size of the buffer in sequences, >= 1 and at least the batch size.  If None, the size is 125 times the batch
            size.  In the reference code, each process has a buffer of 1000 sequences and usually a batch of 8, which makes
            4000 and 32 on four GPUs.

    Raises:
        ConfigError: the capacity is below 1, or the source generates no student text.

    Example:
        >>> Buffered(capacity=500).source
        StudentGenerated(temperature=1.0, top_p=1.0)
        >>> Buffered(capacity=0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: capacity = 0: must be >= 1; leave it out for 125 batches
    """

    capacity: int | None = None

    def __post_init__(self) -> None:
        check_buffer("buffered", self.source, self.capacity)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(), cls(capacity=12))

    def bind(self, tools: PolicyTools) -> "BufferedSource":
        return BufferedSource(
            self.source.bind(tools), SequenceBuffer(num_buffered(self.capacity, tools.gold.batch_size), tools)
        )


def num_buffered(capacity: int | None, batch_size: int) -> int:
    """Return the size of a replay buffer in sequences.

    Args:
        capacity: The setting `capacity` of a policy; None selects 125 times the batch size.
        batch_size: Sequences of an update, of all processes together.

    Example:
        >>> num_buffered(None, 32), num_buffered(64, 32)
        (4000, 64)
    """
    return BUFFERED_BATCHES * batch_size if capacity is None else capacity


def has_buffer(policy: object) -> bool:
    """Return whether a policy, or a policy inside it, has a replay buffer.

    Args:
        policy: The settings of a policy.  Its attribute `source`, if it has one, is the inner policy.

    Example:
        >>> has_buffer(Buffered())
        True
    """
    return hasattr(policy, "capacity") or (hasattr(policy, "source") and has_buffer(policy.source))


class BufferedSource(Wrapping):
    """Returns the sequences of a `Buffered` policy; created by `Buffered.bind`."""

    def __init__(self, source: Source, buffer: "SequenceBuffer") -> None:
        self._source, self._buffer = source, buffer

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        sequences = self._source.sequences(step, items)
        self._buffer.add(step, sequences, len(items))
        answers = sequences[: len(items)]
        generated = [index for index, answer in enumerate(answers) if is_generated(answer)]
        return replaced(answers, generated, self._buffer.draw(step, len(generated)))

    def metrics(self) -> Mapping[str, Json]:
        return {**self._source.metrics(), "buffered": len(self._buffer)}

    def state_dict(self) -> Mapping[str, StateValue]:
        return {"buffer": self._buffer.state(), "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        self._buffer.load_state(state["buffer"])
        self._source.load_state_dict(cast("Mapping[str, StateValue]", state["source"]))


class SequenceBuffer:
    """A buffer of the newest generated sequences of all processes.

    The buffer is identical in every process.  Every process must call the methods at the same steps.

    Raises:
        ConfigError: raised by `add` if a sequence is a roll-out (generated text with values for the policy gradient).
    """

    def __init__(self, capacity: int, tools: PolicyTools) -> None:
        assert capacity >= tools.gold.batch_size, "the buffer must have at least as many sequences as a batch"
        self._tools = tools
        self._sequences: deque[TokenSequence] = deque(maxlen=capacity)
        self._steps: deque[int] = deque(maxlen=capacity)  # of `_sequences`; a deque of pairs is slower to copy

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, step: int, sequences: Sequence[TokenSequence], num_answers: int) -> None:
        """Add the sequences that all processes generated at this step.

        Every process calls this method.  First the answers of all processes are added, then their surplus sequences.
        Surplus sequences are further answers to a prompt, such as the revision of a draft.

        Args:
            step: Number of updates done.
            sequences: One answer for each prompt of this process, then the surplus sequences of this process.  Gold answers and
                replayed sequences are ignored.
            num_answers: Number of answers in `sequences`.
        """
        mine = [(index >= num_answers, sequence) for index, sequence in enumerate(sequences) if is_generated(sequence)]
        generated = self._tools.processes.gather(mine)
        if any(sequence.rollout is not None for _, sequence in generated):
            raise ConfigError(
                "policy: a buffer cannot contain roll-outs, whose scores become outdated; make rollouts the outermost policy"
            )
        self._sequences.extend(sequence for _, sequence in sorted(generated, key=lambda pair: pair[0]))
        self._steps.extend([step] * len(generated))

    def draw(self, step: int, count: int) -> list[TokenSequence]:
        """Return `count` sequences of the buffer, sampled uniformly, for this process.

        Every process calls this method at the same time.  No sequence is returned twice, neither in one process nor in two
        processes.  The returned sequences have the `origin` "replay", except those that were generated at this step.
        """
        counts = self._tools.processes.gather([count])
        first = sum(counts[: self._tools.processes.rank])
        rng = generator(self._tools.seed, "replay", step)
        chosen = rng.choice(len(self), size=sum(counts), replace=False).tolist()[first : first + count]
        sampled = [(self._steps[index], self._sequences[index]) for index in chosen]
        return [sequence if at == step else replace(sequence, origin="replay") for at, sequence in sampled]

    def state(self) -> Mapping[str, StateValue]:
        """Return the sequences of the buffer, oldest first, and the step of each.

        The step is the number of updates done when the sequence was generated.  The sequences are not copied, since they
        are immutable.
        """
        return {"steps": tuple(self._steps), "sequences": tuple(self._sequences)}

    def load_state(self, state: StateValue) -> None:
        """Replace the sequences of the buffer by those in the argument `state`.

        The argument is a result of the method `state`.  Checkpoints of commit 3d89816 or earlier contain a list of JSON
        objects instead, one for each sequence.
        """
        if isinstance(state, Mapping):
            steps, sequences = cast("Sequence[int]", state["steps"]), cast("Sequence[TokenSequence]", state["sequences"])
        else:
            lines = cast("Sequence[Mapping[str, Json]]", state)
            steps, sequences = [cast("int", line["step"]) for line in lines], list(map(_from_json, lines))
        self._steps, self._sequences = deque(steps, self._steps.maxlen), deque(sequences, self._sequences.maxlen)


def _from_json(line: Mapping[str, Json]) -> TokenSequence:
    """Restore a sequence from `line`, a JSON object of an old checkpoint."""
    token_ids, supervised = (cast("Sequence[int]", line[name]) for name in ("token_ids", "supervised"))
    return TokenSequence(
        sample=cast("int", line["sample"]),
        token_ids=tuple(token_ids),
        supervised=tuple(map(bool, supervised)),
        origin=cast("Origin", line["origin"]),
    )


def is_generated(sequence: TokenSequence) -> bool:
    """Return whether a model generated the sequence in the current update.

    The result is False for gold answers and for replayed sequences.
    """
    return sequence.origin not in {"dataset", "replay"}


def check_buffer(name: str, source: PolicyNode, capacity: int | None) -> None:
    """Check the settings of a policy with a buffer: `source` and `capacity`.

    Args:
        name: Name of the policy in error messages.
        source: The policy whose text is added to the buffer.
        capacity: Size of the buffer in sequences; None for the default.

    Raises:
        ConfigError: the capacity is below 1, or `source` generates no student text.
    """
    if capacity is not None and capacity < 1:
        raise ConfigError(f"capacity = {capacity}: must be >= 1; leave it out for {BUFFERED_BATCHES} batches")
    check_student_text(name, source, "revised with the source student_generated")
