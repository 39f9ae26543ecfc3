"""Learning from the newest texts of a source instead of its very last ones."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from redistill.contracts import TokenSequence
from redistill.errors import ConfigError
from redistill.policies.generated import StudentGenerated
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode
from redistill.randomness import generator

if TYPE_CHECKING:
    from redistill.policies import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Buffered(WrappingNode):
    """Texts drawn from the newest `capacity` that a source wrote, this step's among them.

    What the source writes goes into a first-in, first-out buffer; then each written answer is replaced by a sequence drawn from
    the buffer, uniformly and without replacement.  Gold answers that the source hands through are left where they are.
    What the source adds behind its answers goes into the buffer too, and is drawn from it like the rest.

    Source: the reference code's "on-policy" (ImitKD and GKD), which keeps 1000 sequences for each process; here the buffer
    belongs to the run, so that the number of processes changes nothing.

    Args:
        source: Who writes.
        capacity: Sequences kept, at least the batch size.

    Raises:
        ConfigError: a capacity below 1, or a source that writes nothing.
    """

    source: "PolicyConfig" = field(default_factory=StudentGenerated)
    capacity: int = 1000

    def __post_init__(self) -> None:
        check_buffer("buffered", self.source, self.capacity)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(capacity=12))

    def bind(self, tools: PolicyTools) -> "BufferedSource":
        return BufferedSource(self.source.bind(tools), SequenceBuffer(self.capacity, tools))


class BufferedSource(Wrapping):
    def __init__(self, source: Source, buffer: "SequenceBuffer") -> None:
        self._source, self._buffer = source, buffer

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        sequences = self._source.sequences(step, items)
        self._buffer.add(step, sequences, len(items))
        answers = sequences[: len(items)]
        places = [place for place, answer in enumerate(answers) if is_written(answer)]
        for place, drawn in zip(places, self._buffer.draw(step, len(places)), strict=True):
            answers[place] = drawn
        return answers

    def metrics(self) -> Mapping[str, Any]:
        return {**self._source.metrics(), "buffered": len(self._buffer)}

    def state_dict(self) -> Mapping[str, Any]:
        return {"buffer": self._buffer.state(), "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._buffer.load_state(state["buffer"])
        self._source.load_state_dict(state["source"])


class SequenceBuffer:
    """The newest written sequences of all processes, the same on each of them; every process asks for everything.

    Raises:
        ConfigError: it is given roll-outs.
    """

    def __init__(self, capacity: int, tools: PolicyTools) -> None:
        assert capacity >= tools.gold.batch_size, "a batch is drawn without replacement"
        self._tools = tools
        self._kept: deque[tuple[int, TokenSequence]] = deque(maxlen=capacity)  # with the step that they were written at

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def is_full(self) -> bool:
        return len(self._kept) == self._kept.maxlen

    def add(self, step: int, sequences: Sequence[TokenSequence], num_answers: int) -> None:
        """Keep what all processes' sources wrote for this step: first all answers, then what stands behind them."""
        mine = [(place >= num_answers, sequence) for place, sequence in enumerate(sequences) if is_written(sequence)]
        written = self._tools.processes.gather(mine)
        if any(sequence.rollout is not None for _, sequence in written):
            raise ConfigError(
                "policy: roll-outs cannot be kept in a buffer, since they are scored once; put rollouts outermost"
            )
        self._kept.extend((step, sequence) for _, sequence in sorted(written, key=lambda pair: pair[0]))

    def draw(self, step: int, count: int) -> list[TokenSequence]:
        """This process's `count` sequences of those drawn for all processes, uniformly and without replacement.

        What was written at this step keeps its origin, all else is "replay".
        """
        counts = self._tools.processes.gather([count])
        first = sum(counts[: self._tools.processes.rank])
        rng = generator(self._tools.seed, "replay", step)
        chosen = rng.choice(len(self._kept), size=sum(counts), replace=False).tolist()[first : first + count]
        return [
            sequence if written_at == step else replace(sequence, origin="replay")
            for written_at, sequence in (self._kept[place] for place in chosen)
        ]

    def state(self) -> list[dict[str, Any]]:
        """The sequences, oldest first, as plain data."""
        return [
            {
                "step": step,
                "sample": sequence.sample,
                "origin": sequence.origin,
                "token_ids": list(sequence.token_ids),
                "supervised": [int(is_target) for is_target in sequence.supervised],
            }
            for step, sequence in self._kept
        ]

    def load_state(self, state: Sequence[Mapping[str, Any]]) -> None:
        self._kept.clear()
        for line in state:
            sequence = TokenSequence(
                sample=line["sample"],
                token_ids=tuple(line["token_ids"]),
                supervised=tuple(map(bool, line["supervised"])),
                origin=line["origin"],
            )
            self._kept.append((line["step"], sequence))


def is_written(sequence: TokenSequence) -> bool:
    """Whether a model wrote it for this step."""
    return sequence.origin not in {"dataset", "replay"}


def check_buffer(name: str, source: "PolicyConfig", capacity: int) -> None:
    """Refuse a buffer that can hold nothing, or is never written to.

    Raises:
        ConfigError: it is refused.
    """
    if capacity < 1:
        raise ConfigError(f"capacity = {capacity}: must be >= 1; the reference code keeps 1000")
    if source.sampling is None:
        raise ConfigError(f"{name}.source writes no student text to keep; use student_generated, or revised around it")
