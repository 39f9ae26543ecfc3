"""Training on the gold answers of the data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from redistill.contracts import Needs, TokenSequence
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyNode, PolicyTools, Stateless


@dataclass(frozen=True, kw_only=True)
class Fixed(PolicyNode):
    """Returns the gold answers (the answers in the data set).

    Training on gold answers is off-policy distillation (KD) or supervised fine-tuning (SFT).

    Source: Hinton et al. (arXiv 1503.02531) for KD; Eq. 2 of MGSR (arXiv 2407.10068) for SFT.

    Example:
        >>> Fixed().needs.gold, Fixed().sampling  # uses the answers in the data, and generates no text
        (True, None)
    """

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(),)

    @property
    def needs(self) -> Needs:
        return Needs(gold=True)

    def bind(self, tools: PolicyTools) -> "FixedSource":
        return FixedSource()


class FixedSource(Stateless):
    """Returns the sequences of a `Fixed` policy; created by `Fixed.bind`."""

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return [item.sequence for item in items]
