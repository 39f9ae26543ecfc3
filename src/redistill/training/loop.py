"""The loop: draw, count, read, step, log, validate, save - only ever at a step boundary.

Longer than other files, since a step and what is saved of it must be read together.

It builds nothing and knows no method: it is handed built parts.  Coefficients are set once a step from the counts of the whole
global batch, so that one process with four micro-batches and two with two have the same gradient.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from redistill.contracts import Batch, Draw, SequencePolicy, Teacher, TokenSequence
from redistill.contracts import Divergence as DivergenceCall
from redistill.data.collate import collate
from redistill.data.grouping import grouped, reading
from redistill.errors import Interrupted
from redistill.models.lora import load_trainable_state, trainable_state
from redistill.models.student import StudentModule
from redistill.processes import signals
from redistill.randomness import torch_seed
from redistill.records import Metric
from redistill.training import checkpoint
from redistill.training.guards import (
    CollapseMonitor,
    EarlyStopping,
    Event,
    Halving,
    Tell,
    Update,
    UpdateGuard,
    facts_of,
    read_again,
    text_metrics,
    unless_out_of_memory,
)
from redistill.training.objective import Counts, Objective, averages, terms
from redistill.training.optimiser import OptimiserConfig, set_learning_rates
from redistill.training.schedule import Schedule, TrainingConfig
from redistill.training.tracking import Meter, MetricsLog, Progress, peak_bytes

_FAULTS = "teacher rows that are not finite"  # beside the sums of the terms, on their way through the processes


@dataclass(kw_only=True)
class TrainingState:
    """Where training stands, and what it has cost; goes into checkpoints as it is.

    Args:
        best_score: Of the best validation so far, what `choose_by` names; negated where lower is better.
        best_cross_entropy: Of the same validation; None where it was not finite.
        best_step: The number of updates behind it.
        trained_tokens: Targets learned from, over all processes; one that carries two terms counts twice.
        generated_tokens: Written for training by student or teacher, over all processes; validation is not counted.
        validation_due: Whether the last update was made, and the validation that belongs to it was not.
        seconds: Of training, validation included.
        peak_bytes: Most memory that one process has held.
    """

    step: int = 0
    best_score: float | None = None
    best_cross_entropy: float | None = None
    best_step: int | None = None
    stopped: bool = False
    validation_due: bool = False
    trained_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop is handed, all of it built (by run.py).

    Args:
        student: A StudentModule, prepared by the accelerator.
        validate: Scores of the student as it is: of each of `metrics`, "cross_entropy", and others.
        metrics: What validation scores answers by.
        teacher_faults: At how many rows the teacher was not finite on this process since it was last asked.
        memory: The micro-batch size; the generation batch size.  Both shrink where memory runs out.
        meter: Counts the tokens that this process writes for training.
        end_ids: Tokens that end a response.
    """

    accelerator: Accelerator
    student: nn.Module
    optimizer: torch.optim.Optimizer
    policy: SequencePolicy
    objective: Objective
    divergence: DivergenceCall | nn.Module | None
    teacher: Teacher | None
    validate: Callable[[], dict[str, float]]
    metrics: Sequence[Metric]
    teacher_faults: Callable[[], int]
    guard: UpdateGuard
    collapse: CollapseMonitor
    memory: tuple[Halving, Halving]
    tell: Tell
    early_stopping: EarlyStopping
    log: MetricsLog
    progress: Progress
    meter: Meter
    schedule: Schedule
    checkpoints: Path
    pad_id: int
    end_ids: Collection[int]
    seed: int


def train(parts: Parts, settings: TrainingConfig, optimiser: OptimiserConfig, state: TrainingState) -> TrainingState:
    """Train until the schedule is done or early stopping says so; `state` says where to start and is kept up to date.

    Raises:
        Interrupted: a signal has arrived; every update that was made is in a checkpoint, and nothing of one that was not.
        TrainingError: see the guards.
    """
    saved = state.step
    try:
        if state.step == 0:
            _validate(parts, state)
        while state.validation_due or not _ends(parts, state):
            if not state.validation_due:
                _step(parts, optimiser, state)
            if state.validation_due:
                _choose(parts, settings, state)
            if (
                _is_due(state.step, parts.schedule.evaluate_every)
                or _is_due(state.step, parts.schedule.save_every)
                or _ends(parts, state)
            ):
                save_checkpoint(parts, settings, state)
                saved = state.step
    except Interrupted:
        if state.step != saved:
            save_checkpoint(parts, settings, state)
        if state.step:
            parts.progress.note(f"stopped at step {state.step} of {parts.schedule.updates}, which is saved")
        raise
    return state


def _step(parts: Parts, optimiser: OptimiserConfig, state: TrainingState) -> None:
    """Make one update and log it, or be interrupted and leave everything as it was.

    Once the gradient is there nothing looks for signals any more, on any process.
    """
    started, before = time.perf_counter(), parts.policy.state_dict()
    parts.teacher_faults()  # what validation met is no fault of this update
    try:
        whole = parts.policy.draw(state.step)
        draw, drawn = parts.objective.select(whole), time.perf_counter()
        batches, counts, sums = gradients(draw, parts, state.step)
    except Interrupted:
        parts.policy.load_state_dict(before)  # a buffer may have grown already
        parts.meter.read()  # what was written will be written again
        parts.optimizer.zero_grad(set_to_none=True)
        raise
    faults, norms = int(sums.pop(_FAULTS)), _clip(parts, optimiser.max_grad_norm)
    metrics = averages(parts.objective, counts, sums)
    rates = set_learning_rates(parts.optimizer, optimiser, state.step, parts.schedule.updates)
    if parts.guard.allows(_update(parts, state.step + 1, draw, batches, metrics, norms, faults)):
        parts.optimizer.step()
    elif faults:
        parts.policy.load_state_dict(before)  # no text stays that such a teacher has had a hand in
    parts.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.validation_due = _is_due(state.step, parts.schedule.evaluate_every) or state.step == parts.schedule.updates
    seconds = time.perf_counter() - started
    metrics |= {**norms, **rates, "tokens_per_s": counts.tokens / seconds, "seconds": seconds}
    metrics["draw_seconds"] = drawn - started
    state.trained_tokens += int(counts.tokens)
    _log_update(parts, state, metrics, draw, whole.gold)
    _count_cost(parts, state, time.perf_counter() - started)


def cut(draw: Draw, micro_batch_size: int | None, parts: Parts) -> list[Batch]:
    """A process's share of the draw as micro-batches, of sequences that are about as long; see `grouping.grouped`."""
    device = parts.accelerator.device
    span_config = parts.objective.span if parts.objective.uses_spans else None
    place: dict[str, Any] = {"pad_id": parts.pad_id, "device": device}
    pretraining = parts.objective.pretraining
    distilled = pretraining is not None and pretraining.divergence_share > 0
    corpus = grouped(draw.corpus, draw.corpus if distilled else (), micro_batch_size, reading(device))
    task = grouped(draw.gold, draw.sampled, micro_batch_size, reading(device))
    return [
        *(collate(gold, sampled, role="pretraining", **place) for gold, sampled in corpus),
        *(collate(gold, sampled, span_config=span_config, **place) for gold, sampled in task),
    ]


def global_counts(batches: Sequence[Batch]) -> Counts:
    """The counts of the whole global batch: all micro-batches of all processes."""
    return Counts.total(signals.gather([Counts.of(batches)]))


def gradients(draw: Draw, parts: Parts, step: int) -> tuple[list[Batch], Counts, dict[str, float]]:
    """The gradient of the global objective, in micro-batches that fit into every process's memory, with counts and sums.

    Where memory runs out on one process, all begin anew with half the micro-batch.  Coefficients come from the global batch, so
    the gradient is the same.
    """
    micro_batch = parts.memory[0]
    while True:
        # For each attempt, so that it has the dropout of a run that began with its micro-batches.
        torch.manual_seed(torch_seed(parts.seed, "dropout", step, parts.accelerator.process_index))
        batches = cut(draw, micro_batch.size, parts)
        counts = global_counts(batches)
        sums = accumulate_gradients(batches, counts, parts)
        if sums is not None:
            return batches, counts, sums
        parts.optimizer.zero_grad(set_to_none=True)
        micro_batch.halve(max(gather_object([max(map(_most_of_a_kind, batches), default=1)])))


def accumulate_gradients(batches: Sequence[Batch], counts: Counts, parts: Parts) -> dict[str, float] | None:
    """Each term's sum over the global batch, its gradient in place; None where memory ran out on any process.

    Processes are joined here and not by hooks of a backward pass, which would leave them waiting for one that has run out.
    """
    gathered = signals.gather([unless_out_of_memory(partial(_backward, batches, counts, parts))])
    if any(share is None for share in gathered):
        return None
    if parts.accelerator.num_processes > 1:
        for parameter in _student(parts).parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)
    return {name: sum(share.get(name, 0.0) for share in gathered) for name in sorted({n for s in gathered for n in s})}


def _backward(batches: Sequence[Batch], counts: Counts, parts: Parts) -> dict[str, float]:
    """This process's part of the gradient, and of the terms' sums."""
    student = _student(parts)
    student.train(parts.objective.policy_gradient is None)
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        signals.poll()
        target = parts.teacher.rows(batch) if parts.teacher is not None and batch.num_sampled else None
        objective, batch_sums = student(batch, target, terms(parts.objective, counts, batch, parts.divergence))
        parts.accelerator.backward(objective)
        for name, value in batch_sums.items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    values = torch.stack(list(sums.values())).tolist() if sums else []  # the one place that waits for the device
    return {**dict(zip(sums, values, strict=True)), _FAULTS: parts.teacher_faults()}


def _most_of_a_kind(batch: Batch) -> int:
    """The larger of its numbers of gold and of sampled sequences, which `training.micro_batch_size` is about."""
    return max(batch.num_sampled, len(batch.sequence_N[batch.sft_N].unique()))


def _update(
    parts: Parts,
    step: int,
    draw: Draw,
    batches: Sequence[Batch],
    metrics: dict[str, float],
    norms: dict[str, float],
    faults: int,
) -> Update:
    """What the guard judges by."""
    read = partial(read_again, batches, _student(parts), parts.teacher, parts.accelerator.autocast)
    return Update(step=step, metrics=metrics, norms=norms, teacher_rows=faults, samples=_samples(draw), read=read)


def _clip(parts: Parts, max_norm: float) -> dict[str, float]:
    """Clip the student's gradient and the clip network's apart; returns both norms before clipping."""
    student = _student(parts)
    norms = {"grad_norm": float(nn.utils.clip_grad_norm_(student.model.parameters(), max_norm))}
    if _clip_parameters(student):
        norms["clip_network_grad_norm"] = float(nn.utils.clip_grad_norm_(_clip_parameters(student), max_norm))
    return norms


def _log_update(
    parts: Parts, state: TrainingState, metrics: dict[str, float], draw: Draw, gold: Sequence[TokenSequence]
) -> None:
    sampled = draw.gold if parts.objective.sft_on == "sampled" else draw.sampled
    share = facts_of(sampled, parts.end_ids), facts_of(gold, parts.end_ids), [m for h in parts.memory for m in h.take_changes()]
    texts, gold_texts, changes = ([fact for s in column for fact in s] for column in zip(*gather_object([share]), strict=True))
    origins = Counter(text.origin for text in texts)
    lengths = [text.length for text in texts if text.origin != "dataset"]
    if parts.accelerator.is_main_process:
        line: dict[str, Any] = {"kind": "train", "step": state.step, **_finite(metrics)}
        if origins:
            line["origin"] = dict(sorted(origins.items()))
        if lengths:
            line["response_length"] = sum(lengths) / len(lengths)
        line |= text_metrics(texts)
        if policy := parts.policy.metrics():
            line["policy"] = policy
        parts.log.write(line)
        parts.progress.update(state.step, metrics)
    for change in dict.fromkeys(changes):
        parts.tell(Event(state.step, "out_of_memory", f"step {state.step}: {change}"))
    parts.collapse.observe(state.step, texts, gold_texts, metrics.get("kept_mass"))


def _validate(parts: Parts, state: TrainingState) -> dict[str, float]:
    """Score the student as it is, and tell log and policy."""
    scores = parts.validate()
    parts.policy.observe(scores["cross_entropy"])
    if parts.accelerator.is_main_process:
        parts.log.write({"kind": "validation", "step": state.step, **_finite(scores)})
        shown = [f"{metric.title} {metric.shown(scores[metric.name])}" for metric in parts.metrics]
        shown.append(f"cross entropy {scores['cross_entropy']:.3f}")
        parts.progress.note(f"step {state.step}: validation {', '.join(shown)}")
    return scores


def _choose(parts: Parts, settings: TrainingConfig, state: TrainingState) -> None:
    """Validate, and note whether this is the best student so far, and whether training is to stop."""
    started = time.perf_counter()
    scores = _validate(parts, state)
    by = next((metric for metric in parts.metrics if metric.name == settings.choose_by), None)
    score = -scores["cross_entropy"] if by is None else by.goodness(scores[by.name])
    if _is_best(score, scores["cross_entropy"], state):
        state.best_score, state.best_step = score, state.step
        state.best_cross_entropy = _finite(scores)["cross_entropy"]
    state.stopped = parts.early_stopping.stop(score)
    state.validation_due = False
    _count_cost(parts, state, time.perf_counter() - started)


def _is_best(score: float, cross_entropy: float, state: TrainingState) -> bool:
    """Whether a validation is better than the best so far: by score, then the lower cross entropy, then the later step."""
    if state.best_score is None or score != state.best_score:
        return state.best_score is None or score > state.best_score
    return state.best_cross_entropy is None or cross_entropy <= state.best_cross_entropy


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
                "collapse": parts.collapse.state_dict(),
                "memory": [size.state_dict() for size in parts.memory],
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
    parts.collapse.load_state_dict(found.state["collapse"])
    for size, held in zip(parts.memory, found.state["memory"], strict=True):
        size.load_state_dict(held)
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
