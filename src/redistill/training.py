"""The loop: draw, count, read, step, log, validate, save - only ever at a step boundary.

It builds nothing and knows no method: it is handed built parts.  Coefficients are set once a step from the counts of the whole
global batch, so that one process with four micro-batches and two with two have the same gradient.
"""

import math
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
from redistill.models.student import StudentModule
from redistill.objectives import Counts, Objective, averages, terms
from redistill.randomness import torch_seed
from redistill.tracking import MetricsLog, Progress


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """AdamW and its schedule.

    Args:
        learning_rate: Of the student, at the start; the paper's value is 5e-4.
        final_learning_rate: Where the cosine ends.
        clip_network_learning_rate: Of DAC-KL's network; None takes the student's, as the paper does.
        schedule: "cosine" to final_learning_rate over all updates, or "constant".
        warmup_updates: Linear rise from 0 over so many updates; the reference code has none.
        weight_decay: On matrices; vectors (biases, norms) have none.
        betas: AdamW's averages.
        max_grad_norm: Clip of the gradient's norm; the clip network has a clip of its own, so that it cannot eat the student's.

    Raises:
        ConfigError: a value out of range.
    """

    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-7
    clip_network_learning_rate: float | None = None
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_updates: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        positive = {"learning_rate": self.learning_rate, "max_grad_norm": self.max_grad_norm}
        if self.clip_network_learning_rate is not None:
            positive["clip_network_learning_rate"] = self.clip_network_learning_rate
        for name, value in positive.items():
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} = {value}: must be > 0 and finite")
        lowest = min(self.learning_rate, self.clip_network_learning_rate or self.learning_rate)
        if not 0 <= self.final_learning_rate <= lowest:
            raise ConfigError(
                f"final_learning_rate = {self.final_learning_rate}: must lie in [0, {lowest}], the lowest rate at the start"
            )
        for name in ("weight_decay", "warmup_updates"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 0 and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas = {list(self.betas)}: both must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how much at once, and what is kept.

    Args:
        updates: Optimiser steps in all.
        batch_size: Sequences of one update over all processes.
        micro_batch_size: Sequences of one forward and backward on one process; None takes its whole share at once.
        precision: "fp32", or "bf16" (autocast with fp32 master weights; logits and losses stay fp32).
        evaluate_every: Updates between validations, each of which may become the best checkpoint; 0 validates at the end alone.
        save_every: Updates between checkpoints besides those at validations; 0 saves at validations alone.
        keep: How many checkpoints stand at once, the best one besides.
        patience: Validations without a better score before training stops; None trains to the end.
        max_skips: Updates in a row that may be skipped because they are not finite.
        log_every: Updates between lines of a log that is no terminal, and between updates whose revisions are kept.
        generation_batch_size: Sequences that one process writes or scores at once; independent of the micro-batch.

    Raises:
        ConfigError: a value out of range.
    """

    updates: int = 1000
    batch_size: int = 8
    micro_batch_size: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    evaluate_every: int = 0
    save_every: int = 0
    keep: int = 1
    patience: int | None = None
    max_skips: int = 3
    log_every: int = 10
    generation_batch_size: int = 64

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch_size": 1, "micro_batch_size": 1, "keep": 1, "patience": 1, "log_every": 1}
        least |= {"generation_batch_size": 1, "evaluate_every": 0, "save_every": 0, "max_skips": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(f"{name} = {value}: must be >= {lowest}")


@dataclass(kw_only=True)
class TrainingState:
    """Where training stands; goes into checkpoints as it is.

    `best_score` is the best validation ROUGE-L so far and `best_step` the number of updates behind it.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    stopped: bool = False


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop is handed, all of it built (by run.py).

    Args:
        student: A StudentModule, prepared by the accelerator.
        validate: Scores of the student as it is, with "rouge_l" and "cross_entropy" among them.
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
    checkpoints: Path
    pad_id: int
    seed: int


def train(parts: Parts, settings: TrainingConfig, optimiser: OptimiserConfig, state: TrainingState) -> TrainingState:
    """Train until `settings.updates` are done or early stopping says so; `state` says where to start and is kept up to date."""
    while state.step < settings.updates and not state.stopped:
        started = time.perf_counter()
        rates = set_learning_rates(parts.optimizer, optimiser, state.step, settings.updates)
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
        tokens = counts.sft_tokens + counts.sampled_tokens
        metrics |= {**rates, "tokens_per_s": tokens / seconds, "seconds": seconds, "draw_seconds": drawn - started}
        _log_update(parts, state.step, metrics, draw)
        _validate_and_save(parts, settings, state)
    return state


def set_learning_rates(optimizer: torch.optim.Optimizer, config: OptimiserConfig, step: int, updates: int) -> dict[str, float]:
    """Give every parameter group its learning rate for the update after `step`; returns them for the log.

    A pure function of the step: a schedule without state has nothing to lose in a resume.
    """
    rise = min(1.0, (step + 1) / config.warmup_updates) if config.warmup_updates else 1.0
    part = step / updates if config.schedule == "cosine" else 0.0
    share = rise * 0.5 * (1 + math.cos(math.pi * part))
    rates = {}
    for group in optimizer.param_groups:
        peak = group["peak_learning_rate"]
        group["lr"] = config.final_learning_rate + (peak - config.final_learning_rate) * share
        rates[group["rate_name"]] = group["lr"]
    return rates


def parameter_groups(student: nn.Module, clip_network: nn.Module | None, config: OptimiserConfig) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, vectors do not, and the clip network has a learning rate of its own."""
    clip_ids = {id(parameter) for parameter in clip_network.parameters()} if clip_network is not None else set()
    clip_rate = config.clip_network_learning_rate or config.learning_rate
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in student.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in clip_ids, parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "peak_learning_rate": clip_rate if is_clip else config.learning_rate,
            "rate_name": "clip_network_learning_rate" if is_clip else "learning_rate",
        }
        for (is_clip, is_matrix), parameters in groups.items()
    ]


def cut(draw: Draw, micro_batch_size: int | None, parts: Parts) -> list[Batch]:
    """A process's share of the draw as micro-batches; the i-th gold and the i-th sampled sequence stay together."""
    num = max(len(draw.gold), len(draw.sampled))
    size = micro_batch_size or num
    span_config = parts.objective.span if parts.objective.uses_spans else None
    return [
        collate(
            draw.gold[start : start + size],
            draw.sampled[start : start + size],
            pad_id=parts.pad_id,
            device=parts.accelerator.device,
            span_config=span_config,
        )
        for start in range(0, num, size)
    ]


def global_counts(batches: Sequence[Batch]) -> Counts:
    """The counts of the whole global batch: all micro-batches of all processes."""
    shares = gather_object([Counts.of(batches)])
    return Counts(
        sft_tokens=sum(share.sft_tokens for share in shares),
        sampled_tokens=sum(share.sampled_tokens for share in shares),
        span_samples=sum(share.span_samples for share in shares),
    )


def accumulate_gradients(batches: Sequence[Batch], counts: Counts, parts: Parts) -> dict[str, float]:
    """Accumulate the gradient of the global objective; returns each term's sum over the global batch."""
    accelerator = parts.accelerator
    parts.student.train()
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


def _log_update(parts: Parts, step: int, metrics: dict[str, float], draw: Draw) -> None:
    share = [(sequence.origin, sequence.num_targets) for sequence in draw.sampled]
    drawn = [pair for process in gather_object([share]) for pair in process]
    origins = Counter(origin for origin, _ in drawn)
    lengths = [length for origin, length in drawn if origin != "dataset"]
    if parts.accelerator.is_main_process:
        line: dict[str, Any] = {"kind": "train", "step": step, **_finite(metrics)}
        if origins:
            line["origin"] = dict(sorted(origins.items()))
        if lengths:
            line["response_length"] = sum(lengths) / len(lengths)
        parts.log.write(line)
        parts.progress.update(step, metrics)


def _validate_and_save(parts: Parts, settings: TrainingConfig, state: TrainingState) -> None:
    """Validate and save where the schedule says so; the best validation ROUGE-L marks the best checkpoint."""
    is_end = state.step >= settings.updates
    if is_end or (settings.evaluate_every and state.step % settings.evaluate_every == 0):
        scores = parts.validate()
        parts.policy.observe(scores["cross_entropy"])
        if state.best_score is None or scores["rouge_l"] > state.best_score:
            state.best_score, state.best_step = scores["rouge_l"], state.step
        state.stopped = parts.early_stopping.stop(scores["rouge_l"])
        if parts.accelerator.is_main_process:
            parts.log.write({"kind": "validation", "step": state.step, **_finite(scores)})
            parts.progress.note(
                f"step {state.step}: validation ROUGE-L {scores['rouge_l']:.2f}, cross entropy {scores['cross_entropy']:.3f}"
            )
        save_checkpoint(parts, settings, state)
    elif settings.save_every and state.step % settings.save_every == 0:
        save_checkpoint(parts, settings, state)


def save_checkpoint(parts: Parts, settings: TrainingConfig, state: TrainingState) -> None:
    """Everything a resume needs, committed by one rename; the main process writes, the others wait."""
    student = _student(parts)
    if parts.accelerator.is_main_process:
        optimizer, optimizer_state = checkpoint.optimizer_tensors(parts.optimizer, dict(student.named_parameters()))
        tensors = {"model": student.model.state_dict(), "optimizer": optimizer}
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
    student.model.load_state_dict(found.tensors["model"])
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
