"""What a run will need and how long it will take, told before any weight is loaded.

Each model is stood up with its real widths and one and three layers of random weights, the package's own functions are run on
it, and the costs are drawn out to its number of layers.  Nothing of the run's weights is read; only configs, and where they lie
in files, tokenizer and data.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from redistill.config.decode import kind_of
from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.errors import ConfigError
from redistill.estimate.costs import Clock, Stopwatch, free, head_costs, model_costs
from redistill.estimate.memory import Memory, Sizes, memory, resident_bytes
from redistill.estimate.seconds import Seconds, seconds
from redistill.estimate.slivers import Affine, Blueprint, blueprints, parameters
from redistill.estimate.workload import Workload, workload
from redistill.training.schedule import in_updates

__all__ = ["Affine", "Blueprint", "Estimate", "Memory", "Seconds", "Workload", "estimate"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs on this machine, in one process.

    Args:
        parameters: Numbers of weights: student, teacher where there is one, and trained.
        memory: In bytes.
        seconds: Of an update, by part, and of a validation.
        updates: Of the whole run; None where they are in epochs of data that is not here.
        validations: Of the whole run, the one before training among them; None as for `updates`.
        notes: What was assumed.
    """

    parameters: Mapping[str, int]
    memory: Memory
    seconds: Seconds
    updates: int | None
    validations: int | None
    notes: tuple[str, ...]

    @property
    def run_seconds(self) -> float | None:
        """Of training with its validations; the evaluation on test sets is not counted."""
        if self.updates is None or self.validations is None:
            return None
        return self.updates * self.seconds.step + self.validations * self.seconds.validation

    def as_json(self) -> dict[str, Any]:
        """For programs; bytes and seconds."""
        return {
            "schema": 1,
            "parameters": dict(self.parameters),
            "memory": {**asdict(self.memory), "peak_bytes": self.memory.peak_bytes},
            "seconds": {**asdict(self.seconds), "step": self.seconds.step, "run": self.run_seconds},
            "updates": self.updates,
            "validations": self.validations,
            "notes": list(self.notes),
        }


def estimate(run: Run, clock: Clock = time.perf_counter) -> Estimate:
    """Parameters, memory and time of `run` on this machine.

    Its stages - the fine-tuning of teacher or student before it - are runs of their own and not counted.

    Args:
        run: As `load_config` gives it.
        clock: Seconds, rising.

    Raises:
        ModelError: a model's config cannot be had, or its family cannot be cut to a few layers.
        ConfigError: a mistake in the run.
    """
    if run.teacher is not None and not isinstance(run.teacher, TeacherConfig):
        raise ConfigError(
            f"teacher.kind = {kind_of(type(run.teacher))}: the cost of an external teacher is not known; estimate the run with "
            "a local teacher"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prints, work, watch = blueprints(run), workload(run, device), Stopwatch(clock, device)
    head = head_costs(prints, run, work, watch)
    writes = {"student": work.writing.student, "teacher": work.writing.teacher}
    costs = {
        role: model_costs(blueprint, run, work, watch, learns=role == "student", writes=writes[role])
        for role, blueprint in prints.items()
    }
    free()
    sizes = Sizes(run, prints, costs, work, device, clip_network=int(head["clip_network"]), process=resident_bytes(device))
    updates, evaluations = (_in_updates(length, run, work) for length in (run.training.updates, run.training.evaluate_every))
    validations = None if updates is None or evaluations is None else 2 + (updates - 1) // evaluations if evaluations else 2
    return Estimate(
        parameters=parameters(costs),
        memory=memory(sizes),
        seconds=seconds(run, costs, head, work, updates),
        updates=updates,
        validations=validations,
        notes=(*work.notes, *_notes(run, work)),
    )


def _in_updates(length: int | str, run: Run, work: Workload) -> int | None:
    if isinstance(length, int):
        return length
    return None if work.num_examples is None else in_updates(length, work.num_examples, run.training.batch_size)


def _notes(run: Run, work: Workload) -> Iterator[str]:
    """What was assumed of the run, a sentence each."""
    if work.writing.writes:
        yield f"whoever writes is taken to write all {work.response} tokens that it may"
    if work.writing.rounds:
        yield "errors are taken to stand anywhere in a text, the middle on average"
    if run.objective is None and run.resolved_method.objective.uses_spans:
        yield "the finding of phrases for the span loss is not counted"
    if run.training.compile == "all":
        yield "the student's body is timed as it is without training.compile = all"
    if run.student.lora is not None and run.student.lora.quantise != "none":
        yield f"quantised weights are counted at their size, and timed as if they were not ({run.student.lora.quantise})"
    if (isinstance(run.teacher, TeacherConfig) and run.teacher.finetune is not None) or run.starts_finetuned:
        yield "fine-tuning before the run (`finetune`) is a run of its own and not counted"
