"""Random choice between student text and the gold answers of the data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from redistill.contracts import Needs, Sampling, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.fixed import FixedSource
from redistill.policies.order import Coin, GoldItem, coin
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode, replaced


@dataclass(frozen=True, kw_only=True)
class Mixed(WrappingNode):
    """Chooses student text with probability `student_fraction`, else the gold answer.

    The gold answer is the answer in the data set.  Source: GKD's lambda; MGSR (arXiv 2407.10068), section 5.3, and "Mixed"
    in Table 3a.  The public code of DistiLLM makes one random choice per micro-batch and process.  This implementation
    makes one choice for each sample by default, so that the choices do not depend on how a batch is divided.

    Args:
        source: Generates the student's text.
        student_fraction: Probability that the answer of the source is chosen, in [0, 1]; the value in MGSR is 0.5.  With 0,
            the policy is equal to `Fixed`: nothing is generated, and the requirements of `source` do not apply.
        coin: "sample" makes one random choice for each sample; "step" makes one choice for the whole global batch.

    Raises:
        ConfigError: student_fraction is outside [0, 1].

    Example:
        >>> Mixed(student_fraction=0.25).source
        StudentGenerated(temperature=1.0, top_p=1.0)
        >>> Mixed(student_fraction=1.5)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: student_fraction = 1.5: must lie in [0, 1]; GKD and the paper use 0.5
    """

    student_fraction: float = 0.5
    coin: Coin = "sample"

    def __post_init__(self) -> None:
        if not 0 <= self.student_fraction <= 1:
            raise ConfigError(f"student_fraction = {self.student_fraction}: must lie in [0, 1]; GKD and the paper use 0.5")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(), cls(student_fraction=0.25), cls(coin="step"))

    @property
    def sampling(self) -> Sampling | None:
        return self.source.sampling if self.student_fraction else None

    @property
    def needs(self) -> Needs:
        if not self.student_fraction:
            return Needs(gold=True)
        return self.source.needs | Needs(gold=self.student_fraction < 1)

    def bind(self, tools: PolicyTools) -> "MixedSource | FixedSource":
        if not self.student_fraction:
            return FixedSource()
        return MixedSource(self, self.source.bind(tools), tools.seed)


class MixedSource(Wrapping):
    """Returns the sequences of a `Mixed` policy; created by `Mixed.bind`."""

    def __init__(self, settings: Mixed, source: Source, seed: int) -> None:
        self._settings, self._source, self._seed = settings, source, seed

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        numbers = [coin(self._seed, step, item, self._settings.coin) for item in items]
        chosen = [index for index, number in enumerate(numbers) if number < self._settings.student_fraction]
        answers = self._source.sequences(step, [items[index] for index in chosen])
        if len(chosen) == len(items):  # the prompts may have no gold answers
            return answers
        return replaced([item.sequence for item in items], chosen, answers)
