"""The order of the training data, and the random choice between a sampled and a gold answer.

Random numbers are keyed by (seed, purpose, step, sample), so that they depend neither on the number of processes nor on a
resume.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar, overload

from redistill.contracts import ONE_PROCESS, Example, Processes, TokenSequence
from redistill.randomness import generator

Item = TypeVar("Item")
Coin = Literal["sample", "step"]


@dataclass(frozen=True)
class GoldItem:
    """A training example and its gold sequence."""

    example: Example
    sequence: TokenSequence


class Shuffled(Generic[Item]):
    """Items in the order of training: a new permutation for each epoch; a batch can contain items of two epochs.

    Args:
        items: At least one.
        batch_size: Items of one update over all processes, a multiple of their number.
        seed: The run's seed.
        purpose: Key of the random stream; different kinds of items have different purposes.
        processes: Each process takes its contiguous part of every batch.
    """

    def __init__(
        self, items: Sequence[Item], *, batch_size: int, seed: int, purpose: str, processes: Processes = ONE_PROCESS
    ) -> None:
        self.processes = processes
        assert items and batch_size % self.processes.world == 0
        self.batch_size = batch_size
        self._items, self._seed, self._purpose = items, seed, purpose
        self._order = lru_cache(maxsize=2)(self._shuffled)  # a batch may have items of two epochs

    def items(self, step: int) -> list[Item]:
        """This process's part of the step's global batch."""
        return self.part(self.all_items(step))

    def all_items(self, step: int) -> list[Item]:
        """The step's global batch, the same on every process."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {position // len(self._items) for position in positions}}
        return [self._items[orders[i // len(self._items)][i % len(self._items)]] for i in positions]

    def part(self, values: Sequence[Any]) -> list[Any]:
        """This process's contiguous part of the values of a global batch; concatenated by rank, the parts are all values."""
        rank, world = self.processes.rank, self.processes.world
        start, stop = (len(values) * each // world for each in (rank, rank + 1))
        return list(values[start:stop])

    def _shuffled(self, epoch: int) -> list[int]:
        order: list[int] = generator(self._seed, self._purpose, epoch).permutation(len(self._items)).tolist()
        return order


class _GoldItems(Sequence[GoldItem]):
    """A training set as items, created on access."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> GoldItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[GoldItem]: ...

    def __getitem__(self, index: int | slice) -> GoldItem | list[GoldItem]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        example = self._examples[index]
        return GoldItem(example, gold_sequence(example))


class GoldBatches(Shuffled[GoldItem]):
    """The gold examples in the order of training, each with its gold sequence.

    Args:
        examples: The training set.
        batch_size, seed, processes: As for `Shuffled`.
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int, processes: Processes = ONE_PROCESS) -> None:
        super().__init__(_GoldItems(examples), batch_size=batch_size, seed=seed, purpose="order", processes=processes)


def gold_sequence(example: Example) -> TokenSequence:
    """An example's gold answer as a training sequence."""
    return TokenSequence(sample=example.sample, token_ids=example.token_ids, supervised=example.supervised, origin="dataset")


def coin(seed: int, step: int, item: GoldItem, kind: Coin) -> float:
    """A uniform random number in [0, 1) of the step or, if `kind` is "sample", of the step and the item's sample."""
    return float(generator(seed, "coin", step, *([item.example.sample] if kind == "sample" else [])).random())
