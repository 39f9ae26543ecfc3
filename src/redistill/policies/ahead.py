"""Generation of the text of several updates at once.

An engine generates faster in larger batches.  If the text of several updates is generated at once, only the first of these
updates trains on text of the student's current weights.  The other updates train on text of older weights.  The age of
these weights is logged as `staleness`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from redistill.contracts import StateValue, TokenSequence
from redistill.policies.order import GoldBatches, GoldItem
from redistill.policies.source import Source, Wrapping
from redistill.records import Json


@dataclass(frozen=True)
class _Waiting:
    """Sequences that were generated for a later update.

    Args:
        sequences: The sequences of this process.
        weights: Step of the weights that generated the text: the number of updates that the student had finished.
    """

    sequences: tuple[TokenSequence, ...]
    weights: int


class AheadSource(Wrapping):
    """Generates the sequences of several updates at once (policies.source.Source).

    Let n be `num_steps`.  At each step s that is a multiple of n, the wrapped source generates sequences for the training
    examples of the steps s to s + n - 1.  The answers use the random numbers of step s.  A training example can occur in
    several of these steps.  So that its answers differ, its second answer uses the random numbers of step s + 1, its third
    answer uses the random numbers of step s + 2, and so on.

    Args:
        source: The source whose sequences are returned.
        gold: The training examples, in the order of training.
        num_steps: Number n of updates whose sequences are generated at once, >= 1.
        updates: Number of updates of the run; no text is generated for steps after the last update.
        weights_step: Function that receives the number of finished updates, and returns the step of the engine's weights: the
            number of updates that were finished when the engine received its weights.

    Example:
        >>> from redistill.policies import StudentGenerated
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> tools = make_fixture().tools
        >>> made = StudentGenerated().bind(tools)
        >>> source = AheadSource(made, tools.gold, num_steps=2, updates=4, weights_step=lambda step: step)
        >>> [len(source.sequences(step, tools.gold.items(step))) for step in (0, 1)]
        [4, 4]
        >>> source.metrics()
        {'staleness': 1}
    """

    def __init__(
        self, source: Source, gold: GoldBatches, *, num_steps: int, updates: int, weights_step: Callable[[int], int]
    ) -> None:
        self._source, self._gold, self._num_steps, self._updates = source, gold, num_steps, updates
        self._weights_step, self._staleness = weights_step, 0
        self._waiting: dict[int, _Waiting] = {}

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        if step not in self._waiting:
            self._generate(step)
        found = self._waiting.pop(step)
        self._staleness = step - found.weights
        return list(found.sequences)

    def metrics(self) -> Mapping[str, Json]:
        """Return the metrics of the wrapped source, and the staleness of the text.

        The staleness is the age, in updates, of the weights that generated the text of the last update.
        """
        return {**self._source.metrics(), "staleness": self._staleness}

    def state_dict(self) -> Mapping[str, StateValue]:
        waiting = {str(step): held.sequences for step, held in self._waiting.items()}
        weights = {str(step): held.weights for step, held in self._waiting.items()}
        return {"waiting": waiting, "weights": weights, "staleness": self._staleness, "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        waiting = cast("Mapping[str, Sequence[TokenSequence]]", state["waiting"])
        weights = cast("Mapping[str, int]", state["weights"])
        self._waiting = {int(step): _Waiting(tuple(held), weights[step]) for step, held in waiting.items()}
        self._staleness = cast("int", state["staleness"])
        self._source.load_state_dict(cast("Mapping[str, StateValue]", state["source"]))

    def _generate(self, first: int) -> None:
        """Generate the sequences of step `first` and of the steps that follow it.

        The last of these steps is the step before the next multiple of `num_steps`, or the last step of the run.
        """
        steps = range(first, max(first + 1, min(self._updates, (first // self._num_steps + 1) * self._num_steps)))
        weights, made = self._weights_step(first), {step: dict[int, TokenSequence]() for step in steps}
        surplus: dict[int, list[TokenSequence]] = {step: [] for step in steps}
        for number, group in enumerate(self._groups(steps)):
            answers = self._source.sequences(first + number, [item for _, _, item in group])
            for (step, index, _), answer in zip(group, answers):
                made[step][index] = answer
            step_of = {item.example.sample: step for step, _, item in group}
            for answer in answers[len(group) :]:  # surplus sequences, such as revisions of drafts
                surplus[step_of.get(answer.sample, first)].append(answer)
        for step, found in made.items():
            ordered = tuple(found[index] for index in sorted(found))
            self._waiting[step] = _Waiting((*ordered, *surplus[step]), weights)

    def _groups(self, steps: range) -> list[list[tuple[int, int, GoldItem]]]:
        """Divide this process's items of several steps into groups.

        An entry of a group is (step, index of the item in the step, item).  If a training example occurs in several steps,
        its items are in different groups, because one call of the source would use the same random numbers for all answers
        to a prompt.  All processes have the same number of groups.
        """
        times: dict[int, list[int]] = {}  # sample -> the steps that have it, in any process
        for step in steps:
            for sample in dict.fromkeys(item.example.sample for item in self._gold.all_items(step)):
                times.setdefault(sample, []).append(step)
        groups: list[list[tuple[int, int, GoldItem]]] = [[] for _ in range(max(map(len, times.values())))]
        for step in steps:
            for index, item in enumerate(self._gold.items(step)):
                groups[times[item.example.sample].index(step)].append((step, index, item))
        return groups
