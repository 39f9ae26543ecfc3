"""Bytes of a run by part, and what stands at once while a model writes, the student learns, or is validated."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from redistill.config.run import Run
from redistill.contracts import Sampling
from redistill.estimate.costs import Costs, head_bytes
from redistill.estimate.slivers import Blueprint, Role
from redistill.estimate.workload import Workload
from redistill.generation.kv import PIECE_TOKENS
from redistill.generation.prefix import MEMORY_BYTES
from redistill.training.metrics import peak_bytes
from redistill.vocab_pass import chunk_budget, compiles
from redistill.vocab_pass.statistics import LIVE_TENSORS
from redistill.vocab_pass.walk import BLOCK_TENSORS, COMPILED_TENSORS, TILE_TENSORS, cut_rows

DRAWN_TENSORS = 3
"""Of [sequences, vocabulary] while a token is drawn: logits, with a temperature their quotient, and masses."""
SORTED_TENSORS = 9
"""The same where top-p sorts them."""


HEAP_GAPS = 0.12
"""Of what a phase holds on a CPU, what the C library keeps of freed memory beside it; between 0.09 and 0.22 in the runs of
benchmarks/estimate.py."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process.

    Args:
        parts: The most that each part takes, whenever that is.
        phases: What stands at once in each phase, gaps between the parts counted in on a CPU.
    """

    parts: Mapping[str, int]
    phases: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        return max(self.phases.values())


@dataclass(frozen=True)
class Sizes:
    """All that memory is told from."""

    run: Run
    prints: Mapping[Role, Blueprint]
    costs: Mapping[Role, Costs]
    work: Workload
    device: torch.device
    clip_network: int
    process: int

    @property
    def classes(self) -> int:
        return min(blueprint.num_classes for blueprint in self.prints.values())

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        longest = (len(s.token_ids) for micros in self.work.updates for micro in micros for s in micro.sequences)
        return max(*longest, self.work.prompt + self.work.response)

    def of(self, name: str, role: Role = "student") -> int:
        """A cost of a model that may not be there."""
        return round(self.costs[role][name]) if role in self.costs else 0

    @property
    def weights(self) -> int:
        return self.of("weights") + self.of("weights", "teacher") + self.clip_network

    @property
    def gradients(self) -> int:
        return self.of("gradients") + self.clip_network

    @property
    def activations(self) -> int:
        """What is kept of the largest micro-batch."""
        if "checkpointed" in self.costs["student"].found:
            return self.of("checkpointed") + round(self.costs["student"].layer("activations"))
        return self.of("activations")

    def teacher_head(self) -> int:
        """A teacher in bfloat16 has its head in float32 on a CPU, where products of the two cannot be mixed."""
        teacher = self.prints.get("teacher")
        is_copied = teacher is not None and teacher.dtype != torch.float32 and self.device.type == "cpu"
        return head_bytes(teacher) if teacher is not None and is_copied else 0

    @property
    def budget(self) -> int:
        """Of tensors of [rows, vocabulary]."""
        return chunk_budget(head_bytes(self.prints["student"]))

    def walk(self) -> int:
        """The vocabulary pass over the largest micro-batch; see vocab_pass/walk.py."""
        rows, row_bytes = max(m.rows for micros in self.work.updates for m in micros), self.classes * 4
        compiled = compiles(self.run.training.compile, self.classes, self.device)
        most, live = cut_rows(self.budget, row_bytes, compiled), COMPILED_TENSORS if compiled else TILE_TENSORS
        return (BLOCK_TENSORS * min(rows, most.block) + live * min(rows, most.tile)) * row_bytes + self.teacher_head()

    def statistics(self, sequences: int) -> int:
        """The statistics of so many sequences' rows."""
        rows = sequences * self.work.response
        return min(self.budget, rows * LIVE_TENSORS * self.classes * 4) + self.teacher_head()

    def drawn(self, sampling: Sampling) -> int:
        """What drawing a token takes, for each sequence."""
        return (SORTED_TENSORS if sampling.top_p < 1 else DRAWN_TENSORS) * self.classes * 4

    def with_gaps(self, size: int) -> int:
        """What the system gives to a process whose tensors take `size`."""
        return self.process + round(size * (1 + HEAP_GAPS if self.device.type == "cpu" else 1))

    def keys_and_values(self, sequences: int, roles: tuple[Role, ...]) -> int:
        columns = -(-self.longest // PIECE_TOKENS) * PIECE_TOKENS
        return sum(sequences * columns * self.of("kv", role) for role in roles)

    def packed(self, roles: tuple[Role, ...]) -> int:
        """Copies of weights that a model which writes on a CPU multiplies by."""
        if self.device.type != "cpu":
            return 0
        return sum(self.of("packed", role) + head_bytes(self.prints[role]) for role in roles)

    def reading(self, tokens: int) -> int:
        """What a forward without gradient holds at once, about: a layer's activations."""
        return round(self.costs["student"].layer("activations") * tokens / self.work.largest.padded)

    def remembered(self, role: Role, texts: int) -> int:
        """Prefixes that need not be read again."""
        if not self.work.writing.rounds or role not in self.prints:
            return 0
        blueprint = self.prints[role]
        width = blueprint.config.get_text_config().hidden_size * blueprint.dtype.itemsize
        return min(MEMORY_BYTES, texts * self.longest * (self.of("kv", role) + width))


def memory(sizes: Sizes) -> Memory:
    """The parts and the phases of a run's memory on one process."""
    run, work = sizes.run, sizes.work
    size = run.training.batch_size
    drafts = work.writing.of(size)
    at_once = min(drafts, run.training.generation_batch_size)
    answers = min(run.evaluation.batch_size, run.data.validation_rows)
    writes: Mapping[Role, bool] = {"student": work.writing.student, "teacher": work.writing.teacher}
    writers = tuple(role for role in writes if writes[role])
    standing = sizes.weights + 2 * sizes.gradients
    drafted = sizes.drawn(run.resolved_method.policy.sampling or Sampling())
    answered = sizes.drawn(run.evaluation.sampling)
    parts = {
        "process": sizes.process,
        "weights": sizes.weights,
        "gradients": sizes.gradients,
        "optimiser": 2 * sizes.gradients,
        "activations": sizes.activations,
        "vocabulary pass": sizes.walk(),
        "packed weights": max(sizes.packed(writers), sizes.packed(("student",))),
        "KV cache": max(sizes.keys_and_values(at_once, writers), sizes.keys_and_values(answers, ("student",))),
        "remembered prefixes": sizes.remembered("student", 2 * drafts) + sizes.remembered("teacher", drafts),
    }
    writing = sizes.packed(writers) + sizes.keys_and_values(at_once, writers) + drafted * at_once
    scoring = sizes.statistics(at_once) + sizes.reading(at_once * sizes.longest)
    phases = {
        "validate": standing
        + max(
            sizes.packed(("student",)) + sizes.keys_and_values(answers, ("student",)) + answered * answers,
            sizes.statistics(answers) + sizes.reading(answers * sizes.longest),
        ),
        "learn": standing + sizes.remembered("teacher", drafts) + _learning(sizes),
    }
    if drafts:
        phases["write"] = standing + parts["remembered prefixes"] + max(writing, scoring if work.writing.is_scored else 0)
    return Memory(parts=parts, phases={name: sizes.with_gaps(size) for name, size in phases.items()})


def _learning(sizes: Sizes) -> int:
    """Gradients, activations, and what the two ends of the graph need beside them."""
    head = head_bytes(sizes.prints["student"])
    first = min(sizes.gradients, head)  # of the weights' gradients only the head's stands before the first backward
    standing = sizes.gradients if any(len(micros) > 1 for micros in sizes.work.updates) else first
    layer = round(sizes.costs["student"].layer("activations"))
    backward = sizes.gradients + max(layer, head if sizes.gradients > head else 0)  # an embedding's gradient is dense
    return max(standing + sizes.activations + max(sizes.walk(), layer), backward)


def resident_bytes(device: torch.device) -> int:
    """What this process holds now, the models aside that it no longer has; nothing on an accelerator, whose memory is told."""
    if device.type == "cuda":
        return 0
    status = Path("/proc/self/status")
    if sys.platform != "linux" or not status.exists():
        return peak_bytes(device)
    (line,) = (line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024
