"""Estimates the parameters, memory and time of a run without loading weights.

The estimate executes one update and one validation of the run on this machine.  In these two steps, the models have the
widths of the run's models, but only one or three layers, and random weights.  The measured costs are extrapolated to the
run's numbers of layers.  The estimate reads only model configs, the tokenizer and local data files.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from redistill.config.capabilities import sharding_fault
from redistill.config.run import Run
from redistill.errors import ConfigError
from redistill.estimate.measurement import FEW, MORE, Layers, extrapolated, measure
from redistill.estimate.placed import PlacedMemory, placed_memory
from redistill.estimate.recorder import Clock, Cost, Recorder, Role, resident_bytes
from redistill.estimate.sample_run import Sample, sample
from redistill.estimate.shallow import Blueprint, blueprints
from redistill.processes.memory import device_bytes, free
from redistill.records import Json
from redistill.training.progress import duration

PARTS = ("write", "revise", "teacher reads", "student learns", "vocabulary pass", "optimiser")
ANSWERS = ("answer", "validate")
PHASES = {"write": PARTS[:2], "learn": PARTS[2:], "validate": ANSWERS}
HEAP_GAPS = 0.18
"""On a CPU, the C library keeps freed memory.  The size of the kept memory is estimated as this fraction of the peak memory
of all tensors.

Measured values were between 0.11 and 0.3 (docs/performance.md).
"""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated memory of one process, in bytes.

    Args:
        parts: Bytes by name. "process" is the memory of the process without models. "weights", "gradients" and "optimiser"
            are the sizes of these tensors. Each other name is a part of an update, such as "vocabulary pass" (the LM head
            and the loss). The value of such a part is its peak memory, without weights and optimiser state.
        phases: Peak bytes by phase: "write" (generation of text), "learn" and "validate".  On a CPU, a peak includes freed
            memory that the C library keeps. The size of this freed memory is assumed to be a constant fraction
            (`HEAP_GAPS`) of the size of the tensors.
    """

    parts: Mapping[str, int]
    phases: Mapping[str, int]

    @property
    def peak_bytes(self) -> int:
        """Largest peak memory of all phases, in bytes."""
        return max(self.phases.values())


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Estimated seconds of an update and of a validation, in one process.

    Args:
        parts: Mean seconds of each part of an update.
        validation: Seconds of one validation.
    """

    parts: Mapping[str, float]
    validation: float

    @property
    def step(self) -> float:
        """Seconds of one update."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimated parameters, memory and time of a run on this machine, in one process.

    Args:
        parameters: Number of weights by name: "student", "teacher" (only if it runs in this process), and "trained" (those
            weights that training changes).
        memory: Memory in bytes, by part of an update and by phase.
        seconds: Seconds of an update and of a validation.
        updates: Number of updates of the whole run.  None if the run's length is in epochs and the training data was not read.
        validations: Number of validations of the whole run, including the one before training.  None if a length is in epochs
            (`training.updates` or `training.evaluate_every`), and the training data was not read.
        notes: Assumptions of the estimate.
        processes: Number of processes for which `placements` is calculated; None if there is no such calculation.
        placements: Calculated memory of each process: "replicated" and, if the models of the run can be sharded, "sharded".
    """

    parameters: Mapping[str, int]
    memory: Memory
    seconds: Seconds
    updates: int | None
    validations: int | None
    notes: tuple[str, ...]
    processes: int | None = None
    placements: Mapping[str, PlacedMemory] = field(default_factory=dict)

    @property
    def run_seconds(self) -> float | None:
        """Seconds of training with its validations, without evaluation on test sets.

        The value is None if `updates` or `validations` is None.
        """
        if self.updates is None or self.validations is None:
            return None
        return self.updates * self.seconds.step + self.validations * self.seconds.validation

    def as_json(self) -> dict[str, Json]:
        """Return all fields as JSON values, in bytes and seconds.

        The result has three more values: the largest peak of memory, and the seconds of one update and of the whole training.
        """
        tree = {"schema": 1, **asdict(self)}
        tree["memory"]["peak_bytes"] = self.memory.peak_bytes
        for name, placed in self.placements.items():
            tree["placements"][name]["peak_bytes"] = placed.peak_bytes
        tree["seconds"] |= {"step": self.seconds.step, "run": self.run_seconds}
        return tree


def estimate(
    run: Run,
    clock: Clock = time.perf_counter,
    report: Callable[[str], None] = lambda line: None,
    *,
    processes: int | None = None,
    memory_bytes: int | None = None,
) -> Estimate:
    """Estimate the parameters, memory and time of `run` on this machine.

    One update and one validation are executed, with models of few layers.  The costs are extrapolated to the run's numbers of
    layers.  The fine-tuning of teacher or student before the run is not included.

    Args:
        run: The run, as `load_config` returns it.
        clock: Function that returns the time of a monotonic clock, in seconds.
        report: Function that is called with a line of text after each measurement.
        processes: Number of processes for which the memory of each process is calculated, too; None for no calculation.
        memory_bytes: Memory of the device of each process in this calculation; None for that of this machine's GPU, if any.

    Raises:
        ModelError: a model's config or tokenizer cannot be read, or transformers cannot create the model with few layers.
        ConfigError: a setting of the run is invalid, or the batch cannot be divided by the number of processes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prints = blueprints(run)
    placements, refused = _placements(run, prints, processes, memory_bytes or device_bytes(device))
    whole = Layers(prints["student"].layers, prints["teacher"].layers if "teacher" in prints else 0)
    few = Layers(FEW, min(FEW, whole.teacher))
    measured = dict.fromkeys((few, few._replace(student=MORE), few._replace(teacher=MORE if whole.teacher else 0)))
    found: dict[Layers, dict[Cost, float]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        sampled = sample(run, Path(folder))
        measure(sampled.in_folder("first"), prints, few, Recorder(clock, device))  # warm-up: compiles kernels, imports modules
        report(_progress(1, len(measured), started))
        free()
        process = resident_bytes(device)
        for layers in measured:
            recorder = Recorder(clock, device)
            with recorder.recording():
                sizes = measure(sampled.in_folder(f"{layers.student}-{layers.teacher}"), prints, layers, recorder)
            found[layers] = {**sizes, **recorder.costs}
            report(_progress(1 + len(found), len(measured), started))
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
        notes=(*sampled.notes, *refused),
        processes=processes,
        placements=placements,
    )


def _placements(
    run: Run, prints: Mapping[Role, Blueprint], processes: int | None, memory_bytes: int | None
) -> tuple[dict[str, PlacedMemory], tuple[str, ...]]:
    """Return the memory of a process with each placement, and a note if the models cannot be sharded."""
    if processes is None:
        return {}, ()
    if run.training.batch_size % processes:
        raise ConfigError(f"training.batch_size = {run.training.batch_size}: must be a multiple of {processes} processes")
    calculate = partial(placed_memory, run, prints, processes, memory_bytes=memory_bytes)
    found = {"replicated": calculate(sharded=False)}
    if (fault := sharding_fault(run.student, run.engine, run.training)) is not None:
        return found, (f"the models cannot be sharded: {fault}",)
    return found | {"sharded": calculate(sharded=True)}, ()


def _progress(done: int, measured: int, started: float) -> str:
    """Return the line that is printed after a measurement.

    `measured` is the number of measurements without the first one, which is a warm-up.
    """
    return f"estimating memory and time: {done} of {1 + measured} measurements, {duration(time.monotonic() - started)}"


def _memory(costs: Mapping[Cost, float], sizes: Mapping[str, int], process: int, gaps: float) -> Memory:
    weights, optimiser = sizes["weights"] - sizes["saved"], 2 * sizes["gradients"]
    peaks = {cost.name: round(peak) - sizes["saved"] for cost, peak in costs.items() if cost.kind == "peak" and cost.name}
    parts = {"process": process, "weights": weights, "gradients": sizes["gradients"], "optimiser": optimiser}
    parts |= {part: max(0, peaks[part] - weights - optimiser) for part in (*PARTS[:-1], "answer") if part in peaks}
    phases = {name: max(peaks.get(part, 0) for part in phase) for name, phase in PHASES.items()}
    return Memory(parts=parts, phases={name: process + round((1 + gaps) * peak) for name, peak in phases.items()})


def _seconds(costs: Mapping[Cost, float], run: Run, sampled: Sample) -> Seconds:
    """Return the mean seconds of an update and of a validation of the run.

    `costs` are the costs of the measured update and validation, extrapolated to the run's numbers of layers.  The time of text
    generation is multiplied by `sampled.generating`. This factor is the amount of text of an average update, divided by that of
    the measured update.
    """
    totals = {part: sum(spent for cost, spent in costs.items() if cost[:2] == ("seconds", part)) for part in (*PARTS, *ANSWERS)}
    parts = {part: totals[part] * (sampled.generating if part in PHASES["write"] else 1.0) for part in PARTS}
    batches = -(-run.data.validation_rows // run.evaluation.batch_size)
    return Seconds(parts=parts, validation=batches * sum(map(totals.__getitem__, ANSWERS)))
