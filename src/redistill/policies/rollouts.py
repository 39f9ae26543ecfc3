"""MiniLLM's roll-outs: text generated and scored once, used for several epochs.

A *pool* contains the roll-outs that are generated together, and a *cycle* consists of `inner_epochs` epochs over one pool.
At the first update of a cycle, the source generates all answers of the pool, and each model scores them in one forward
pass. Advantages are computed for each mini-batch, since whitening uses the mean and variance of the returns in the
mini-batch.  The formulas are in redistill.losses.policy_gradient.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, cast, get_args

import torch

from redistill.contracts import Needs, Origin, Rollout, StateValue, TokenSequence
from redistill.errors import ConfigError
from redistill.losses.policy_gradient import discounted_returns, importance_weights, token_rewards, whiten
from redistill.policies.generated import StudentGenerated, TeacherMixed
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode
from redistill.randomness import permutation
from redistill.records import Json

Whiten = Literal["tokens", "padded", "none"]


@dataclass(frozen=True, kw_only=True)
class Rollouts(WrappingNode):
    r"""Roll-outs with advantages and importance weights, used for several epochs.

    A roll-out is a generated answer with values for the policy gradient.  Source: MiniLLM (arXiv 2306.08543) and its
    published code, whose values are the defaults.  Old log-probabilities, rewards and importance weights always use
    temperature 1 and no nucleus sampling, even if the text was sampled with other settings.

    .. math:: r_t = \mathrm{clip}\Bigl(\tfrac{1}{s} \log \frac{p(y_t)}{q_{old}(y_t)},\, -c,\, c\Bigr), \quad
        R_t = \frac{1}{n_t} \sum_{t' \ge t} \gamma^{t' - t} r_{t'}, \quad
        w_t = \frac{q_{old}(y_t)}{(1 - a)\, q_{old}(y_t) + a\, p(y_t)}

    For the token y_t at position t, r_t is the reward, R_t the return and w_t the importance weight.  p is the teacher, and
    q_old the student that scored the roll-out.  s is `reward_scaling`, c is `reward_clip`, and gamma is `discount`.  a is the
    weight of the teacher in the mixture, and n_t the number of tokens from t on, or 1 without normalisation.  The advantage of
    a token is its return after whitening (normalisation to mean 0 and variance 1).

    Args:
        source: Generates the text: the student (a = 0), or a mixture of student and teacher, in which the teacher has the
            weight a.
        num_rollouts: Number of roll-outs that all processes together generate at once (a pool), >= 1.  It is rounded down
            to a multiple of the training batch size, but is at least one batch.
        inner_epochs: Number of epochs over a pool before a new pool is generated, >= 1.  The first epoch has the order of
            the training data, and each later epoch has a new random order.
        discount: Discount gamma of the returns, in [0, 1].
        reward_scaling: Divisor of the reward log p - log q, > 0.
        reward_clip: Bound of the absolute scaled reward of a token, > 0.
        length_normalise: Whether the return of a token is divided by the number of rewards in its sum.
        whiten: "tokens" whitens returns with the mean and variance over the tokens of a global mini-batch.  "padded" first
            pads each response with zeros to the length limit, as the published code does; mean and variance include these
            zeros.  "none" uses the returns as advantages, without whitening.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Rollouts().teacher_share, Rollouts().needs.samples_student
        (0.2, True)
        >>> Rollouts(discount=1.5)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: discount = 1.5: must lie in [0, 1]; MiniLLM uses 0.95

    See also: redistill.losses.policy_gradient, which has a function for each formula.
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
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (
            cls(num_rollouts=16, inner_epochs=2),
            cls(source=StudentGenerated(), num_rollouts=1, inner_epochs=1, length_normalise=False, whiten="padded"),
        )

    @property
    def needs(self) -> Needs:
        return self.source.needs | Needs(teacher=True, statistics=True, samples_student=True)

    @property
    def teacher_share(self) -> float:
        """Weight of the teacher in the distribution that tokens are sampled from."""
        return self.source.teacher_share if isinstance(self.source, TeacherMixed) else 0.0

    def bind(self, tools: PolicyTools) -> "RolloutsSource":
        return RolloutsSource(self, self.source.bind(tools), tools)


@dataclass(frozen=True)
class _Scored:
    """A generated sequence, with the log-probabilities of its targets.

    The log-probabilities, in nats, were computed by both models right after the sequence was generated.
    """

    sequence: TokenSequence
    old_logprobs: tuple[float, ...]
    teacher_logprobs: tuple[float, ...]


_LOGPROBS = ("old_logprobs", "teacher_logprobs")  # fields of `_Scored`, and their names in checkpoints


class RolloutsSource(Wrapping):
    """Returns the sequences of a `Rollouts` policy; created by `Rollouts.bind`."""

    def __init__(self, settings: Rollouts, source: Source, tools: PolicyTools) -> None:
        assert tools.scorer is not None, "a teacher with statistics of tokens is required"
        self._settings, self._source, self._tools, self._scorer = settings, source, tools, tools.scorer
        self._pass_steps = max(1, settings.num_rollouts // tools.gold.batch_size)
        self._hold(None, [])

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        """Return this process's part of the step's mini-batch, one roll-out per item.

        A pool of roll-outs is generated at one step, and the mini-batches of this step and of later steps are taken from
        the pool.  A roll-out therefore answers a prompt that was chosen when the pool was generated.  This method uses only
        the number of `items`, and not their prompts.
        """
        cycle, cycle_step = divmod(step, self._pass_steps * self._settings.inner_epochs)
        if cycle != self._cycle:
            self._hold(cycle, self._generate(cycle))
        inner_epoch, number = divmod(cycle_step, self._pass_steps)
        size, order = self._tools.gold.batch_size, self._order(cycle, inner_epoch)
        batch = [self._pool[index] for index in order[number * size : (number + 1) * size]]
        return self._tools.gold.part(self._with_advantages(batch))[: len(items)]

    def metrics(self) -> Mapping[str, Json]:
        return {**self._source.metrics(), **self._pool_metrics}

    def state_dict(self) -> Mapping[str, StateValue]:
        return {"cycle": self._cycle, "pool": self._pool_state, "source": self._source.state_dict()}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        self._hold(cast("int | None", state["cycle"]), _from_state(state["pool"]))
        self._source.load_state_dict(cast("Mapping[str, StateValue]", state["source"]))

    def _hold(self, cycle: int | None, pool: list[_Scored]) -> None:
        """Replace the pool of roll-outs by another pool.

        A pool is used for several epochs, which form a cycle; `cycle` is the index of the cycle.  This method also computes
        the metrics of the new pool and its state for checkpoints, which do not change during the cycle.
        """
        self._cycle, self._pool, self._pool_state = cycle, pool, _state_of(pool)
        self._pool_metrics: Mapping[str, Json] = {}
        if pool:
            reward_BT, valid_BT, _ = self._rewards(pool)
            self._pool_metrics = {"rollout_reward": float(reward_BT[valid_BT].mean())}

    # --- generation ---

    def _generate(self, cycle: int) -> list[_Scored]:
        """Generate, score and return the pool of a cycle.

        The pool is in the order of the training data, and has the roll-outs for all epochs of the cycle.  Each process
        generates and scores a part of the pool, and every process returns the whole pool.
        """
        gold_steps = range(cycle * self._pass_steps, (cycle + 1) * self._pass_steps)
        items = [item for gold_step in gold_steps for item in self._tools.gold.all_items(gold_step)]
        indices: list[int] = []
        generated: list[TokenSequence] = []
        for number, group in enumerate(_without_repeats(items)):
            mine = self._tools.gold.part(group)
            first_step = cycle * self._pass_steps * self._settings.inner_epochs
            generated += self._source.sequences(first_step + number, [items[index] for index in mine])
            indices += mine
        scored = list(zip(indices, self._score(generated), strict=True))
        pool = [entry for _, entry in sorted(self._tools.processes.gather(scored), key=lambda pair: pair[0])]
        assert len(pool) == len(items), "some roll-outs of the pool are missing"
        return pool

    def _score(self, sequences: list[TokenSequence]) -> list[_Scored]:
        """Return each sequence with the log-probabilities of its targets.

        Both the student and the teacher compute log-probabilities.
        """
        found = self._scorer.statistics(sequences, ("student_logprob", "teacher_logprob"))
        rows = zip(sequences, found["student_logprob"], found["teacher_logprob"], strict=True)
        return [_Scored(sequence, tuple(old.tolist()), tuple(teacher.tolist())) for sequence, old, teacher in rows]

    # --- advantages ---

    def _order(self, cycle: int, inner_epoch: int) -> Sequence[int]:
        """Return the order of an epoch over the pool: indices of the pool's sequences."""
        if inner_epoch == 0:
            return range(len(self._pool))
        return permutation(len(self._pool), self._tools.seed, "rollout-order", cycle, inner_epoch)

    def _with_advantages(self, batch: list[_Scored]) -> list[TokenSequence]:
        """Return copies of a mini-batch's sequences, with values for the policy gradient.

        `batch` is the mini-batch of all processes together.
        """
        settings = self._settings
        reward_BT, valid_BT, importance_BT = self._rewards(batch)
        advantage_BT = discounted_returns(
            reward_BT, valid_BT, discount=settings.discount, length_normalise=settings.length_normalise
        )
        if settings.whiten != "none":
            padded = self._tools.response_tokens if settings.whiten == "padded" else None
            advantage_BT = whiten(advantage_BT, valid_BT, padded_length=padded)
        sequences = []
        for scored, advantages, importances in zip(batch, advantage_BT.tolist(), importance_BT.tolist(), strict=True):
            old, length = scored.old_logprobs, len(scored.old_logprobs)
            rollout = Rollout(old_logprobs=old, advantages=tuple(advantages[:length]), importances=tuple(importances[:length]))
            sequences.append(replace(scored.sequence, rollout=rollout))
        return sequences

    def _rewards(self, batch: list[_Scored]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return reward_BT, valid_BT (True at targets) and importance_BT for a batch."""
        old_BT, valid_BT = _padded([scored.old_logprobs for scored in batch])
        teacher_BT, _ = _padded([scored.teacher_logprobs for scored in batch])
        settings = self._settings
        reward_BT = token_rewards(teacher_BT, old_BT, scaling=settings.reward_scaling, clip=settings.reward_clip)
        return reward_BT, valid_BT, importance_weights(teacher_BT, old_BT, settings.teacher_share)


def _without_repeats(items: Sequence[GoldItem]) -> list[list[int]]:
    """Divide items into groups in which no two items have the same training example.

    Each group is a list of indices of `items`.  The random numbers of an answer depend on the step number and the training
    example.  The caller generates the answers of each group with another step number, so that two answers to the same prompt
    differ.
    """
    groups: dict[int, list[int]] = {}
    times: Counter[int] = Counter()
    for index, item in enumerate(items):  # the n-th occurrence of a sample goes into the n-th group
        groups.setdefault(times[item.example.sample], []).append(index)
        times[item.example.sample] += 1
    return list(groups.values())


def _padded(rows: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows as a float64 tensor, padded with zeros, and a mask.

    The mask is bool, and False for padding.
    """
    width = max(map(len, rows))
    padded_BT = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows], dtype=torch.float64)
    return padded_BT, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def _state_of(pool: Sequence[_Scored]) -> Mapping[str, StateValue]:
    """Return the state of the pool for a checkpoint.

    The state contains the sequences, and for each model a float64 tensor of the log-probabilities of all targets.
    """
    columns = {name: [value for scored in pool for value in getattr(scored, name)] for name in _LOGPROBS}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
    return {"sequences": tuple(scored.sequence for scored in pool), **tensors}


def _from_state(state: StateValue) -> list[_Scored]:
    """Restore the pool that `_state_of` returned.

    Checkpoints of commit 3d89816 or earlier contain a list of JSON objects instead, one for each sequence.
    """
    if not isinstance(state, Mapping):
        return [_from_json(line) for line in cast("Sequence[Mapping[str, Json]]", state)]
    sequences = cast("Sequence[TokenSequence]", state["sequences"])
    lengths = [sequence.num_targets for sequence in sequences]
    old, teacher = (cast("torch.Tensor", state[name]).split(lengths) for name in _LOGPROBS)
    return [
        _Scored(sequence, tuple(own.tolist()), tuple(other.tolist()))
        for sequence, own, other in zip(sequences, old, teacher, strict=True)
    ]


def _from_json(line: Mapping[str, Json]) -> _Scored:
    """Restore a scored sequence from the JSON object `line` of an old checkpoint."""
    prompt, response = (cast("Sequence[int]", line[name]) for name in ("prompt", "response"))
    sequence = TokenSequence(
        sample=cast("int", line["sample"]),
        token_ids=(*prompt, *response),
        supervised=(False,) * len(prompt) + (True,) * len(response),
        origin=cast("Origin", line["origin"]),
    )
    old, teacher = (tuple(cast("Sequence[float]", line[name])) for name in _LOGPROBS)
    return _Scored(sequence, old, teacher)
