"""Parameters, memory and time of a run, estimated before any weight is loaded.

One update and one validation of the run are executed on this machine with models of the real widths and one or three layers of
random weights, and their costs are extrapolated to the numbers of layers of the run.  Only configs, the tokenizer and data in
files are read.
"""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from redistill.config.run import Run
from redistill.estimate.measurement import FEW, MORE, Layers, extrapolated, measure
from redistill.estimate.recorder import Clock, Cost, Recorder, free, resident_bytes
from redistill.estimate.sample_run import Sample, sample
from redistill.estimate.shallow import blueprints
from redistill.records import Json

PARTS = ("write", "revise", "teacher reads", "student learns", "vocabulary pass", "optimiser")
ANSWERS = ("answer", "validate")
PHASES = {"write": PARTS[:2], "learn": PARTS[2:], "validate": ANSWERS}
HEAP_GAPS = 0.18
"""Of the tensors of a phase on a CPU, what the C library keeps of freed memory besides; between 0.11 and 0.3 in the runs of
docs/performance.md."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one process.

    Args:
        parts: Of the process without models, of weights, gradients and optimiser, and what each part of an update holds at
            most besides weights and optimiser.
        phases: The peak of each phase, on a CPU with the gaps that the heap has.
    """

    parts: Mapping[str, int]
    phases: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        """The largest peak of a phase."""
        return max(self.phases.values())


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one process.

    Args:
        parts: Of an update, means over updates.
        validation: Of one validation.
    """

    parts: Mapping[str, float]
    validation: float

    @property
    def step(self) -> float:
        """Of one update."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs on this machine, in one process.

    Args:
        parameters: Numbers of weights: student, teacher where there is one, and trained.
        memory: In bytes.
        seconds: Of an update, by part, and of a validation.
        updates: Of the whole run; None where they are in epochs of data that was not read.
        validations: Of the whole run, the one before training included; None as for `updates`.
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

    def as_json(self) -> dict[str, Json]:
        """For programs; bytes and seconds."""
        tree = {"schema": 1, **asdict(self)}
        tree["memory"]["peak_bytes"] = self.memory.peak_bytes
        tree["seconds"] |= {"step": self.seconds.step, "run": self.run_seconds}
        return tree


def estimate(run: Run, clock: Clock = time.perf_counter) -> Estimate:
    """Parameters, memory and time of `run` on this machine.

    Its stages - the fine-tuning of teacher or student before it - are runs of their own and not counted.

    Args:
        run: As `load_config` returns it.
        clock: Seconds, monotonic.

    Raises:
        ModelError: a model's config or tokenizer cannot be read, or its family cannot be cut to a few layers.
        ConfigError: a mistake in the run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prints = blueprints(run)
    whole = Layers(prints["student"].layers, prints["teacher"].layers if "teacher" in prints else 0)
    few = Layers(FEW, min(FEW, whole.teacher))
    found: dict[Layers, dict[Cost, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        sampled = sample(run, Path(folder))
        measure(sampled.in_folder("first"), prints, few, Recorder(clock, device))  # kernels are compiled, modules are imported
        free()
        process = resident_bytes(device)
        for layers in dict.fromkeys((few, few._replace(student=MORE), few._replace(teacher=MORE if whole.teacher else 0))):
            recorder = Recorder(clock, device)
            with recorder.recording():
                sizes = measure(sampled.in_folder(f"{layers.student}-{layers.teacher}"), prints, layers, recorder)
            found[layers] = {**sizes, **recorder.costs}
    costs = {
        cost: extrapolated({layers: each.get(cost, 0.0) for layers, each in found.items()}, whole, *cost.models)
        for cost in found[few]
    }
    counts = {cost.name: round(size) for cost, size in costs.items() if cost.kind == "size"}
    updates, every = sampled.in_updates(run.training.updates), sampled.in_updates(run.training.evaluate_every)
    return Estimate(
        parameters={name: counts[name] for name in ("student", "teacher", "trained") if counts[name]},
        memory=_memory(costs, counts, process, HEAP_GAPS if device.type == "cpu" else 0.0),
        seconds=_seconds(costs, run, sampled),
        updates=updates,
        validations=None if updates is None or every is None else 2 + (updates - 1) // every if every else 2,
        notes=sampled.notes,
    )


def _memory(costs: Mapping[Cost, float], sizes: Mapping[str, int], process: int, gaps: float) -> Memory:
    weights, optimiser = sizes["weights"] - sizes["saved"], 2 * sizes["gradients"]
    peaks = {cost.name: round(peak) - sizes["saved"] for cost, peak in costs.items() if cost.kind == "peak" and cost.name}
    parts = {"process": process, "weights": weights, "gradients": sizes["gradients"], "optimiser": optimiser}
    parts |= {part: max(0, peaks[part] - weights - optimiser) for part in (*PARTS[:-1], "answer") if part in peaks}
    phases = {name: max(peaks.get(part, 0) for part in phase) for name, phase in PHASES.items()}
    return Memory(parts=parts, phases={name: process + round((1 + gaps) * peak) for name, peak in phases.items()})


def _seconds(costs: Mapping[Cost, float], run: Run, sampled: Sample) -> Seconds:
    """Means over the run's updates, from the seconds of the sampled one."""
    totals = {part: sum(spent for cost, spent in costs.items() if cost[:2] == ("seconds", part)) for part in (*PARTS, *ANSWERS)}
    parts = {part: totals[part] * (sampled.generating if part in PHASES["write"] else 1.0) for part in PARTS}
    batches = -(-run.data.validation_rows // run.evaluation.batch_size)
    return Seconds(parts=parts, validation=batches * sum(map(totals.__getitem__, ANSWERS)))
