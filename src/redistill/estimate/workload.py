"""What one update of a run has to do, in sequences and tokens: who writes how much, and the micro-batches that are learned."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from redistill import randomness
from redistill.config.run import Run
from redistill.contracts import Batch, Draw, DrawItem, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.data.grouping import grouped, read_cost
from redistill.data.reader import read_records
from redistill.data.tokenize import tokenize_training
from redistill.errors import RedistillError
from redistill.models.load import load_tokenizer
from redistill.policies import Adaptive, Buffered, Fixed, Mixed, Revised, Rollouts, TeacherGenerated, TeacherMixed
from redistill.training.objective import corpus_items

SAMPLE_ROWS = 256
"""So many rows of the training data tell its lengths."""
SAMPLE_DRAWS = 8
"""So many draws tell the mean update and the largest micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What a policy has written anew in an update.

    Args:
        share: Of the update's sequences, >= 0; a mean over updates where they differ.
        most: The largest share that one update may have.
        student, teacher: Who writes; both where it is their mixture.
        rounds: How often what was written is revised.
        is_added: Whether revised sequences stand beside their drafts.
        is_scored: Whether both models read what was written before it is learned from.
    """

    share: float = 1.0
    most: float = 1.0
    student: bool = False
    teacher: bool = False
    rounds: int = 0
    is_added: bool = False
    is_scored: bool = False

    @property
    def writes(self) -> bool:
        return self.student or self.teacher

    def of(self, batch_size: int) -> int:
        """How many sequences the largest update has written."""
        return round(self.most * batch_size) if self.writes else 0


def writing(policy: Any, batch_size: int) -> Writing:
    """What `policy` has written in an update of so many sequences; one from outside writes with the student, if at all."""
    match policy:
        case Fixed():
            return Writing()
        case TeacherGenerated():
            return Writing(teacher=True)
        case TeacherMixed():
            return Writing(student=True, teacher=policy.teacher_share > 0)
        case Mixed():
            inner = writing(policy.source, batch_size)
            share = inner.share * policy.student_fraction
            return replace(inner, share=share, most=max(share, inner.most if policy.coin == "step" else share))
        case Adaptive():
            inner = writing(policy.source, batch_size)
            return replace(inner, share=inner.share / 2)  # the coin and the buffer leave about half, once it writes at all
        case Revised():
            inner = writing(policy.source, batch_size)
            return replace(inner, rounds=inner.rounds + policy.rounds, is_added=policy.mode == "append", is_scored=True)
        case Rollouts():
            inner = writing(policy.source, batch_size)
            most = max(1.0, policy.num_rollouts / batch_size)
            return replace(inner, share=inner.share / policy.inner_epochs, most=most, is_scored=True)
        case Buffered():
            return writing(policy.source, batch_size)
    return Writing(student=policy.sampling is not None)


@dataclass(frozen=True)
class Micro:
    """A micro-batch: its sequences and the terms that read them."""

    items: tuple[DrawItem, ...]
    is_corpus: bool = False

    @property
    def sequences(self) -> list[TokenSequence]:
        """Each once."""
        return [item.sequence for item in self.items]

    @property
    def sampled(self) -> list[TokenSequence]:
        """Those that the teacher reads."""
        return [item.sequence for item in self.items if "distillation" in item.roles]

    @property
    def padded(self) -> int:
        """Tokens that the student reads, padding and all."""
        return len(self.sequences) * max(len(sequence.token_ids) for sequence in self.sequences)

    @property
    def rows(self) -> int:
        """Targets, each once."""
        return sum(sequence.num_targets for sequence in self.sequences)

    @property
    def sampled_padded(self) -> int:
        """Tokens that the teacher reads, as they are padded."""
        return len(self.sampled) * max((len(sequence.token_ids) for sequence in self.sequences), default=0)

    def collated(self, run: Run, device: torch.device) -> Batch:
        """As the loop has it."""
        objective = run.resolved_method.objective
        spans = objective.span if objective.uses_spans and not self.is_corpus else None
        role: Any = "pretraining" if self.is_corpus else "task"
        return collate(self.items, pad_id=0, device=device, span_config=spans, role=role)


@dataclass(frozen=True)
class Workload:
    """The updates of a run, by some that stand for all.

    Args:
        writing: What is written.
        batch_size: Sequences of an update on one process.
        start: What one more forward costs, in tokens.
        prompt: Mean length of a prompt, in tokens.
        response: The longest response; what is written is taken to be as long.
        updates: Each one's micro-batches.
        num_examples: Of the training set; None where its data was not read.
        notes: What was assumed.
    """

    writing: Writing
    batch_size: int
    start: int
    prompt: int
    response: int
    updates: tuple[tuple[Micro, ...], ...]
    num_examples: int | None
    notes: tuple[str, ...]

    @property
    def largest(self) -> Micro:
        """The micro-batch that holds most activations."""
        return max((micro for micros in self.updates for micro in micros), key=lambda micro: micro.padded)

    def mean(self, count: str) -> float:
        """The mean over updates of a count of `Micro`, all micro-batches together."""
        return sum(getattr(micro, count) for micros in self.updates for micro in micros) / len(self.updates)

    @property
    def micro_batches(self) -> float:
        return sum(map(len, self.updates)) / len(self.updates)


def workload(run: Run, device: torch.device) -> Workload:
    """What an update of `run` has to do on one process that works alone.

    Lengths are those of the first rows of the training data where that lies in files and the tokenizer can be had, else the
    recipe's limits; a model is taken to write as many tokens as it may.
    """
    objective, tokens, size = run.resolved_method.objective, run.data.tokens, run.training.batch_size
    lengths, num_examples, notes = _gold_lengths(run)
    written = writing(run.resolved_method.policy, size)
    updates = []
    for step in range(SAMPLE_DRAWS):
        chosen = randomness.generator(run.seed, "estimate", step).integers(len(lengths), size=size).tolist()
        gold = [_sequence(*lengths[place]) for place in chosen]
        drafts = [_sequence(lengths[place][0], tokens.response_tokens) for place in chosen]
        num_drafts = min(size, round(written.share * size)) if written.writes else 0
        if isinstance(run.resolved_method.policy, Rollouts):
            num_drafts = size  # a pool is read several times
        items = [
            *items_of(drafts[:num_drafts], "distillation"),
            *items_of(gold[num_drafts:], "sft", "distillation"),
            *items_of(drafts[:num_drafts] if written.is_added else (), "distillation"),
            *items_of(gold[:num_drafts], "sft"),
        ]
        block = _sequence(1, tokens.prompt_tokens + tokens.response_tokens - 1)
        corpus = [replace(block) for _ in range(size)] if run.data.corpus else []
        draw = objective.select(Draw(items=tuple(items), corpus=tuple(corpus)))
        updates.append(tuple(_cut(run, draw, device)))
    prompt = round(sum(prompt for prompt, _ in lengths) / len(lengths))
    start = read_cost(device).overhead_tokens
    return Workload(written, size, start, prompt, tokens.response_tokens, tuple(updates), num_examples, notes)


def _cut(run: Run, draw: Draw, device: torch.device) -> list[Micro]:
    """The draw's micro-batches, as `training.cut` makes them."""
    pretraining, size, cost = run.resolved_method.objective.pretraining, run.training.micro_batch_size, read_cost(device)
    corpus = () if pretraining is None else corpus_items(draw, pretraining)
    return [
        *(Micro(tuple(items), True) for items in grouped(corpus, size, cost)),
        *(Micro(tuple(items)) for items in grouped(draw.items, size, cost)),
    ]


def _sequence(prompt: int, response: int) -> TokenSequence:
    """A sequence of these lengths, of no particular tokens."""
    supervised = (False,) * prompt + (True,) * response
    return TokenSequence(sample=0, token_ids=(1,) * len(supervised), supervised=supervised, origin="dataset")


def _gold_lengths(run: Run) -> tuple[Sequence[tuple[int, int]], int | None, tuple[str, ...]]:
    """Prompt and response lengths of gold answers, how many examples there are, and what was assumed."""
    tokens = run.data.tokens
    limits = [(tokens.prompt_tokens, tokens.response_tokens)]
    why = "the training data is not in files here"
    if all(Path(source).exists() for source in run.data.train):
        student = run.teacher if run.student.model == "teacher" else run.student
        assert student is not None
        try:
            tokenizer = load_tokenizer(student)
            reports = [read_records(source, max_bad_rows=run.data.max_bad_rows) for source in run.data.train]
            records = [record for found, _ in reports for record in found]
            examples, _ = tokenize_training(records[:SAMPLE_ROWS], tokenizer, tokens, run.seed)
        except RedistillError as error:
            why = str(error)
        else:
            lengths = [(len(e.prompt_ids), max(1, sum(e.supervised))) for e in examples]
            held_out = run.data.validation_rows if run.data.validation is None else 0
            count = min(max(1, len(records) - held_out), run.data.max_train_rows or len(records))
            return lengths, count, (f"lengths are those of {len(lengths)} rows of the training data",)
    return limits, None, (f"lengths are the recipe's limits: {why}",)
