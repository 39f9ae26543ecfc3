"""DistiLLM's adaptive scheduler of gold answers, student text and replayed text.

Gold answers are the answers in the data set.  Replayed text is student text of earlier updates.  At first, most answers are
gold answers.  Each time the validation loss rises, the scheduler uses student text more often.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast

from redistill.contracts import Needs, StateValue, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.buffered import BufferedSource, SequenceBuffer, check_buffer, num_buffered
from redistill.policies.order import Coin, GoldItem, coin
from redistill.policies.source import PolicyTools, Source, WrappingNode, replaced
from redistill.records import Json

Choice = Literal["fresh", "replay", "gold"]


@dataclass(frozen=True, kw_only=True)
class Adaptive(WrappingNode):
    r"""Chooses fresh text, replayed text or the gold answer by the validation loss.

    Fresh text is generated in the current update.  Replayed text is sampled from a buffer of earlier fresh text.  The gold
    answer is the answer in the data set.  Let r be a uniform random number in [0, 1), and :math:`\phi` the threshold.  t is
    the number of the update (from 1), and T the number of updates.  s is the probability of fresh text when the buffer is
    full. The field `decay` selects the formula of s:

    .. math:: s = \phi\,(1 - t/T) \text{ (decreasing)}, \quad \phi/2 \text{ (constant)}, \quad \phi\,t/T \text{ (increasing)}

    If r >= :math:`\phi`, the gold answer is chosen.  Otherwise, fresh text is chosen if r < s or if the buffer is not full.
    In all other cases, replayed text is chosen.  Replayed text is sampled uniformly, and without replacement within a
    batch.  Fresh text is added to the buffer (first in, first out).

    The policy compares each validation loss with a reference loss, which is at first the validation loss before training.
    If the validation loss is at least the reference loss + `epsilon`, :math:`\phi` is raised by `threshold_step`, up to a
    maximum of 1.  The validation loss then becomes the reference loss.  Otherwise, :math:`\phi` and the reference loss do
    not change.

    Source: the adaptive off-policy scheduler of DistiLLM (arXiv 2402.03898), as in its public code; "Off-policy" in Table
    3a of MGSR (arXiv 2407.10068).  The public code samples one number r per micro-batch and process, and has one buffer per
    process.  This implementation samples one r per training sample by default, and has one buffer for all processes.

    Args:
        source: The policy that generates the fresh text.  If this policy revises text, the buffer contains the revised text.
        threshold: Initial threshold, in [0, 1]; at 0 only gold answers are used until the validation loss has risen.
        epsilon: Smallest increase of the validation loss over the reference loss that raises the threshold, >= 0, in nats
            per token.
        threshold_step: Increment of the threshold, in (0, 1].
        decay: Formula of s, the probability of fresh text when the buffer is full.
        capacity: Size of the buffer in sequences, >= 1 and at least the batch size.  If None, the size is 125 times the batch
            size, as in the public code with 1000 sequences and a batch of 8 on each process.
        coin: "sample" samples one r for each sample of a batch; "step" samples one r for the whole global batch.

    Raises:
        ConfigError: a value is out of range, or the source generates no student text.

    Example:
        >>> Adaptive(threshold=0.5).decay
        'decreasing'
        >>> Adaptive(threshold=1.5)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: threshold = 1.5: must lie in [0, 1]; DistiLLM starts at 0

    See also: Mixed (a fixed fraction of fresh text), Buffered (replay only).
    """

    threshold: float = 0.0
    epsilon: float = 0.1
    threshold_step: float = 0.1
    decay: Literal["decreasing", "constant", "increasing"] = "decreasing"
    capacity: int | None = None
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
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(), cls(threshold=0.6, decay="constant", capacity=12), cls(threshold=0.9, capacity=8, coin="step"))

    @property
    def needs(self) -> Needs:
        return self.source.needs | Needs(gold=True)

    def bind(self, tools: PolicyTools) -> "AdaptiveSource":
        return AdaptiveSource(self, self.source.bind(tools), tools)


class AdaptiveSource(BufferedSource):
    """Returns the sequences of an `Adaptive` policy; created by `Adaptive.bind`."""

    def __init__(self, settings: Adaptive, source: Source, tools: PolicyTools) -> None:
        self._capacity = num_buffered(settings.capacity, tools.gold.batch_size)
        super().__init__(source, SequenceBuffer(self._capacity, tools))
        self._settings, self._seed, self._updates = settings, tools.seed, tools.updates
        self._threshold = settings.threshold
        self._reference_loss: float | None = None

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        choices = [self._choose(step, item) for item in items]
        fresh, replayed = ([p for p, choice in enumerate(choices) if choice == kind] for kind in ("fresh", "replay"))
        sequences = replaced([item.sequence for item in items], replayed, self._buffer.draw(step, len(replayed)))
        generated = self._source.sequences(step, [items[index] for index in fresh])
        self._buffer.add(step, generated, len(fresh))
        return replaced(sequences, fresh, generated)

    def observe(self, validation_loss: float) -> None:
        """Raise the threshold if the loss is at least the reference loss + epsilon.

        The threshold is the probability of student text instead of the gold answer; `epsilon` is a setting of `Adaptive`.
        The reference loss is the loss at which the threshold was last raised, and before that the first observed loss.  A
        loss that is not finite is ignored, since JSON in checkpoints cannot store it.
        """
        super().observe(validation_loss)
        if not math.isfinite(validation_loss):
            return
        if self._reference_loss is None:
            self._reference_loss = validation_loss
        elif validation_loss >= self._reference_loss + self._settings.epsilon:
            self._threshold = min(self._threshold + self._settings.threshold_step, 1.0)
            self._reference_loss = validation_loss

    def metrics(self) -> Mapping[str, Json]:
        return {"threshold": self._threshold, **super().metrics()}

    def state_dict(self) -> Mapping[str, StateValue]:
        return {"threshold": self._threshold, "reference_loss": self._reference_loss, **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        super().load_state_dict(state)
        self._threshold = cast("float", state["threshold"])
        self._reference_loss = cast("float | None", state["reference_loss"])

    def _choose(self, step: int, item: GoldItem) -> Choice:
        # The random stream differs from that of `Mixed`: if one policy wraps the other, their choices must be independent.
        number = coin(self._seed, step, item, self._settings.coin, "schedule")
        if number >= self._threshold:
            return "gold"
        is_filling = len(self._buffer) < self._capacity
        return "fresh" if is_filling or number < self._fresh_probability(step + 1) else "replay"

    def _fresh_probability(self, update: int) -> float:
        """Return the probability of newly generated text if the replay buffer is full.

        `update` is the number of the update, from 1.
        """
        part = update / self._updates
        fractions = {"decreasing": 1 - part, "constant": 0.5, "increasing": part}
        return self._threshold * fractions[self._settings.decay]
