"""DistiLLM's scheduler: gold answers until the student gets worse on them, then more and more of its own text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from redistill.contracts import TokenSequence
from redistill.errors import ConfigError
from redistill.policies.buffered import SequenceBuffer, check_buffer
from redistill.policies.generated import StudentGenerated
from redistill.policies.order import Coin, GoldItem
from redistill.policies.source import PolicyTools, Source, WrappingNode
from redistill.randomness import generator

if TYPE_CHECKING:
    from redistill.policies import PolicyConfig

Choice = Literal["fresh", "replay", "gold"]


@dataclass(frozen=True, kw_only=True)
class Adaptive(WrappingNode):
    r"""Fresh text, text of earlier steps or the gold answer, in a mix that follows the validation loss.

    With a coin r in [0, 1), the threshold :math:`\phi`, update t of T (t = 1, 2 ...) and

    .. math:: s = \phi\,(1 - t/T) \text{ (decreasing)}, \quad \phi/2 \text{ (constant)}, \quad \phi\,t/T \text{ (increasing)}

    r < s takes fresh text, and so does r < :math:`\phi` while the buffer is not full; else r < :math:`\phi` replays from the
    buffer, uniformly and without replacement in a batch; else it is the gold answer.  Fresh text goes into the buffer, first
    in, first out.  A validation loss of at least the reference + epsilon raises :math:`\phi` by `threshold_step` (to 1 at most)
    and becomes the reference; any other changes neither.  The first reference is the loss before training.

    Source: DistiLLM (arXiv 2402.03898), its adaptive off-policy scheduler, by the public code; the paper's Table 3a, row
    "Off-policy".  That code throws one coin for a micro-batch of each process and keeps a buffer for each; here coins fall by
    sample and the buffer belongs to the run.

    Args:
        source: Who writes the fresh text; what `Revised` makes of it is what the buffer keeps.
        threshold: At the start, in [0, 1]; at 0 only gold answers are used until the validation loss has risen.
        epsilon: How much the loss must rise, >= 0, in nats.
        threshold_step: How much the threshold rises, in (0, 1].
        decay: What becomes of the share of fresh text over training.
        capacity: Sequences in the buffer, at least the batch size.
        coin: "sample" throws a coin for each sample, "step" one for the whole global batch.

    Raises:
        ConfigError: a value out of range, or a source that writes nothing.

    See also: Mixed (a fixed share of fresh text), Buffered (replay alone).
    """

    source: "PolicyConfig" = field(default_factory=StudentGenerated)
    threshold: float = 0.0
    epsilon: float = 0.1
    threshold_step: float = 0.1
    decay: Literal["decreasing", "constant", "increasing"] = "decreasing"
    capacity: int = 1000
    coin: Coin = "sample"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"threshold = {self.threshold}: must lie in [0, 1]; DistiLLM starts at 0")
        if not 0 <= self.epsilon < math.inf:
            raise ConfigError(f"epsilon = {self.epsilon}: must be >= 0 and finite; DistiLLM uses 0.1")
        if not 0 < self.threshold_step <= 1:
            raise ConfigError(f"threshold_step = {self.threshold_step}: must lie in (0, 1]; DistiLLM uses 0.1")
        check_buffer("adaptive", self.source, self.capacity)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(threshold=0.6, decay="constant", capacity=12), cls(threshold=0.9, capacity=8, coin="step"))

    def bind(self, tools: PolicyTools) -> "AdaptiveSource":
        return AdaptiveSource(self, self.source.bind(tools), tools)


class AdaptiveSource:
    def __init__(self, settings: Adaptive, source: Source, tools: PolicyTools) -> None:
        self._settings, self._source = settings, source
        self._seed, self._updates = tools.seed, tools.updates
        self._buffer = SequenceBuffer(settings.capacity, tools)
        self._threshold = settings.threshold
        self._reference_loss: float | None = None

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        choices = [self._choose(step, item) for item in items]
        fresh, replayed = ([p for p, choice in enumerate(choices) if choice == kind] for kind in ("fresh", "replay"))
        sequences = [item.sequence for item in items]
        for place, drawn in zip(replayed, self._buffer.draw(step, len(replayed)), strict=True):
            sequences[place] = drawn
        written = self._source.sequences(step, [items[place] for place in fresh])
        self._buffer.add(step, written, len(fresh))
        for place, answer in zip(fresh, written):  # what the source adds stands behind the answers
            sequences[place] = answer
        return sequences + written[len(fresh) :]

    def observe(self, validation_loss: float) -> None:
        """Raise the threshold if the loss has risen enough; a loss that is not finite says nothing, and cannot be saved."""
        self._source.observe(validation_loss)
        if not math.isfinite(validation_loss):
            return
        if self._reference_loss is None:
            self._reference_loss = validation_loss
        elif validation_loss >= self._reference_loss + self._settings.epsilon:
            self._threshold = min(self._threshold + self._settings.threshold_step, 1.0)
            self._reference_loss = validation_loss

    def metrics(self) -> Mapping[str, Any]:
        return {**self._source.metrics(), "threshold": self._threshold, "buffered": len(self._buffer)}

    def state_dict(self) -> Mapping[str, Any]:
        return {
            "threshold": self._threshold,
            "reference_loss": self._reference_loss,
            "buffer": self._buffer.state(),
            "source": self._source.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._threshold, self._reference_loss = state["threshold"], state["reference_loss"]
        self._buffer.load_state(state["buffer"])
        self._source.load_state_dict(state["source"])

    def _choose(self, step: int, item: GoldItem) -> Choice:
        counters = [step, item.example.sample] if self._settings.coin == "sample" else [step]
        # Not the coin of `Mixed`: around this or inside it, the two must fall independently.
        thrown = generator(self._seed, "schedule", *counters).random()
        if thrown >= self._threshold:
            return "gold"
        return "fresh" if thrown < self._fresh_share(step + 1) or not self._buffer.is_full else "replay"

    def _fresh_share(self, update: int) -> float:
        """s, the probability of fresh text once the buffer is full."""
        part = update / self._updates
        shares = {"decreasing": 1 - part, "constant": 0.5, "increasing": part}
        return self._threshold * shares[self._settings.decay]
