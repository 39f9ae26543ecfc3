"""Types that packages share: sequences, batches, capabilities, and the protocols of teachers and engines.

Nothing here computes a loss, loads a model, or reads a file.  docs/architecture.md describes the path of a sequence through
them.

Longer than 400 lines: a reader finds every type that crosses a package's border in one file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import nn

Origin = Literal["dataset", "teacher", "student", "mixture", "revised", "replay", "corpus"]


# --- data ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """A prompt of the instruction kind, to be put into a template."""

    instruction: str
    input: str = ""


@dataclass(frozen=True)
class RawPrompt:
    """A prompt that is used to the letter."""

    text: str


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns before the last answer; the answer itself is the record's reference."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of data: a prompt and the answers that count as right (none where the row is a prompt alone)."""

    record_id: str
    prompt: Instruction | RawPrompt | Conversation
    references: tuple[str, ...]


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


Role = Literal["sft", "distillation"]
"""Terms that read a sequence: cross entropy; or the divergence, the span loss and the policy gradient."""


@dataclass(frozen=True)
class DrawItem:
    """A sequence and the terms that read it.

    A policy gives gold answers the role "sft" and sampled answers the role "distillation"; a gold answer that is also the
    sampled one has both and is read once.  The objective then keeps the roles that its terms have.
    """

    sequence: TokenSequence
    roles: frozenset[Role]


def items_of(sequences: Iterable[TokenSequence], *roles: Role) -> tuple[DrawItem, ...]:
    """Each sequence as an item with the same roles."""
    return tuple(DrawItem(sequence, frozenset(roles)) for sequence in sequences)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """This process's part of one update.

    Args:
        items: The sequences of the task, those with distillation terms first.
        corpus: The sequences of the pre-training term.
    """

    items: tuple[DrawItem, ...]
    corpus: tuple[TokenSequence, ...] = ()

    def with_role(self, role: Role) -> tuple[TokenSequence, ...]:
        """The sequences that have a role, in order."""
        return tuple(item.sequence for item in self.items if role in item.roles)


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A right-padded micro-batch and its supervised rows, sequences with distillation terms first.

    More than 12 fields: it is a container of tensors that are made and moved to the device together.

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
    """What a teacher can do; recipes are checked against it before any model is loaded.

    Args:
        full_vocabulary: Its targets are logits of the whole shared vocabulary; otherwise they are `TopClasses`.
        statistics: It gives statistics of freshly generated text: divergences, samples, log-probabilities of given tokens.
        generates: It generates text; the teacher then is a `TextTeacher`.
        mixture: The local engine can sample tokens from a mixture of the student and this teacher.
        prefix_memory: It has `remembering`, which reuses what it has read of a step's drafts.
        top_k: How many classes it lists at a position; None where that does not apply.
    """

    full_vocabulary: bool
    statistics: bool = False
    generates: bool = False
    mixture: bool = False
    prefix_memory: bool = False
    top_k: int | None = None


class Teacher(Protocol):
    """A source of targets for the rows of a batch that carry distillation terms."""

    @property
    def capabilities(self) -> TeacherCapabilities: ...

    def prepare(self, sequences: Sequence[TokenSequence]) -> None:
        """Fetch or look up what `rows` will need for these sequences; may do nothing."""
        ...

    def rows(self, batch: Batch) -> TeacherTarget:
        """The target of the batch's first `num_sampled_rows` rows."""
        ...

    def faults(self) -> int:
        """How many rows were not finite since the last call, in this process."""
        ...

    def release(self) -> None:
        """Drop what was kept for the update that has just been made."""
        ...


class TextTeacher(Teacher, Protocol):
    """A teacher that generates text (`TeacherCapabilities.generates`)."""

    def generate(self, requests: "Sequence[GenerationRequest]", sampling: "Sampling") -> "list[Generation]": ...


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
        no_repeat_ngram: An n-gram of this length that occurs in prompt + response already is not repeated; 0 allows all.
        teacher_share: Fraction of the teacher in the mixture that tokens are sampled from, in [0, 1]; 0 is the model alone.
            Bans, temperature, top-k and top-p apply to both models before they are mixed.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    no_repeat_ngram: int = 0
    teacher_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One sequence to continue.

    Args:
        prompt_ids: The tokens to continue; for a revised text they include the corrected prefix.
        max_new_tokens: Length limit of the continuation.
        seed: Of the run, or of the evaluation.
        stream: Key of its randomness below the seed, such as ("response", step, sample).  Token n uses the n-th few numbers
            of this stream, so that a text depends on neither its batch nor the number of processes.
    """

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    seed: int
    stream: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A continuation.

    Args:
        token_ids: Its tokens, the end token included where one was generated.
        finished: Whether it ends with an end token.
        logprobs: Natural log-probability of each token under the raw model, whatever the temperature; None where the engine
            does not report them (`EngineCapabilities.logprobs`).
    """

    token_ids: tuple[int, ...]
    finished: bool
    logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class EngineCapabilities:
    """What a generation engine can do; recipes are checked against it before any model is loaded.

    Args:
        mixture: Samples tokens from a mixture of student and teacher (`Sampling.teacher_share`).
        no_repeat_ngram: Bans repeated n-grams (`Sampling.no_repeat_ngram`).
        prefix_memory: Has `remembering`, which reuses what the student has read or generated within a step.
        logprobs: Reports the log-probability of each token (`Generation.logprobs`).
        deterministic: The same request with the same weights gives the same text.
        samples_student: Its text is sampled from the student; False for an engine that returns fixed text.
    """

    mixture: bool = False
    no_repeat_ngram: bool = False
    prefix_memory: bool = False
    logprobs: bool = False
    deterministic: bool = False
    samples_student: bool = True


class Engine(Protocol):
    """Generates text of the student for training."""

    @property
    def capabilities(self) -> EngineCapabilities: ...

    def sync(self, student: nn.Module, step: int) -> None:
        """Take over the student's weights; called once an update, before its draw.

        Args:
            student: The language model, not sharded.
            step: Number of updates behind the weights.
        """
        ...

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        """Continue every request, in the order of the requests; how they are batched changes rounding alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class EngineTools:
    """What an engine is built from.

    Args:
        student: The language model.
        teacher: The local teacher's language model, for mixtures; None where there is none.
        tokenizer: Of the student.
        vocabulary: Number of leading classes that may be sampled.
        end_ids: Tokens that end a response.
        pad_id: Fills short rows.
        batch_size: Sequences at once; an engine that runs out of memory lowers it.
        autocast: Makes the context that models run in.
    """

    student: nn.Module
    teacher: nn.Module | None
    tokenizer: Any
    vocabulary: int
    end_ids: tuple[int, ...]
    pad_id: int
    batch_size: "BatchSize"
    autocast: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class TeacherTools:
    """What a teacher that the package does not load itself is built from.

    Args:
        tokenizer: Of the student.
        vocabulary: Number of classes of the student's vocabulary.
        end_ids: Tokens that end a response.
        pad_id: Fills short rows.
        device: Where batches are, and where targets must be.
    """

    tokenizer: Any
    vocabulary: int
    end_ids: tuple[int, ...]
    pad_id: int
    device: torch.device


class BatchSize(Protocol):
    """A batch size that is lowered where memory runs out."""

    def repeat(self, work: Callable[[int], list[Generation]]) -> list[Generation]:
        """What `work` returns, given a size that fits into memory; it is retried with smaller ones."""
        ...


# --- processes and requirements -----------------------------------------------------------------------------------------


def alone(values: list[Any]) -> list[Any]:
    """`Processes.gather` of a single process."""
    return values


@dataclass(frozen=True)
class Processes:
    """This process among those of a job.

    Args:
        rank: Its number, from 0.
        world: How many there are.
        gather: Joins the lists of all processes in the order of their ranks; every process must call it.
    """

    rank: int = 0
    world: int = 1
    gather: Callable[[list[Any]], list[Any]] = alone

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


ONE_PROCESS = Processes()


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a policy or an objective requires of teacher and engine, checked when a recipe is read.

    Args:
        teacher: A teacher at all.
        full_vocabulary: Its logits of the whole vocabulary.
        statistics: Its statistics of freshly generated text.
        teacher_text: Text that it generates.
        mixture: Tokens sampled from a mixture of student and teacher.
        samples_student: Text that is sampled from the student, since its probability counts.
    """

    teacher: bool = False
    full_vocabulary: bool = False
    statistics: bool = False
    teacher_text: bool = False
    mixture: bool = False
    samples_student: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """What either of two parts requires."""
        return Needs(**{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)})
