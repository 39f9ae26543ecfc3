"""Types that packages share: data, capabilities, and protocols.

This module computes no loss, loads no model and reads no file. docs/architecture.md describes the path of a sequence through
these types. Shape letters are defined in docs/notation.md.

Longer than 400 lines: one file defines every type that is part of the interface between packages.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias, get_args

import torch
from torch import nn

from redistill.errors import ConfigError
from redistill.interfaces import Autocast, Gather, Tokenizer
from redistill.records import Json, Record

Origin = Literal["dataset", "teacher", "student", "mixture", "revised", "replay", "corpus"]
"""Where a response came from.

"dataset" is an answer from the data. "teacher" and "student" are text of one model, and "mixture" is sampled from a mixture of
both. "revised" is student text in which the teacher replaced a token. "replay" is taken from a buffer of earlier generated
text. "corpus" is a block of the pre-training corpus.
"""
ORIGINS: tuple[Origin, ...] = get_args(Origin)
"""All origins; `RowContext` represents an origin by its index in this tuple."""


# --- data ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Example:
    """A tokenized record.

    A target is a token that the student is trained to predict. Targets need not be contiguous: a conversation can have one
    range of targets for each assistant turn. If the record has no answer, the example contains only the tokens of the prompt,
    and no targets.

    Args:
        sample: Index of the record in its data set, from 0.
        record: The record that was tokenized.
        prompt_ids: Token ids of the prompt, without an answer.
        token_ids: Token ids of prompt, answer and end token. The end token is absent if the answer was truncated.
        supervised: For each position of `token_ids`, True if the token is a target.

    Example:
        >>> from redistill.records import RawPrompt
        >>> record = Record(record_id="mine:1", prompt=RawPrompt("How are"), references=("you?",))
        >>> supervised = (False, False, True, True)
        >>> example = Example(sample=0, record=record, prompt_ids=(5, 6), token_ids=(5, 6, 7, 2), supervised=supervised)
        >>> [token for token, is_target in zip(example.token_ids, example.supervised) if is_target]
        [7, 2]
    """

    sample: int
    record: Record
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]

    @property
    def has_answer(self) -> bool:
        """Whether the record has a gold answer (an answer in the data)."""
        return True in self.supervised


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """Values of a generated sequence for the policy gradient, one for each target.

    A target is a token that the student is trained to predict. losses/policy_gradient.py has the formulas. Source: MiniLLM
    (arXiv 2306.08543).

    Args:
        old_logprobs: Log-probability of each target in nats, computed by the student right after the sequence was generated.
        advantages: Advantage of each target.
        importances: Importance weight of each target, >= 0. The weight corrects for sampling from a mixture with the teacher
            instead of the student alone.

    Example:
        >>> Rollout(old_logprobs=(-0.1, -2.3), advantages=(1.0, -1.0), importances=(1.0, 0.5)).advantages
        (1.0, -1.0)
    """

    old_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    importances: tuple[float, ...]


MAX_WEIGHT = 1000
"""Largest value of a setting that is a weight of tokens. Much larger weights make the loss infinite or NaN."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSequence:
    """One sequence that the student learns from.

    Args:
        sample: Index of the training example that the prompt belongs to. Random numbers for the sequence depend on this index.
        token_ids: Prompt and response, unpadded. A generated end token is included, and is a target.
        supervised: For each position, True if the token is a target: a token that the student is trained to predict.
        origin: Where the response came from, such as "dataset" or "student"; see `Origin`.
        spans: Half-open ranges of target indices for the span loss; the first target of the sequence has index 0.
        rollout: Values for the policy gradient; None if the objective has no policy gradient.
        weights: Weight of each target in the divergence term, finite and >= 0; () if all weights are 1. The divergence at a
            target is multiplied by its weight. The sum over targets is divided by the number of targets, not by the sum of the
            weights. Cross entropy (SFT), span loss and policy gradient do not use the weights.

    Raises:
        AssertionError: `token_ids` and `supervised` differ in length; no token is a target; the first token is a target; the
            number of weights is neither 0 nor the number of targets; or a weight is negative or not finite.

    Example:
        >>> supervised = (False, False, True, True)
        >>> sequence = TokenSequence(sample=0, token_ids=(5, 6, 7, 2), supervised=supervised, origin="student")
        >>> sequence.prompt_ids, sequence.response_ids, sequence.num_targets
        ((5, 6), (7, 2), 2)
    """

    sample: int
    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    origin: Origin
    spans: tuple[tuple[int, int], ...] = ()
    rollout: Rollout | None = None
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.supervised) > 1, "a target needs a preceding token"
        assert not self.supervised[0] and any(self.supervised), "some token, but not the first, must be a target"
        assert not self.weights or len(self.weights) == self.num_targets, "there must be one weight for each target, or none"
        assert all(0 <= weight < math.inf for weight in self.weights), "a weight must be finite and at least 0"

    @property
    def num_targets(self) -> int:
        """Number of targets (tokens that the student is trained to predict), >= 1."""
        return sum(self.supervised)

    @property
    def target_weights(self) -> tuple[float, ...]:
        """The weight of each target in the divergence term; 1 if `weights` is empty."""
        return self.weights or (1.0,) * self.num_targets

    @property
    def response_start(self) -> int:
        """Position of the first target in `token_ids`, >= 1.

        A target is a token that the student is trained to predict.
        """
        return self.supervised.index(True)

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The response: the first target and all tokens after it.

        A target is a token that the student is trained to predict.
        """
        return self.token_ids[self.response_start :]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt: all tokens before the first target.

        A target is a token that the student is trained to predict.
        """
        return self.token_ids[: self.response_start]


StateValue: TypeAlias = "Json | torch.Tensor | tuple[TokenSequence, ...] | Sequence[StateValue] | Mapping[str, StateValue]"
"""A value in the state of a policy.  A checkpoint stores tensors and tuples of sequences as tensors, all else as JSON."""


Role = Literal["sft", "distillation"]
"""The terms of the objective that use a sequence.

"sft" is the cross entropy. "distillation" is the divergence, the span loss and the policy gradient.
"""


@dataclass(frozen=True)
class DrawItem:
    """A sequence and its roles: the terms of the objective that use it.

    Gold answers (answers from the data) have the role "sft". Answers that the policy has chosen for distillation, such as text
    of the student, have the role "distillation". If a policy chooses the gold answer for distillation, one item has both roles,
    and needs only one forward pass. The objective later removes roles that none of its terms uses.

    Args:
        sequence: The sequence.
        roles: "sft", "distillation" or both.

    Example:
        >>> gold = TokenSequence(sample=0, token_ids=(5, 7), supervised=(False, True), origin="dataset")
        >>> sorted(DrawItem(gold, frozenset({"sft", "distillation"})).roles)
        ['distillation', 'sft']
    """

    sequence: TokenSequence
    roles: frozenset[Role]


def items_of(sequences: Iterable[TokenSequence], *roles: Role) -> tuple[DrawItem, ...]:
    """Create one item for each sequence, all with the same roles.

    Args:
        sequences: Any number of sequences.
        roles: Roles of all items.

    Returns:
        The items, in the order of the sequences.

    Example:
        >>> gold = TokenSequence(sample=0, token_ids=(5, 7), supervised=(False, True), origin="dataset")
        >>> [item.roles for item in items_of([gold], "sft")]
        [frozenset({'sft'})]
    """
    return tuple(DrawItem(sequence, frozenset(roles)) for sequence in sequences)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The sequences of one update in this process.

    Args:
        items: Sequences with prompts of the training examples. Sequences for distillation (role "distillation") come first,
            then answers from the data (role "sft").
        corpus: Blocks of the pre-training corpus; empty if the objective has no pre-training term.

    Example:
        >>> gold = TokenSequence(sample=0, token_ids=(5, 7), supervised=(False, True), origin="dataset")
        >>> draw = Draw(items=items_of([gold], "sft"))
        >>> len(draw.with_role("sft")), len(draw.with_role("distillation"))
        (1, 0)
    """

    items: tuple[DrawItem, ...]
    corpus: tuple[TokenSequence, ...] = ()

    def with_role(self, role: Role) -> tuple[TokenSequence, ...]:
        """Return the sequences of the items with this role, in the order of `items`."""
        return tuple(item.sequence for item in self.items if role in item.roles)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A right-padded micro-batch, and the tokens that the student learns to predict.

    More than 12 fields: it holds tensors that are created together and moved to the device together.

    A target is a token that the student is trained to predict. A row is the prediction of one target: row n predicts
    `target_N[n]` from the hidden state at `position_N[n]`.

    The first `num_sampled` sequences have the role "distillation". The first `num_sampled_rows` rows belong to these sequences,
    in the same order. The teacher is run on these sequences only.

    Args:
        input_ids_BT, attention_mask_BT: int64; the mask is 1 for tokens and 0 for padding.
        position_N: int64 indices into the hidden states flattened to [B * T].
        target_N: int64; the token that row n predicts.
        sequence_N: int64; index of the sequence of row n, in [0, B).
        sft_N: bool; True if row n counts in the SFT term.
        pair_weight_N: float32; weight of the pair of rows (n, n + 1) in the span loss (MGSR, Eq. 10); 0 if no span contains
            both rows.
        num_sampled, num_sampled_rows: Number of sequences, and number of rows, with the role "distillation".
        num_sft_rows: Number of rows that count in the SFT term; stored, since counting them on a GPU would synchronise.
        num_span_samples: Number of sequences with the role "distillation" and at least one span that the span loss uses.
        role: "pretraining" for a micro-batch of the pre-training term; "task" for a micro-batch of the other terms.
        sequence_weight_N: float32; 1 / (number of targets of the sequence of row n), for means over sequences.
        old_logprob_N, advantage_N, importance_N: float32; the values of `Rollout`, for the first `num_sampled_rows` rows. They
            are 0 for sequences without a `Rollout`.
        token_weight_N: float32; `TokenSequence.weights`: the weight of each target in the divergence term, for the first
            `num_sampled_rows` rows.
        token_ids: Token ids of each sequence, without padding; on the host.
        samples: Index of the training example of each sequence.
        origins: Origin of each sequence.
        phrases: One tuple (first row, last row + 1, weight) for each span that the span loss uses.  The weight is 1 / (number
            of such spans in the same sequence).

    Example:
        >>> from redistill.data.collate import collate
        >>> supervised = (False, False, True, True)
        >>> gold = TokenSequence(sample=0, token_ids=(5, 6, 7, 2), supervised=supervised, origin="dataset")
        >>> batch = collate(items_of([gold], "sft"), pad_id=0)
        >>> batch.position_N, batch.target_N, batch.num_sampled
        (tensor([1, 2]), tensor([7, 2]), 0)
    """

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    position_N: torch.Tensor
    target_N: torch.Tensor
    sequence_N: torch.Tensor
    sft_N: torch.Tensor
    pair_weight_N: torch.Tensor
    num_sampled: int
    num_sampled_rows: int
    num_sft_rows: int
    num_span_samples: int
    role: Literal["task", "pretraining"]
    sequence_weight_N: torch.Tensor
    old_logprob_N: torch.Tensor
    advantage_N: torch.Tensor
    importance_N: torch.Tensor
    token_weight_N: torch.Tensor
    token_ids: tuple[tuple[int, ...], ...]
    samples: tuple[int, ...]
    origins: tuple[Origin, ...]
    phrases: tuple[tuple[int, int, float], ...] = ()


# --- protocols ----------------------------------------------------------------------------------------------------------


class Divergence(Protocol):
    """A function that measures how much student and teacher distributions differ.

    A divergence is a frozen dataclass whose fields are its hyper-parameters.

    Call:
        logq_NV: Student log-probabilities.
        logp_NV: Teacher log-probabilities, same shape.
        Returns divergence_N, one value for each of the N pairs of distributions. Values are >= 0, and 0 exactly where both
        distributions are equal. The unit is nats if the class states no other unit. The dtype is float32, or float64 for
        float64 inputs. The gradient flows through the student's log-probabilities only.

    If the class has the attribute `reads_context = True`, a call has a third argument: a `RowContext`.

    Example:
        >>> from redistill.losses.divergences import ForwardKL
        >>> divergence: Divergence = ForwardKL()
        >>> logp_NV, logq_NV = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> divergence(logq_NV, logp_NV)
        tensor([0.1438])
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor: ...


class RowContext(NamedTuple):
    """Origin and training progress of each row, for divergences that depend on them.

    A row is the prediction of one token.  A divergence with the class attribute ``reads_context = True`` is called with a
    `RowContext` as its third argument.  All other divergences are called with the distributions of both models only.

    Args:
        origin_N: int64; for each row, the origin of the text that contains it, as an index in `ORIGINS`.
        progress_N: float32; training progress in [0, 1]: 0 at the first update of the run, 1 at the last one.  All rows have
            the same value.

    Example:
        >>> context = RowContext(torch.tensor([ORIGINS.index("student")]), torch.tensor([0.5]))
        >>> ORIGINS[context.origin_N[0]]
        'student'
    """

    origin_N: torch.Tensor
    progress_N: torch.Tensor


class TopClasses(NamedTuple):
    """Teacher distributions that list only the K most probable classes of each row.

    A row is the prediction of one token, and a class is a token id of the vocabulary.

    Args:
        class_NK: int64; the listed classes.
        logp_NK: float32; log-probabilities of the listed classes, normalised over all classes.
        log_rest_N: float32; logarithm of the total probability of all other classes.

    Example:
        >>> top = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).topk(2)
        >>> target = TopClasses(top.indices, top.values.log(), (1 - top.values.sum(-1)).log())
        >>> target.class_NK, target.log_rest_N.exp()
        (tensor([[0, 1]]), tensor([0.2000]))
    """

    class_NK: torch.Tensor
    logp_NK: torch.Tensor
    log_rest_N: torch.Tensor


class SampledClasses(NamedTuple):
    r"""Classes that were sampled from teacher distributions, with weights.

    .. math:: \mathbb{E} \sum_k w_k f(c_k) = \sum_v p_v f(v) \quad \text{for every function } f

    c_k are the classes of a row and w_k their weights; p is the teacher's distribution.  The weighted sum is an unbiased
    estimate of an expectation under the teacher, such as the cross entropy.  Source: Anshumann et al. (arXiv 2503.16870).

    A row is the prediction of one token, and a class is a token id of the vocabulary.

    Args:
        class_NK: int64; the classes of each row.  A row with fewer classes is padded with classes of weight 0.
        weight_NK: float32; the weight of each class, >= 0.
        entropy_N: float32; the entropy of the teacher's distribution over all classes, in nats.

    Example:
        >>> one_N = torch.tensor([0.6931])
        >>> SampledClasses(torch.tensor([[3, 5]]), torch.tensor([[0.5, 0.5]]), one_N).weight_NK.sum()
        tensor(1.)
    """

    class_NK: torch.Tensor
    weight_NK: torch.Tensor
    entropy_N: torch.Tensor


class TeacherTarget(Protocol):
    """A function that returns teacher distributions for some rows of a batch.

    A row is the prediction of one token (see `Batch`). To save memory, the function is called for a few rows at a time.

    Example:
        >>> logits_NV = torch.zeros(3, 5)
        >>> target: TeacherTarget = lambda rows: logits_NV[rows]
        >>> target(slice(0, 2)).shape
        torch.Size([2, 5])
    """

    def __call__(self, rows: slice) -> torch.Tensor | TopClasses | SampledClasses:
        """Return the teacher distributions for a slice of rows, without gradient.

        Args:
            rows: Range of row indices of the batch.

        Returns:
            float32 logits of shape [number of rows, V], which the caller normalises; log-probabilities are valid logits. A
            teacher that does not provide all logits returns `TopClasses` or `SampledClasses`.
        """


class _Flags:
    """Base class that checks that every field except `top_k` is a bool.

    Raises:
        ConfigError: a field is not a bool.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "top_k" and not isinstance(value, bool):
                raise ConfigError(f"{type(self).__name__}: {name} = {value!r}: must be True or False")


@dataclass(frozen=True, kw_only=True)
class TeacherCapabilities(_Flags):
    """What a teacher supports.

    The requirements of a recipe are compared with these fields before any model is loaded.

    Args:
        full_vocabulary: The teacher provides logits over the whole vocabulary. If False, it provides only the most probable
            classes (`TopClasses`) or sampled classes (`SampledClasses`). A class is a token id of the vocabulary.
        statistics: The teacher provides values for each position of newly generated text. These are divergences from the
            student, sampled tokens, and log-probabilities of given tokens.
        generates: The teacher generates text; it is a `TextTeacher`.
        mixture: The local engine can run this teacher together with the student while it generates text.  It can then sample
            tokens from a mixture of both models, and replace student tokens that the teacher ranks low.
        prefix_memory: The teacher has a method `remembering`, which returns a context manager. Inside the context, hidden
            states of a text are stored and reused for texts with the same beginning.
        new_text: The teacher provides distributions for any text. If False, its distributions were stored before the run, for
            the training data, the validation data and its own answers.
        top_k: Number of classes in `TopClasses`; None if it is unknown or if `full_vocabulary` is True.
        sampled: The teacher provides only classes that were sampled from its distributions (`SampledClasses`). Only
            expectations under the teacher can be computed from them, such as the cross entropy.

    Raises:
        ConfigError: a field other than `top_k` is not a bool; `statistics` is True, but `full_vocabulary` is False; `sampled`
            and `full_vocabulary` are both True.

    Example:
        >>> TeacherCapabilities(full_vocabulary=False, top_k=20).top_k
        20
        >>> TeacherCapabilities(full_vocabulary=False, statistics=True)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: statistics = True: needs full_vocabulary; statistics are computed from all logits
    """

    full_vocabulary: bool
    statistics: bool = False
    generates: bool = False
    mixture: bool = False
    prefix_memory: bool = False
    new_text: bool = True
    top_k: int | None = None
    sampled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statistics and not self.full_vocabulary:
            raise ConfigError("statistics = True: needs full_vocabulary; statistics are computed from all logits")
        if self.sampled and self.full_vocabulary:
            raise ConfigError("sampled = True: needs full_vocabulary = False; set only one of the two fields to True")


class Teacher(Protocol):
    """Provides teacher distributions for the predictions that distillation terms use.

    `prepare` is called before `rows`, and `release` at the end of an update.

    Example:
        >>> from redistill.data.collate import collate
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> tools = make_fixture().tools
        >>> batch = collate(items_of([tools.gold.items(0)[0].sequence], "distillation"), pad_id=0)
        >>> tools.teacher.rows(batch)(slice(0, 1)).shape  # 1 row, 24 classes
        torch.Size([1, 24])
    """

    @property
    def capabilities(self) -> TeacherCapabilities:
        """What this teacher supports."""

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Fetch the data that a later call of `rows` needs for these sequences.

        The method does nothing if `rows` needs no such data.
        """

    def rows(self, batch: Batch) -> TeacherTarget:
        """Return the function that computes teacher distributions for the batch's rows.

        A row is the prediction of one token (see `Batch`). The function is called only for the first `batch.num_sampled_rows`
        rows, which distillation terms use.
        """

    def faults(self) -> int | torch.Tensor:
        """Return the number of rows with non-finite teacher logits since the last call.

        A row is the prediction of one token. Only the rows of this process are counted. A teacher that counts on a GPU returns
        an int64 tensor without dimensions, so that the host does not wait for the GPU.
        """

    def release(self) -> None:
        """Free the data that was kept for the current update."""


class TextTeacher(Teacher, Protocol):
    """A teacher that generates text (`TeacherCapabilities.generates`).

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> teacher: TextTeacher = make_fixture().tools.teacher
        >>> request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0))
        >>> len(teacher.generate([request], Sampling()))
        1
    """

    def generate(self, requests: "Sequence[GenerationRequest]", sampling: "Sampling") -> "list[Generation]":
        """Continue every request; results are in the order of the requests.

        Args:
            requests: The texts to continue.
            sampling: The settings of sampling, which all requests share.
        """


class PolicyState(Protocol):
    """The state that a policy keeps between updates.

    Example:
        >>> from redistill.policies import Adaptive, StudentGenerated
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> policy = make_fixture().policy(Adaptive(source=StudentGenerated()))
        >>> policy.observe(2.0)  # before the first update
        >>> policy.observe(2.5)
        >>> policy.metrics()
        {'threshold': 0.1, 'buffered': 0}
    """

    def observe(self, validation_loss: float) -> None:
        """Update the state for a new validation loss, in nats per token.

        The method is called after each validation. The first call passes the loss before the first update.

        Args:
            validation_loss: Mean cross entropy of the validation rows, in nats per token.
        """

    def metrics(self) -> Mapping[str, Json]:
        """Return the values of the state that are logged with each update."""

    def state_dict(self) -> Mapping[str, StateValue]:
        """Return the state that checkpoints contain.

        The method is also called before every update, so that the state can be restored if the update is interrupted. The call
        must therefore be cheap: return references to objects that never change, not copies. The policy must not change a
        returned state later.
        """

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        """Restore a state that `state_dict` returned.

        If the state was read from a checkpoint, its tensors are on the CPU, and its tuples have become lists. Tuples of
        `TokenSequence` remain tuples.
        """


class SequencePolicy(PolicyState, Protocol):
    """Chooses the sequences that the student learns from.

    Example:
        >>> from redistill.policies import Fixed
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> policy: SequencePolicy = make_fixture().policy(Fixed())
        >>> draw = policy.draw(step=0)
        >>> len(draw.items), policy.draw(step=0).items[0].sequence.token_ids == draw.items[0].sequence.token_ids
        (4, True)
    """

    def draw(self, step: int) -> Draw:
        """Return this process's sequences of update `step`, counted from 0.

        The sequences depend only on the seed, the step, the training examples, the weights of the models and the state of the
        policy. The rank of the process and the number of processes determine which of these sequences are returned.
        """


LOWEST_TEMPERATURE = 1e-3
"""Lowest temperature of sampling above 0.  Logits that are divided by a much lower temperature are not finite in float32."""
TEMPERATURES = f"0, which takes the arg max, or >= {LOWEST_TEMPERATURE} and finite"
"""The temperatures of sampling, for error messages."""


def is_temperature(value: float) -> bool:
    """Return whether a value is allowed as a temperature of sampling.

    Args:
        value: The temperature; 0 takes the arg max.

    Example:
        >>> is_temperature(0.0), is_temperature(1e-9), is_temperature(0.7)
        (True, False, True)
    """
    return value == 0 or LOWEST_TEMPERATURE <= value < math.inf


@dataclass(frozen=True, kw_only=True)
class Sampling:
    r"""How tokens are sampled from a model.

    .. math:: y_t \sim (1 - a)\, \tilde q(\cdot \mid y_{<t}) + a\, \tilde p(\cdot \mid y_{<t}), \qquad
        \tilde q \propto q^{1/T} \text{ on the classes that are kept}

    y_t is token t, q is the model, p the teacher, a is `teacher_share` and T is `temperature`. A class is a token id of the
    vocabulary. `top_p`, `top_k` and `no_repeat_ngram` determine which classes are kept. For the teacher, the second formula
    holds with p in place of q. Source: MiniLLM (arXiv 2306.08543), its teacher-mixed sampling.

    Args:
        temperature: >= 0; 0 is greedy decoding.
        top_p: Nucleus sampling keeps the smallest set of most probable classes with at least this mass, in (0, 1]; 1 keeps all.
        top_k: Keeps the k most probable classes, >= 0; 0 keeps all.
        no_repeat_ngram: Length n of n-grams, >= 0. A token is banned if it would repeat an n-gram of the prompt or the
            response; 0 bans none.
        teacher_share: Weight of the teacher in the mixture that tokens are sampled from, in [0, 1]; 0 is the model alone. Bans,
            temperature, top-k and top-p apply to both models before they are mixed.
        teacher_top_k: Replaces a sampled token that is not among the teacher's `teacher_top_k` most probable tokens; 0 replaces
            none. The replacement is sampled from the teacher, and the model continues after it. Bans, temperature, top-k and
            top-p apply to the sampling from both models. Source: SKD (arXiv 2410.11325), its interleaved sampling.

    Example:
        >>> greedy, nucleus = Sampling(temperature=0.0), Sampling(temperature=0.7, top_p=0.9)
        >>> greedy.top_p
        1.0
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 0
    teacher_share: float = 0.0
    teacher_top_k: int = 0

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher affects sampling; if so, the engine runs both models."""
        return self.teacher_share > 0 or self.teacher_top_k > 0


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt to continue.

    Args:
        prompt_ids: The tokens to continue: a prompt, or a prompt with the beginning of a response.
        max_new_tokens: Maximum number of tokens to generate, >= 1.
        seed: Seed of the run or of the evaluation.
        stream: Key of the random stream of this request, such as ("response", step, sample). Seed and key determine the random
            numbers of each token. The text therefore does not depend on the batch or on the number of processes.
        skipped_tokens: Number of tokens at the end of `prompt_ids` that earlier requests with this stream have sampled, >= 0. A
            deterministic engine skips the random numbers of these tokens. The text is then the same as if one request had
            generated all of it.

    Example:
        >>> GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0)).max_new_tokens
        3
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    stream: tuple[int | str, ...]
    skipped_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A generated continuation.

    Args:
        token_ids: The generated tokens, including a generated end token.
        finished: True if the last token is an end token.
        logprobs: Log-probability in nats of each token under the model. Temperature, top-k, top-p and the ban of repeated
            n-grams have no effect on it. None if the engine does not report log-probabilities.

    Example:
        >>> Generation(token_ids=(7, 2), finished=True).logprobs is None
        True
    """

    token_ids: tuple[int, ...]
    finished: bool
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class EngineCapabilities(_Flags):
    """What a generation engine supports.

    The requirements of a recipe are compared with these fields before any model is loaded.

    Args:
        mixture: Can sample tokens from a mixture of student and teacher (`Sampling.teacher_share`).
        no_repeat_ngram: Can ban repeated n-grams (`Sampling.no_repeat_ngram`).
        prefix_memory: Has a method `remembering`, which returns a context manager. Inside the context, hidden states of a text
            are stored and reused for texts with the same beginning.
        logprobs: Reports the log-probability of each token (`Generation.logprobs`).
        deterministic: Generates the same text again for the same request and the same weights.
        samples_student: Samples text from the student; False for an engine that returns fixed text.
        replacement: Can replace sampled tokens that the teacher ranks low by tokens of the teacher (`Sampling.teacher_top_k`).

    Raises:
        ConfigError: a field is not a bool.

    Example:
        >>> EngineCapabilities(deterministic=True).mixture
        False
        >>> EngineCapabilities(logprobs="no")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: EngineCapabilities: logprobs = 'no': must be True or False
    """

    mixture: bool = False
    no_repeat_ngram: bool = False
    prefix_memory: bool = False
    logprobs: bool = False
    deterministic: bool = False
    samples_student: bool = True
    replacement: bool = False


class Engine(Protocol):
    """Generates the student's text for training.

    Example:
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> engine: Engine = make_fixture().tools.engine
        >>> request = GenerationRequest(prompt_ids=(5, 6), max_new_tokens=3, seed=1, stream=("response", 0, 0))
        >>> engine.generate([request], Sampling()) == engine.generate([request], Sampling())
        True
    """

    @property
    def capabilities(self) -> EngineCapabilities:
        """What this engine supports."""

    def sync(self, student: nn.Module, step: int) -> None:
        """Update the engine to the weights of the student.

        The method is called once per update, before the policy draws sequences.

        Args:
            student: The language model, with its full parameters (not sharded).
            step: Number of updates that the weights have received.
        """

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Continue every request; results are in the order of the requests.

        Args:
            requests: The texts to continue.
            sampling: The settings of sampling, which all requests share.

        The text may depend on the division of the requests into batches, but only through rounding errors.
        """


@dataclass(frozen=True, kw_only=True)
class TextTools:
    """The objects from which engines and teachers outside this package are built.

    Args:
        tokenizer: Tokenizer of the student.
        vocabulary: Size of the student's vocabulary; only token ids below it may be sampled.
        end_ids: Tokens that end a response.
        pad_id: Padding token.

    Example:
        >>> from redistill.toy.world import toy_tokenizer
        >>> tokenizer = toy_tokenizer(258)
        >>> tools = TextTools(tokenizer=tokenizer, vocabulary=258, end_ids=(0,), pad_id=1)
        >>> tools.tokenizer.decode(tools.end_ids)
        '<|endoftext|>'
    """

    tokenizer: Tokenizer
    vocabulary: int
    end_ids: tuple[int, ...]
    pad_id: int


@dataclass(frozen=True, kw_only=True)
class EngineTools(TextTools):
    """The objects from which an engine is built; see also `TextTools`.

    Args:
        student: The language model of the student.
        teacher: The language model of the teacher, for sampling from a mixture; None if the teacher is not a model of this
            process.
        batch_size: Number of sequences per batch; it is lowered when memory runs out.
        autocast: Function that returns the autocast context in which models run.
        note: Function that prints one line to the user.

    Example:
        >>> from contextlib import nullcontext
        >>> from redistill.generation.local import LocalEngineConfig
        >>> from redistill.models.initialise import fresh_model
        >>> from redistill.processes.memory import Halving
        >>> from redistill.toy.world import toy_tokenizer
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=258, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> text = dict(tokenizer=toy_tokenizer(258), vocabulary=258, end_ids=(0,), pad_id=1)
        >>> tools = EngineTools(student=model, teacher=None, batch_size=Halving("batch_size", 8), autocast=nullcontext, **text)
        >>> LocalEngineConfig().build(tools).capabilities.deterministic
        True
    """

    student: nn.Module
    teacher: nn.Module | None
    batch_size: "BatchSize"
    autocast: Autocast
    note: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, kw_only=True)
class TeacherTools(TextTools):
    """The objects from which a teacher outside this package is built.

    `TextTools` describes the other arguments.

    Args:
        device: Device of the batches; the teacher distributions must be on the same device.

    Example:
        >>> from redistill.toy.world import toy_tokenizer
        >>> device = torch.device("cpu")
        >>> tools = TeacherTools(tokenizer=toy_tokenizer(258), vocabulary=258, end_ids=(0,), pad_id=1, device=device)
        >>> tools.device
        device(type='cpu')
    """

    device: torch.device


class BatchSize(Protocol):
    """A batch size that is lowered when memory runs out.

    Example:
        >>> from redistill.processes.memory import Halving
        >>> size: BatchSize = Halving("training.generation_batch_size", 64)
        >>> size.repeat(lambda num_sequences: [Generation(token_ids=(2,), finished=True)] * num_sequences)[0].finished
        True
    """

    def repeat(self, work: Callable[[int], list[Generation]]) -> list[Generation]:
        """Return `work(size)`; if memory runs out, retry with a smaller size.

        `work` is a function that receives the number of sequences per batch.
        """


# --- processes and requirements -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processes:
    """Rank and number of processes of a distributed job.

    Args:
        rank: Rank of this process, in [0, world).
        world: Number of processes, >= 1.
        gather: Collective operation that concatenates the lists of all processes in the order of their ranks.

    Example:
        >>> Processes(rank=1, world=2).is_main, ONE_PROCESS.gather([3])
        (False, [3])
    """

    rank: int = 0
    world: int = 1
    gather: Gather = lambda values: values

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and prints."""
        return self.rank == 0


ONE_PROCESS = Processes()
"""The only process of a job that has one process."""


@dataclass(frozen=True, kw_only=True)
class Needs(_Flags):
    """What a policy or an objective requires of teacher and engine.

    The requirements are checked when a recipe is read.

    Args:
        teacher: Requires a teacher.
        full_vocabulary: Requires teacher logits over the whole vocabulary.
        probabilities: Requires the teacher's probabilities, of all classes (token ids) or of the most probable ones. Classes
            that were sampled from its distributions are not sufficient.
        statistics: Requires values that the teacher computes for each position of newly generated text. These are divergences
            from the student, sampled tokens, or log-probabilities of given tokens.
        teacher_text: Requires text that the teacher generates.
        mixture: Requires tokens sampled from a mixture of student and teacher.
        samples_student: Requires text sampled from the student, because the log-probabilities of this text under the student
            are used.
        gold: Requires gold answers, which are the answers in the data. If neither policy nor objective requires them, the
            training data may consist of prompts alone.
        replacement: Requires an engine that, during generation, replaces student tokens that the teacher ranks low.

    Raises:
        ConfigError: a field is not a bool.

    Example:
        >>> both = Needs(teacher=True) | Needs(mixture=True)
        >>> both.teacher, both.mixture, both.statistics
        (True, True, False)
    """

    teacher: bool = False
    full_vocabulary: bool = False
    probabilities: bool = False
    statistics: bool = False
    teacher_text: bool = False
    mixture: bool = False
    samples_student: bool = False
    gold: bool = False
    replacement: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """Return the union of the requirements `self` and `other`."""
        return Needs(**{name: needed or getattr(other, name) for name, needed in vars(self).items()})
