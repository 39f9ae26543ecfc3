"""The loop: draw, count, read, step, log, validate, save - only ever at a step boundary.

It builds nothing and knows no method: it is given built parts.  Coefficients are set once a step from the counts of the whole
global batch, so that one process with four micro-batches and two with two have the same gradient.
"""

import math
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object

from redistill.contracts import Batch, Draw, TokenSequence
from redistill.data.collate import collate, empty_batch
from redistill.data.grouping import grouped, read_cost
from redistill.errors import Interrupted
from redistill.processes import signals
from redistill.processes.memory import unless_out_of_memory
from redistill.randomness import torch_seed
from redistill.training.guards import Event, Update, facts_of, read_again, text_metrics
from redistill.training.metrics import peak_bytes
from redistill.training.objective import Counts, averages, corpus_items, terms
from redistill.training.optimiser import OptimiserConfig, clip_gradients, set_learning_rates
from redistill.training.parts import Learner, Parts, TrainingState
from redistill.training.saving import save_checkpoint
from redistill.training.schedule import TrainingConfig

_FAULTS = "teacher rows that are not finite"  # beside the sums of the terms, on their way through the processes


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
            parts.output.progress.note(f"stopped at step {state.step} of {parts.schedule.updates}, which is saved")
        raise
    return state


def _step(parts: Parts, optimiser: OptimiserConfig, state: TrainingState) -> None:
    """Make one update and log it, or be interrupted and leave everything as it was.

    Once the gradient is there no process polls for signals any more.
    """
    learner = parts.learner
    started, before = time.perf_counter(), parts.policy.state_dict()
    if learner.teacher is not None:
        learner.teacher.faults()  # those of validation do not belong to this update
    try:
        whole = _draw(parts, state.step)
        draw, drawn = learner.objective.select(whole), time.perf_counter()
        batches, counts, sums = gradients(draw, parts, state.step)
    except Interrupted:
        parts.policy.load_state_dict(before)  # a buffer may have grown already
        parts.output.meter.read()  # the text will be generated again
        learner.optimizer.zero_grad(set_to_none=True)
        raise
    faults, norms = int(sums.pop(_FAULTS)), _clip(learner, optimiser.max_grad_norm)
    metrics = averages(learner.objective, counts, sums)
    rates = set_learning_rates(learner.optimizer, optimiser, state.step, parts.schedule.updates)
    if parts.guards.update.allows(_update(parts, state.step + 1, draw, batches, metrics, norms, faults)):
        learner.optimizer.step()
    elif faults:
        parts.policy.load_state_dict(before)  # no text stays that such a teacher has had a part in
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.teacher is not None:
        learner.teacher.release()
    state.step += 1
    state.validation_due = _is_due(state.step, parts.schedule.evaluate_every) or state.step == parts.schedule.updates
    seconds = time.perf_counter() - started
    metrics |= {**norms, **rates, "tokens_per_s": counts.tokens / seconds, "seconds": seconds}
    metrics["draw_seconds"] = drawn - started
    state.trained_tokens += int(counts.tokens)
    _log_update(parts, state, metrics, draw, whole.with_role("sft"))
    _count_cost(parts, state, time.perf_counter() - started)


def _draw(parts: Parts, step: int) -> Draw:
    """The step's sequences, from an engine that has the student's present weights."""
    student = parts.learner.student
    with parts.learner.placement.unsharded(student):
        parts.engine.sync(student.model, step)
        return parts.policy.draw(step)


def cut(draw: Draw, micro_batch_size: int | None, parts: Parts) -> list[Batch]:
    """A process's part of the draw as micro-batches of sequences of similar length; see `grouping.grouped`."""
    device, objective = parts.accelerator.device, parts.learner.objective
    span_config = objective.span if objective.uses_spans else None
    place: dict[str, Any] = {"pad_id": parts.pad_id, "device": device}
    corpus = () if objective.pretraining is None else corpus_items(draw, objective.pretraining)
    cost = read_cost(device)
    return [
        *(collate(items, role="pretraining", **place) for items in grouped(corpus, micro_batch_size, cost)),
        *(collate(items, span_config=span_config, **place) for items in grouped(draw.items, micro_batch_size, cost)),
    ]


def filled_up(batches: list[Batch], parts: Parts) -> list[Batch]:
    """The micro-batches, and empty ones behind them, so that all processes make the same number of passes if they must."""
    if not parts.learner.placement.passes_communicate:
        return batches
    most = max(signals.gather([len(batches)]))
    empty = empty_batch(pad_id=parts.pad_id, device=parts.accelerator.device)
    return [*batches, *[empty] * (most - len(batches))]


def global_counts(batches: Sequence[Batch]) -> Counts:
    """The counts of the whole global batch: all micro-batches of all processes."""
    return Counts.total(signals.gather([Counts.of(batches)]))


def gradients(draw: Draw, parts: Parts, step: int) -> tuple[list[Batch], Counts, dict[str, float]]:
    """The gradient of the global objective, in micro-batches that fit into every process's memory, with counts and sums.

    Where memory runs out on one process, all retry with half the micro-batch.  Coefficients come from the global batch, so the
    gradient is the same.
    """
    learner, micro_batch = parts.learner, parts.guards.micro_batch
    if learner.teacher is not None and learner.objective.uses_teacher:
        learner.teacher.prepare([*draw.with_role("distillation"), *draw.corpus])
    while True:
        # For each attempt, so that it has the dropout of a run that began with its micro-batches.
        torch.manual_seed(torch_seed(parts.seed, "dropout", step, parts.accelerator.process_index))
        batches = filled_up(cut(draw, micro_batch.size, parts), parts)
        counts = global_counts(batches)
        sums = accumulate_gradients(batches, counts, parts)
        if sums is not None:
            return batches, counts, sums
        learner.optimizer.zero_grad(set_to_none=True)
        micro_batch.halve(max(gather_object([max(map(_most_of_a_role, batches), default=1)])))


def accumulate_gradients(batches: Sequence[Batch], counts: Counts, parts: Parts) -> dict[str, float] | None:
    """Each term's sum over the global batch, its gradient in place; None where memory ran out on any process.

    Replicas are joined here and not by hooks of a backward pass, which would leave them waiting for one that has run out.
    Where passes communicate, a process that runs out of memory ends, and the others with it.
    """
    learner, backward = parts.learner, partial(_backward, batches, counts, parts)
    gathered = signals.gather([backward() if learner.placement.passes_communicate else unless_out_of_memory(backward)])
    if any(share is None for share in gathered):
        return None
    learner.placement.reduce(learner.student.parameters())
    return {name: sum(share.get(name, 0.0) for share in gathered) for name in sorted({n for s in gathered for n in s})}


def _backward(batches: Sequence[Batch], counts: Counts, parts: Parts) -> dict[str, float]:
    """This process's part of the gradient, and of the terms' sums."""
    learner = parts.learner
    objective, teacher = learner.objective, learner.teacher
    learner.student.train(objective.policy_gradient is None)
    sums: dict[str, torch.Tensor] = {}
    for batch in batches:
        if not learner.placement.passes_communicate:  # else none may leave here; all do at the `gather` behind the passes
            signals.poll()
        target = teacher.rows(batch) if teacher is not None and objective.uses_teacher and batch.num_sampled else None
        with parts.accelerator.autocast():
            total, batch_sums = learner.student(batch, target, terms(objective, counts, batch, learner.divergence))
        parts.accelerator.backward(total)
        for name, value in batch_sums.items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    values = torch.stack(list(sums.values())).tolist() if sums else []  # the one place that waits for the device
    return {**dict(zip(sums, values, strict=True)), _FAULTS: 0 if teacher is None else teacher.faults()}


def _most_of_a_role(batch: Batch) -> int:
    """The larger of its numbers of sequences by role, which `training.micro_batch_size` limits."""
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
    learner = parts.learner

    def read() -> list[dict[str, Any]]:
        teacher = learner.teacher if learner.objective.uses_teacher else None
        with learner.placement.unsharded(learner.student):
            return read_again(batches, learner.student, teacher, parts.accelerator.autocast)

    return Update(step=step, metrics=metrics, norms=norms, teacher_rows=faults, samples=_samples(draw), read=read)


def _clip(learner: Learner, max_norm: float) -> dict[str, float]:
    """Clip the student's gradient and the clip network's apart; returns both norms before clipping."""
    norms = {"grad_norm": clip_gradients(learner.student.model.parameters(), max_norm)}
    if learner.clip_parameters:
        norms["clip_network_grad_norm"] = clip_gradients(learner.clip_parameters, max_norm)
    return norms


def _log_update(
    parts: Parts, state: TrainingState, metrics: dict[str, float], draw: Draw, gold: Sequence[TokenSequence]
) -> None:
    sampled = draw.with_role("sft" if parts.learner.objective.sft_on == "sampled" else "distillation")
    changes_here = [change for size in parts.guards.sizes for change in size.take_changes()]
    share = facts_of(sampled, parts.end_ids), facts_of(gold, parts.end_ids), changes_here
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
        parts.output.log.write(line)
        parts.output.progress.update(state.step, metrics)
    for change in dict.fromkeys(changes):
        parts.guards.tell(Event(state.step, "out_of_memory", f"step {state.step}: {change}"))
    parts.guards.collapse.observe(state.step, texts, gold_texts, metrics.get("kept_mass"))


def _validate(parts: Parts, state: TrainingState) -> dict[str, float]:
    """Score the student as it is, and tell log and policy."""
    with parts.learner.placement.unsharded(parts.learner.student):
        scores = parts.validate()
    parts.policy.observe(scores["cross_entropy"])
    if parts.accelerator.is_main_process:
        parts.output.log.write({"kind": "validation", "step": state.step, **_finite(scores)})
        shown = [f"{metric.title} {metric.shown(scores[metric.name])}" for metric in parts.metrics]
        shown.append(f"cross entropy {scores['cross_entropy']:.3f}")
        parts.output.progress.note(f"step {state.step}: validation {', '.join(shown)}")
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
    state.stopped = parts.guards.early_stopping.stop(score)
    state.validation_due = False
    _count_cost(parts, state, time.perf_counter() - started)


def _is_best(score: float, cross_entropy: float, state: TrainingState) -> bool:
    """Whether a validation is better than the best so far: by score, then the lower cross entropy, then the later step."""
    if state.best_score is None or score != state.best_score:
        return state.best_score is None or score > state.best_score
    return state.best_cross_entropy is None or cross_entropy <= state.best_cross_entropy


def _count_cost(parts: Parts, state: TrainingState, seconds: float) -> None:
    shares = gather_object([(parts.output.meter.read(), peak_bytes(parts.accelerator.device))])
    state.generated_tokens += sum(generated for generated, _ in shares)
    state.peak_bytes = max(state.peak_bytes, *(peak for _, peak in shares))
    state.seconds += seconds


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _ends(parts: Parts, state: TrainingState) -> bool:
    return state.stopped or state.step == parts.schedule.updates


def _samples(draw: Draw) -> list[int]:
    return sorted({item.sequence.sample for item in draw.items})


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what is not finite is logged as null."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
