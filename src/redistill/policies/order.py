"""The order of the training data, and random choices between answers.

Random numbers depend on keys such as (seed, purpose, step, index of the example).  Therefore they do not depend on the
number of processes, or on whether a run was resumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Generic, Literal, TypeVar, overload

from redistill.contracts import ONE_PROCESS, Example, Processes, TokenSequence
from redistill.errors import ConfigError
from redistill.interfaces import Value
from redistill.randomness import generator, permutation

Item = TypeVar("Item")
Coin = Literal["sample", "step"]


@dataclass(frozen=True)
class GoldItem:
    """A training example, and its gold answer as a training sequence.

    Args:
        example: The training example.
        gold: Its gold answer (the answer in the data set), of origin "dataset"; None if the data set has only the prompt.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> item = make_fixture().tools.gold.items(0)[0]
        >>> item.sequence.token_ids == item.example.token_ids, item.sequence.origin
        (True, 'dataset')
    """

    example: Example
    gold: TokenSequence | None

    @property
    def sequence(self) -> TokenSequence:
        """The gold answer as a training sequence.

        Raises:
            ConfigError: the training data has no answer to the prompt.  If a policy declares in `needs` that it uses gold
                answers, data without answers is rejected when it is read.
        """
        if self.gold is None:
            raise ConfigError(
                f"policy: uses gold answers, but {self.example.record.record_id} has none; add Needs(gold=True) to `needs` of "
                "the policy, so that data without answers is rejected when it is read"
            )
        return self.gold


class Shuffled(Generic[Item]):
    """Items in the order of training: a new permutation for each epoch.

    A batch can contain items of two epochs.

    Args:
        items: The items; at least one.
        batch_size: Number of items of one update on all processes together; a multiple of the number of processes.
        seed: Seed of the run.
        purpose: Name of the random stream.  Different names give independent orders.
        processes: Rank and number of processes; each process takes its contiguous part of every batch.

    Raises:
        AssertionError: there is no item, or `batch_size` is not a multiple of the number of processes.

    Example:
        >>> order = Shuffled(["a", "b", "c", "d"], batch_size=2, seed=1, purpose="order")
        >>> sorted(order.items(step=0) + order.items(step=1))  # an epoch
        ['a', 'b', 'c', 'd']
    """

    def __init__(
        self, items: Sequence[Item], *, batch_size: int, seed: int, purpose: str, processes: Processes = ONE_PROCESS
    ) -> None:
        assert items and batch_size % processes.world == 0
        self._items, self.batch_size, self.processes = items, batch_size, processes
        # The orders of two epochs are cached, since a batch may have items of both.
        self._order = lru_cache(maxsize=2)(partial(permutation, len(items), seed, purpose))

    def items(self, step: int) -> list[Item]:
        """Return this process's part of the global batch of a step."""
        return self.part(self.all_items(step))

    def all_items(self, step: int) -> list[Item]:
        """Return the global batch of a step, which is the same in every process."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        orders = {epoch: self._order(epoch) for epoch in {position // len(self._items) for position in positions}}
        return [self._items[orders[i // len(self._items)][i % len(self._items)]] for i in positions]

    def part(self, values: Sequence[Value]) -> list[Value]:
        """Return this process's contiguous part of the values of a global batch.

        The concatenation of all processes' parts in the order of ranks is `values`.
        """
        rank, world = self.processes.rank, self.processes.world
        start, stop = (len(values) * each // world for each in (rank, rank + 1))
        return list(values[start:stop])


class _GoldItems(Sequence[GoldItem]):
    """One `GoldItem` for each example of a training set, created when it is accessed.

    Recently accessed items are cached, so that they are not created again.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int) -> None:
        self._examples = examples
        self._item = lru_cache(maxsize=max(4096, 4 * batch_size))(self._created)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> GoldItem: ...

    @overload
    def __getitem__(self, index: slice) -> list[GoldItem]: ...

    def __getitem__(self, index: int | slice) -> GoldItem | list[GoldItem]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        return self._item(index)

    def _created(self, index: int) -> GoldItem:
        example = self._examples[index]
        return GoldItem(example, gold_sequence(example) if example.has_answer else None)


class GoldBatches(Shuffled[GoldItem]):
    """The training examples in the order of training, each with its gold answer.

    The gold answer is the answer in the data set.

    Args:
        examples: The training set.
        batch_size, seed, processes: Size of the global batch, seed of the run, and rank and number of processes; see
            `Shuffled`.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> gold = GoldBatches(make_fixture().examples, batch_size=4, seed=1)
        >>> len(gold.items(step=0)), gold.items(step=0) == gold.items(step=0)
        (4, True)
    """

    def __init__(self, examples: Sequence[Example], *, batch_size: int, seed: int, processes: Processes = ONE_PROCESS) -> None:
        items = _GoldItems(examples, batch_size)
        super().__init__(items, batch_size=batch_size, seed=seed, purpose="order", processes=processes)


def gold_sequence(example: Example) -> TokenSequence:
    """Return the gold answer of an example as a training sequence.

    Args:
        example: The training example.

    Returns:
        A sequence of origin "dataset", with the tokens and targets of the example.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> sequence = gold_sequence(make_fixture().examples[0])
        >>> sequence.origin, sequence.sample
        ('dataset', 0)
    """
    return TokenSequence(sample=example.sample, token_ids=example.token_ids, supervised=example.supervised, origin="dataset")


def coin(seed: int, step: int, item: GoldItem, kind: Coin, purpose: str = "coin") -> float:
    """Return a uniform number in [0, 1) that selects a gold or a generated answer.

    With `kind` "sample", each item of a step has its own number.  With "step", all items of a step have the same number.
    Different values of `purpose` give independent numbers.
    """
    return generator(seed, purpose, step, *([item.example.sample] if kind == "sample" else [])).random()
