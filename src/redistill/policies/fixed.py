"""Training on the gold answers of the data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from redistill.contracts import Needs, Sampling, TokenSequence
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Stateless


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """The gold answers: off-policy distillation (KD), and SFT."""

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(),)

    @property
    def sampling(self) -> Sampling | None:
        return None

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, tools: PolicyTools) -> "FixedSource":
        return FixedSource()


class FixedSource(Stateless):
    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return [item.sequence for item in items]
