"""MiniLLM's roll-outs: text written and scored at once, then learned from in several passes of mini-batches.

The arithmetic is in redistill.losses.policy_gradient; here a pool of sequences is kept between updates.  A *cycle* has as many
updates as one pass takes, times the passes.  At its first update the source answers the prompts of a whole pass, and both
models read the answers once.  Advantages are made anew for each mini-batch, since whitening looks at a mini-batch as a whole.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

import torch

from redistill.contracts import Needs, Rollout, TokenSequence
from redistill.errors import ConfigError
from redistill.losses.policy_gradient import discounted_returns, importance_weights, token_rewards, whiten
from redistill.policies.generated import StudentGenerated
from redistill.policies.mixture import TeacherMixed
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode
from redistill.randomness import generator

Whiten = Literal["tokens", "padded", "none"]


@dataclass(frozen=True, kw_only=True)
class Rollouts(WrappingNode):
    """Text with what a policy gradient needs to know of it, learned from in several passes.

    Source: MiniLLM (arXiv 2306.08543) and its published code, whose values are the defaults.  Old log-probabilities, rewards
    and importance weights are of the models' own distributions, whatever temperature or nucleus the text was drawn with.

    Args:
        source: Who writes; nothing but text whose probability is known can be weighed.
        num_rollouts: Sequences of a cycle over all processes, cut to whole batches of training and to one at least.
        inner_epochs: Passes over them before new ones are written, >= 1; the first is in the order of the gold batches.
        discount: gamma of the returns, in [0, 1].
        reward_scaling: What log p - log q is divided by, > 0.
        reward_clip: Bound of a token's reward, after the scaling, > 0.
        length_normalise: Whether a return is divided by the number of tokens that it sums over.
        whiten: "tokens" whitens returns over the tokens of a global mini-batch; "padded" over rows filled with zeros to the
            length limit of responses, as the published code does; "none" takes the returns as advantages.

    Raises:
        ConfigError: a value out of range.
    """

    source: TeacherMixed | StudentGenerated = field(default_factory=TeacherMixed)
    num_rollouts: int = 256
    inner_epochs: int = 4
    discount: float = 0.95
    reward_scaling: float = 0.5
    reward_clip: float = 100.0
    length_normalise: bool = True
    whiten: Whiten = "tokens"

    def __post_init__(self) -> None:
        for name, usual in (("num_rollouts", 256), ("inner_epochs", 4)):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 1; MiniLLM uses {usual}")
        for name, value in (("reward_scaling", 0.5), ("reward_clip", 100)):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be > 0 and finite; MiniLLM uses {value}")
        if not 0 <= self.discount <= 1:
            raise ConfigError(f"discount = {self.discount}: must lie in [0, 1]; MiniLLM uses 0.95")
        if self.whiten not in get_args(Whiten):
            raise ConfigError(f"whiten = {self.whiten!r}: must be one of {', '.join(get_args(Whiten))}")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (
            cls(num_rollouts=16, inner_epochs=2),
            cls(source=StudentGenerated(), num_rollouts=1, inner_epochs=1, length_normalise=False, whiten="padded"),
        )

    @property
    def needs(self) -> Needs:
        return self.source.needs | Needs(teacher=True, statistics=True, samples_student=True)

    @property
    def teacher_share(self) -> float:
        """How much of the distribution that tokens are drawn from is the teacher's."""
        return self.source.teacher_share if isinstance(self.source, TeacherMixed) else 0.0

    def bind(self, tools: PolicyTools) -> "RolloutsSource":
        return RolloutsSource(self, self.source.bind(tools), tools)


@dataclass(frozen=True)
class _Scored:
    """A sequence of the pool, and both models' log-probabilities of its targets when it was written."""

    sequence: TokenSequence
    old_logprobs: tuple[float, ...]
    teacher_logprobs: tuple[float, ...]


class RolloutsSource(Wrapping):
    def __init__(self, settings: Rollouts, source: Source, tools: PolicyTools) -> None:
        assert tools.scorer is not None, "checked by `needs` when the recipe was read"
        self._settings, self._source, self._tools, self._scorer = settings, source, tools, tools.scorer
        self._pass_steps = max(1, settings.num_rollouts // tools.gold.batch_size)
        self._cycle: int | None = None
        self._pool: list[_Scored] = []

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        """As many roll-outs as there are items: this process's share of the step's mini-batch, whatever the items ask."""
        cycle, place = divmod(step, self._pass_steps * self._settings.inner_epochs)
        if cycle != self._cycle:
            self._pool = self._write(cycle)
            self._cycle = cycle
        inner_epoch, number = divmod(place, self._pass_steps)
        size = self._tools.gold.batch_size
        order = self._order(cycle, inner_epoch)[number * size : (number + 1) * size]
        return self._tools.gold.share(self._with_advantages([self._pool[at] for at in order]))[: len(items)]

    def metrics(self) -> Mapping[str, Any]:
        if not self._pool:
            return self._source.metrics()
        reward_BT, valid_BT, _ = self._rewards(self._pool)
        return {**self._source.metrics(), "rollout_reward": float(reward_BT[valid_BT].mean())}

    def state_dict(self) -> Mapping[str, Any]:
        return {"cycle": self._cycle, "pool": [_plain(scored) for scored in self._pool], "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._cycle, self._pool = state["cycle"], [_from_plain(entry) for entry in state["pool"]]
        self._source.load_state_dict(state["source"])

    # --- writing ---

    def _write(self, cycle: int) -> list[_Scored]:
        """A pool for the prompts of the cycle's gold steps, in their order; each process writes and scores its share."""
        gold_steps = range(cycle * self._pass_steps, (cycle + 1) * self._pass_steps)
        items = [item for gold_step in gold_steps for item in self._tools.gold.all_items(gold_step)]
        places: list[int] = []
        written: list[TokenSequence] = []
        for number, group in enumerate(_without_repeats(items)):
            mine = self._tools.gold.share(group)
            first_step = cycle * self._pass_steps * self._settings.inner_epochs
            written += self._source.sequences(first_step + number, [items[place] for place in mine])
            places += mine
        scored = list(zip(places, self._score(written), strict=True))
        pool = [entry for _, entry in sorted(self._tools.processes.gather(scored), key=lambda pair: pair[0])]
        assert len(pool) == len(items), "a pool is gathered from all processes"
        return pool

    def _score(self, sequences: list[TokenSequence]) -> list[_Scored]:
        """One reading of every sequence by both models."""
        found = self._scorer.statistics(sequences, ("student_logprob", "teacher_logprob"))
        columns = (found["student_logprob"], found["teacher_logprob"])
        return [
            _Scored(sequence, tuple(old.tolist()), tuple(teacher.tolist()))
            for sequence, old, teacher in zip(sequences, *columns, strict=True)
        ]

    # --- weighing ---

    def _order(self, cycle: int, inner_epoch: int) -> Sequence[int]:
        """Places of the pool in the order of one pass."""
        if inner_epoch == 0:
            return range(len(self._pool))
        return generator(self._tools.seed, "rollout-order", cycle, inner_epoch).permutation(len(self._pool)).tolist()

    def _with_advantages(self, batch: list[_Scored]) -> list[TokenSequence]:
        """The sequences of a global mini-batch, each with its roll-out."""
        settings = self._settings
        reward_BT, valid_BT, importance_BT = self._rewards(batch)
        advantage_BT = discounted_returns(
            reward_BT, valid_BT, discount=settings.discount, length_normalise=settings.length_normalise
        )
        if settings.whiten != "none":
            padded = self._tools.response_tokens if settings.whiten == "padded" else None
            advantage_BT = whiten(advantage_BT, valid_BT, padded_length=padded)
        return [
            replace(
                scored.sequence,
                rollout=Rollout(
                    old_logprobs=scored.old_logprobs,
                    advantages=tuple(advantages[: len(scored.old_logprobs)]),
                    importances=tuple(importances[: len(scored.old_logprobs)]),
                ),
            )
            for scored, advantages, importances in zip(batch, advantage_BT.tolist(), importance_BT.tolist(), strict=True)
        ]

    def _rewards(self, batch: list[_Scored]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """reward_BT, valid_BT and importance_BT of some sequences, in float64."""
        old_BT, valid_BT = _padded([scored.old_logprobs for scored in batch])
        teacher_BT, _ = _padded([scored.teacher_logprobs for scored in batch])
        settings = self._settings
        reward_BT = token_rewards(teacher_BT, old_BT, scaling=settings.reward_scaling, clip=settings.reward_clip)
        return reward_BT, valid_BT, importance_weights(teacher_BT, old_BT, settings.teacher_share)


def _without_repeats(items: Sequence[GoldItem]) -> list[list[int]]:
    """Places of the items in groups of different samples: what is written is keyed by step and sample alone."""
    groups: dict[int, list[int]] = {}
    times: Counter[int] = Counter()
    for place, item in enumerate(items):  # the n-th time that a sample comes, it goes into the n-th group
        groups.setdefault(times[item.example.sample], []).append(place)
        times[item.example.sample] += 1
    return list(groups.values())


def _padded(rows: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of log-probabilities as one float64 tensor with zeros behind them, and the bool mask of what is real."""
    width = max(map(len, rows))
    padded_BT = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)
    return padded_BT, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def _plain(scored: _Scored) -> dict[str, Any]:
    """As JSON has it; what the writers write has one run of targets, to its end."""
    sequence = scored.sequence
    return {
        "sample": sequence.sample,
        "origin": sequence.origin,
        "prompt": list(sequence.prompt_ids),
        "response": list(sequence.response_ids),
        "old_logprobs": list(scored.old_logprobs),
        "teacher_logprobs": list(scored.teacher_logprobs),
    }


def _from_plain(entry: Mapping[str, Any]) -> _Scored:
    prompt, response = tuple(entry["prompt"]), tuple(entry["response"])
    sequence = TokenSequence(
        sample=entry["sample"],
        token_ids=prompt + response,
        supervised=(False,) * len(prompt) + (True,) * len(response),
        origin=entry["origin"],
    )
    return _Scored(sequence, tuple(entry["old_logprobs"]), tuple(entry["teacher_logprobs"]))
