"""What the rooms of the house say to one another: records, sequences, batches, and the protocols between the layers.

Nothing here computes a loss, loads a model, or reads a file.  docs/architecture.md tells how a sequence travels through these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch

from redistill.records import Record

Origin = Literal["dataset", "teacher", "student", "mixture", "revised", "replay", "corpus"]


# --- data ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Example:
    """A record as token ids.

    `prompt_ids` is what a model continues when it writes an answer.  `token_ids` is a whole gold sequence - prompt, answer, end
    token (left out where the answer was cut at its length limit) - and `supervised` marks, by position, the tokens of it that
    are targets.  The targets need not be one run: with every assistant turn supervised there is a run for each.
    """

    sample: int
    record: Record
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What a policy gradient needs to know of each target of a sequence, from when it was written; see policy_gradient.py.

    Args:
        old_logprobs: log q of the token, by the student that the sequence was scored with.
        advantages: How much better than the others the token turned out.
        importances: Weight for its having been drawn from a mixture with the teacher, not from the student.
    """

    old_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    importances: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSequence:
    """One sequence that the student learns from.

    Args:
        sample: Number of the training example whose prompt it answers; part of the key of everything random about it.
        token_ids: Prompt and response, unpadded; an emitted end token is there, and a target.
        supervised: For each token, whether it is a target.  By position: pad = EOS tokenizers make ids useless for this.
        origin: Where the response came from.
        spans: Half-open ranges over the sequence's *targets* (its first target is 0), for the span loss.
        rollout: A number a target and field, for the policy gradient; None where no policy gradient is taken.
    """

    sample: int
    token_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    origin: Origin
    spans: tuple[tuple[int, int], ...] = ()
    rollout: Rollout | None = None

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.supervised) > 1, "a target needs a token before it"
        assert not self.supervised[0] and any(self.supervised), "the first token has nothing that predicts it"

    @property
    def num_targets(self) -> int:
        return sum(self.supervised)

    @property
    def response_start(self) -> int:
        """Position of the first target."""
        return self.supervised.index(True)

    @property
    def response_ids(self) -> tuple[int, ...]:
        """All tokens from the first target on."""
        return self.token_ids[self.response_start :]

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.token_ids[: self.response_start]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """This process's share of one update.

    `gold` carries the SFT term, `sampled` the distillation terms and the policy gradient, `corpus` the pre-training term.  A
    sequence may be in both of the first two, as the same object; it is then read once.
    """

    gold: tuple[TokenSequence, ...]
    sampled: tuple[TokenSequence, ...]
    corpus: tuple[TokenSequence, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A right-padded micro-batch and its supervised rows, sequences with distillation terms first.

    Sequences 0 .. num_sampled-1 carry distillation terms, and so do rows 0 .. num_sampled_rows-1, in sequence order: the
    teacher reads only those.  Row n is the prediction of `target_N[n]`, made by the hidden state at flat place `position_N[n]`.

    Args:
        input_ids_BT, attention_mask_BT: int64.
        position_N: Index into the flattened [B*T] hidden states.
        target_N: The token that row n predicts.
        sequence_N: Which of the B sequences row n belongs to.
        sft_N: True where the row counts in the SFT term.
        pair_weight_N: float32; Eq. 10's weight of the pair of rows (n, n + 1), 0 where they are no pair.
        num_sampled, num_sampled_rows: How many sequences and rows, from the front, carry distillation terms.
        num_span_samples: How many sampled sequences have a span that counts in Eq. 10.
        role: Which terms read it: those of the task, or the pre-training term.
        sequence_weight_N: float32; 1 / the number of targets of row n's sequence, for means over sequences.
        old_logprob_N, advantage_N, importance_N: float32, of the sampled rows; zeros where there is no roll-out.
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
    num_span_samples: int
    role: Literal["task", "pretraining"]
    sequence_weight_N: torch.Tensor
    old_logprob_N: torch.Tensor
    advantage_N: torch.Tensor
    importance_N: torch.Tensor
    samples: tuple[int, ...]
    origins: tuple[Origin, ...]


# --- protocols ----------------------------------------------------------------------------------------------------------


class Divergence(Protocol):
    """How far the student's rows are from the teacher's: a frozen dataclass whose fields are its hyper-parameters.

    Call: (logq_NV student, logp_NV teacher) -> divergence_N in nats, unreduced, 0 exactly where q = p, float32 (float64 for
    float64 inputs), with gradient through q only.
    """

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor: ...


class TopClasses(NamedTuple):
    """A teacher's word where it lists K classes a row: their log-probabilities, and that of all other classes together."""

    class_NK: torch.Tensor
    logp_NK: torch.Tensor
    log_rest_N: torch.Tensor


class TeacherTarget(Protocol):
    """The teacher's word on the rows of one batch, handed out slice by slice so that no [N, V] tensor exists."""

    def __call__(self, rows: slice) -> torch.Tensor | TopClasses:
        """float32 logits_nV of the rows in `rows`, without gradient, for the reader to normalise; or the classes it lists.

        Log-probabilities are logits too.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class TeacherCapabilities:
    """What a teacher can tell: the whole distribution, or `top_k` classes and a tail."""

    full_vocabulary: bool
    top_k: int | None = None


class Teacher(Protocol):
    """Log-probabilities of a batch's sampled rows, please."""

    capabilities: TeacherCapabilities

    def rows(self, batch: Batch) -> TeacherTarget: ...


class SequencePolicy(Protocol):
    """Which sequences the student learns from.

    `draw(step)` returns this process's share of the global batch and is a function of (seed, step, sample) and the policy's
    state alone; `observe` is told each validation loss, the one before training first; the state goes into checkpoints.
    """

    def draw(self, step: int) -> Draw: ...

    def observe(self, validation_loss: float) -> None: ...

    def metrics(self) -> Mapping[str, Any]:
        """What of its state is worth a place in the log."""
        ...

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from the student or the teacher.

    Args:
        temperature: >= 0; 0 takes the arg max.
        top_p: Smallest set of classes whose mass reaches this, in (0, 1]; 1 keeps all.
        top_k: The k most probable classes; 0 keeps all.
        no_repeat_ngram: An n-gram of this length that stands in prompt + response already is not repeated; 0 allows all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 0


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One sequence to continue.

    Args:
        prompt_ids: What stands already; for a tail this holds the corrected prefix too.
        max_new_tokens: Length budget of the continuation.
        stream: Key of its randomness below the seed, such as ("response", step, sample); token n has its n-th few numbers.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    stream: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation: its tokens, the end token included where one was written (`finished`)."""

    token_ids: tuple[int, ...]
    finished: bool


class Generate(Protocol):
    """Continue every request; the answers come in the order of the requests, and how they are batched only rounds them."""

    def __call__(self, requests: list[GenerationRequest], sampling: Sampling) -> list[Generation]: ...


class GenerateMixture(Protocol):
    """As `Generate`, with each token drawn from (1 - teacher_share) q + teacher_share p, q the student and p the teacher."""

    def __call__(self, requests: list[GenerationRequest], sampling: Sampling, teacher_share: float) -> list[Generation]: ...
