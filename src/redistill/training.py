"""The loop: draw, count, read, step, log, validate, save - only ever at a step boundary.

It builds nothing and knows no method: it is handed built parts.  Coefficients are set once a step from the counts of the whole
global batch, so that one process with four micro-batches and two with two have the same gradient.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from redistill import checkpoint
from redistill.contracts import Batch, Draw, SequencePolicy, Teacher
from redistill.contracts import Divergence as DivergenceCall
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.guards import EarlyStopping, FiniteGuard
from redistill.models.lora import load_trainable_state, trainable_state
from redistill.models.student import StudentModule
from redistill.objectives import Counts, Objective, averages, terms
from redistill.optimiser import OptimiserConfig, set_learning_rates
from redistill.randomness import torch_seed
from redistill.tracking import Meter, MetricsLog, Progress, peak_bytes

_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how much at once, and what is kept.

    Args:
        updates: Optimiser steps in all; a number, or passes over the training set such as "20 epochs".
        batch_size: Sequences of one update over all processes.
        micro_batch_size: Sequences of one forward and backward on one process; None takes its whole share at once.
        precision: "fp32", or "bf16" (autocast with fp32 master weights; logits and losses stay fp32).
        evaluate_every: Updates (or epochs) between validations, each of which may become the best checkpoint; 0 validates
            before the first update and after the last alone.
        choose_by: What makes a checkpoint the best: the highest validation ROUGE-L, or the lowest cross entropy.
        save_every: Updates (or epochs) between checkpoints besides those at validations; 0 saves at validations alone.
        keep: How many checkpoints stand at once, the best one besides.
        patience: Validations without a better score before training stops; None trains to the end.
        log_every: Updates between lines of a log that is no terminal, and between updates whose revisions are kept.
        generation_batch_size: Sequences that one process writes or scores at once; independent of the micro-batch.

    Raises:
        ConfigError: a value out of range.
    """

    updates: int | str = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: int | str = 0
    choose_by: Literal["rouge_l", "cross_entropy"] = "rouge_l"
    save_every: int | str = 0
    keep: int = 1
    patience: int | None = None
    log_every: int = 10
    generation_batch_size: int = 64

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "micro_batch_size": 1, "keep": 1, "patience": 1, "log_every": 1, "generation_batch_size": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} = {value}: must be >= {lowest}")
        for name, lowest in {"updates": 1, "evaluate_every": 0, "save_every": 0}.items():
            check_length(name, getattr(self, name), lowest)

    def schedule(self, num_examples: int) -> "Schedule":
        """The lengths in updates, for a training set of so many examples."""
        lengths = (
            in_updates(value, num_examples, self.batch_size) for value in (self.updates, self.evaluate_every, self.save_every)
        )
        return Schedule(*lengths)


@dataclass(frozen=True)
class Schedule:
    """Numbers of updates: in all, between validations, between checkpoints; see `TrainingConfig`."""

    updates: int
    evaluate_every: int
    save_every: int


def check_length(name: str, length: int | str, lowest: int) -> None:
    """Refuse what is neither a number of updates from `lowest` on nor one of epochs above 0.

    Raises:
        ConfigError: it is refused.
    """
    if isinstance(length, int):
        if length < lowest:
            raise ConfigError(f"{name} = {length}: must be >= {lowest}")
    elif not (match := _EPOCHS.fullmatch(length)) or not 0 < float(match[1]) < math.inf:
        raise ConfigError(f"{name} = {length!r}: must be a whole number of updates, or epochs such as '20 epochs'")


def in_updates(length: int | str, num_examples: int, batch_size: int) -> int:
    """A length in updates, at least 1 where it is in epochs.

    Example:
        >>> in_updates(50, 1000, 8), in_updates("2 epochs", 1000, 8)
        (50, 250)
    """
    if isinstance(length, int):
        return length
    match = _EPOCHS.fullmatch(length)
    assert match is not None, length
    return max(1, int(float(match[1]) * num_examples / batch_size))


@dataclass(kw_only=True)
class TrainingState:
    """Where training stands, and what it has cost; goes into checkpoints as it is.

    Args:
        best_score: Of the best validation so far: ROUGE-L, or minus the cross entropy; higher is better.
        best_step: The number of updates behind it.
        trained_tokens: Targets learned from, over all processes; one that carries two terms counts twice.
        generated_tokens: Written for training by student or teacher, over all processes; validation is not counted.
        seconds: Of training, validation included.
        peak_bytes: Most memory that one process has held.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    stopped: bool = False
    trained_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop is handed, all of it built (by run.py).

    Args:
        student: A StudentModule, prepared by the accelerator.
        validate: Scores of the student as it is, with "rouge_l" and "cross_entropy" among them.
        meter: Counts the tokens that this process writes for training.
    """

    accelerator: Accelerator
    student: nn.Module
    optimizer: torch.optim.Optimizer
    policy: SequencePolicy
    objective: Objective
    divergence: DivergenceCall | nn.Module | None
    teacher: Teacher | None
    validate: Callable[[], dict[str, float]]
    guard: FiniteGuard
    early_stopping: EarlyStopping
    log: MetricsLog
    progress: Progress
    meter: Meter
    schedule: Schedule
    checkpoints: Path
    pad_id: int
    seed: int


def train(parts: Parts, settings: TrainingConfig, optimiser: OptimiserConfig, state: TrainingState) -> TrainingState:
    """Train until the schedule is done or early stopping says so; `state` says where to start and is kept up to date."""
    if state.step == 0:
        _validate(parts, state)
    while state.step < parts.schedule.updates and not state.stopped:
        started = time.perf_counter()
        rates = set_learning_rates(parts.optimizer, optimiser, state.step, parts.schedule.updates)
        torch.manual_seed(torch_seed(parts.seed, "dropout", state.step, parts.accelerator.process_index))
        draw = parts.objective.select(parts.policy.draw(state.step))
        drawn = time.perf_counter()
        batches = cut(draw, settings.micro_batch_size, parts)
        counts = global_counts(batches)
        sums = accumulate_gradients(batches, counts, parts)
        norms = _clip(parts, optimiser.max_grad_norm)
        metrics = {**averages(parts.objective, counts, sums), **norms}
        if parts.guard.check(metrics["loss"], sum(norms.values()), step=state.step, samples=_samples(draw)):
            parts.optimizer.step()
        parts.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        seconds = time.perf_counter() - started
        metrics |= {**rates, "tokens_per_s": counts.tokens / seconds, "seconds": seconds, "draw_seconds": drawn - started}
        state.trained_tokens += int(counts.tokens)
        _log_update(parts, state, metrics, draw)
        if _is_due(state.step, parts.schedule.evaluate_every) or state.step == parts.schedule.updates:
            _choose(parts, settings, state, _validate(parts, state))
        _count_cost(parts, state, time.perf_counter() - started)
        if (
            _is_due(state.step, parts.schedule.evaluate_every)
            or _is_due(state.step, parts.schedule.save_every)
            or _ends(parts, state)
        ):
            save_checkpoint(parts, settings, state)
    return state


def cut(draw: Draw, micro_batch_size: int | None, parts: Parts) -> list[Batch]:
    """A process's share of the draw as micro-batches; the i-th gold and the i-th sampled sequence stay together."""
    num = max(len(draw.gold), len(draw.sampled))
    size = micro_batch_size or num
    span_config = parts.objective.span if parts.objective.uses_spans else None
    place: dict[str, Any] = {"pad_id": parts.pad_id, "device": parts.accelerator.device}
    pretraining = parts.objective.pretraining
    distilled = pretraining is not None and pretraining.divergence_share > 0
    corpus = [draw.corpus[start : start + size] for start in range(0, len(draw.corpus), size)]
    return [
        *(collate(blocks, blocks if distilled else (), role="pretraining", **place) for blocks in corpus),
        # Last, since the last backward pass is the one that joins the processes: all that learns takes part in it.
        *(
            collate(draw.gold[start : start + size], draw.sampled[start : start + size], span_config=span_config, **place)
            for start in range(0, num, size)
        ),
    ]


def global_counts(batches: Sequence[Batch]) -> Counts:
    """The counts of the whole global batch: all micro-batches of all processes."""
    return Counts.total(gather_object([Counts.of(batches)]))


def accumulate_gradients(batches: Sequence[Batch], counts: Counts, parts: Parts) -> dict[str, float]:
    """Accumulate the gradient of the global objective; returns each term's sum over the global batch."""
    accelerator = parts.accelerator
    parts.student.train(parts.objective.policy_gradient is None)
    sums: dict[str, float] = {}
    for number, batch in enumerate(batches):
        is_last = number == len(batches) - 1
        target = parts.teacher.rows(batch) if parts.teacher is not None and batch.num_sampled else None
        batch_terms = terms(parts.objective, counts, batch, parts.divergence)
        with nullcontext() if is_last else accelerator.no_sync(parts.student):
            objective, batch_sums = parts.student(batch, target, batch_terms)
            accelerator.backward(objective * accelerator.num_processes)  # the wrapper averages over processes
        for name, value in batch_sums.items():
            sums[name] = sums.get(name, 0.0) + float(value)
    gathered = gather_object([sums])
    return {name: sum(share.get(name, 0.0) for share in gathered) for name in sorted({n for s in gathered for n in s})}


def _clip(parts: Parts, max_norm: float) -> dict[str, float]:
    """Clip the student's gradient and the clip network's apart; returns both norms before clipping."""
    student = _student(parts)
    norms = {"grad_norm": float(nn.utils.clip_grad_norm_(student.model.parameters(), max_norm))}
    if _clip_parameters(student):
        norms["clip_network_grad_norm"] = float(nn.utils.clip_grad_norm_(_clip_parameters(student), max_norm))
    return norms


def _log_update(parts: Parts, state: TrainingState, metrics: dict[str, float], draw: Draw) -> None:
    sampled = draw.gold if parts.objective.sft_on == "sampled" else draw.sampled
    share = [(sequence.origin, sequence.num_targets) for sequence in sampled]
    drawn = [pair for process in gather_object([share]) for pair in process]
    origins = Counter(origin for origin, _ in drawn)
    lengths = [length for origin, length in drawn if origin != "dataset"]
    if parts.accelerator.is_main_process:
        line: dict[str, Any] = {"kind": "train", "step": state.step, **_finite(metrics)}
        if origins:
            line["origin"] = dict(sorted(origins.items()))
        if lengths:
            line["response_length"] = sum(lengths) / len(lengths)
        if policy := parts.policy.metrics():
            line["policy"] = policy
        parts.log.write(line)
        parts.progress.update(state.step, metrics)


def _validate(parts: Parts, state: TrainingState) -> dict[str, float]:
    """Score the student as it is, and tell log and policy."""
    scores = parts.validate()
    parts.policy.observe(scores["cross_entropy"])
    if parts.accelerator.is_main_process:
        parts.log.write({"kind": "validation", "step": state.step, **_finite(scores)})
        parts.progress.note(
            f"step {state.step}: validation ROUGE-L {scores['rouge_l']:.2f}, cross entropy {scores['cross_entropy']:.3f}"
        )
    return scores


def _choose(parts: Parts, settings: TrainingConfig, state: TrainingState, scores: dict[str, float]) -> None:
    """Note whether this is the best student so far, and whether training is to stop."""
    score = scores["rouge_l"] if settings.choose_by == "rouge_l" else -scores["cross_entropy"]
    if state.best_score is None or score > state.best_score:
        state.best_score, state.best_step = score, state.step
    state.stopped = parts.early_stopping.stop(score)


def _count_cost(parts: Parts, state: TrainingState, seconds: float) -> None:
    shares = gather_object([(parts.meter.read(), peak_bytes(parts.accelerator.device))])
    state.generated_tokens += sum(generated for generated, _ in shares)
    state.peak_bytes = max(state.peak_bytes, *(peak for _, peak in shares))
    state.seconds += seconds


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _ends(parts: Parts, state: TrainingState) -> bool:
    return state.stopped or state.step == parts.schedule.updates


def save_checkpoint(parts: Parts, settings: TrainingConfig, state: TrainingState) -> None:
    """Everything a resume needs, committed by one rename; the main process writes, the others wait."""
    student = _student(parts)
    if parts.accelerator.is_main_process:
        optimizer, optimizer_state = checkpoint.optimizer_tensors(parts.optimizer, dict(student.named_parameters()))
        tensors = {"model": trainable_state(student.model), "optimizer": optimizer}
        if student.clip_network is not None and _clip_parameters(student):
            tensors["clip_network"] = student.clip_network.state_dict()
        checkpoint.save(
            parts.checkpoints,
            state.step,
            tensors=tensors,
            state={
                "training": asdict(state),
                "optimizer": optimizer_state,
                "policy": dict(parts.policy.state_dict()),
                "guard": parts.guard.state_dict(),
                "early_stopping": parts.early_stopping.state_dict(),
            },
            keep=settings.keep,
            protect=() if state.best_step is None else (state.best_step,),
        )
    parts.accelerator.wait_for_everyone()


def restore_checkpoint(parts: Parts, found: checkpoint.Checkpoint) -> TrainingState:
    """Put everything back as it was when `found` was saved."""
    student = _student(parts)
    load_trainable_state(student.model, found.tensors["model"])
    if student.clip_network is not None and _clip_parameters(student):
        student.clip_network.load_state_dict(found.tensors["clip_network"])
    names = dict(student.named_parameters())
    checkpoint.restore_optimizer(parts.optimizer, names, found.tensors["optimizer"], found.state["optimizer"])
    parts.policy.load_state_dict(found.state["policy"])
    parts.guard.load_state_dict(found.state["guard"])
    parts.early_stopping.load_state_dict(found.state["early_stopping"])
    return TrainingState(**found.state["training"])


def _student(parts: Parts) -> StudentModule:
    student = parts.accelerator.unwrap_model(parts.student)
    assert isinstance(student, StudentModule)
    return student


def _clip_parameters(student: StudentModule) -> list[nn.Parameter]:
    """What DAC-KL learns; nothing where the objective has another divergence or fixed thresholds."""
    return [] if student.clip_network is None else list(student.clip_network.parameters())


def _samples(draw: Draw) -> list[int]:
    return sorted({sequence.sample for sequence in (*draw.gold, *draw.sampled)})


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what is not finite is logged as null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
