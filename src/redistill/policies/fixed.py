"""Training on the gold answers of the data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from redistill.contracts import TokenSequence
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyNode, PolicyTools, Stateless


@dataclass(frozen=True, kw_only=True)
class Fixed(PolicyNode):
    """Returns the gold answers, for off-policy distillation (KD) and for SFT.

    Example:
        >>> Fixed().needs.teacher, Fixed().sampling  # generates no text
        (False, None)
    """

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return settings on which the laws of redistill.testing are checked."""
        return (cls(),)

    def bind(self, tools: PolicyTools) -> "FixedSource":
        return FixedSource()


class FixedSource(Stateless):
    """The source of a `Fixed` policy, which `Fixed.bind` returns."""

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return [item.sequence for item in items]
