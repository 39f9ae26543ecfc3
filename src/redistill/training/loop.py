"""The training loop: get sequences, compute gradients, update, validate and save.

Validation and saving happen between updates.  The caller builds the objects that the loop uses (`Parts`).  The code of the loop
is the same for all distillation methods.

The coefficients of the loss terms are computed once per update, from the numbers of tokens and sequences of the global batch.
Therefore one process with four micro-batches has the same gradient as two processes with two micro-batches each.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from accelerate.utils import gather_object

from redistill.contracts import Batch, Draw
from redistill.data.collate import collate, empty_batch
from redistill.data.grouping import grouped, read_cost
from redistill.errors import Interrupted, ServerError
from redistill.models.recompute import recomputing
from redistill.processes import signals
from redistill.processes.memory import unless_out_of_memory
from redistill.randomness import torch_seed
from redistill.records import ACCEPTANCE, rate
from redistill.training.guards import Event, Update
from redistill.training.guards.collapse import KEPT, facts_of, text_metrics
from redistill.training.guards.events import without_nan
from redistill.training.guards.readings import read_again
from redistill.training.metrics import peak_bytes
from redistill.training.objective import Counts, averages, corpus_items, terms
from redistill.training.optimiser import OptimiserConfig, clip_gradients, set_learning_rates
from redistill.training.parts import Learner, Parts, TrainingState
from redistill.training.saving import save_checkpoint
from redistill.training.schedule import TrainingConfig

_FAULTS = "teacher rows that are not finite"  # a key of the terms' sums, which are added up over the processes


def train(parts: Parts, settings: TrainingConfig, optimiser: OptimiserConfig, state: TrainingState) -> TrainingState:
    """Train for the scheduled number of updates, or until early stopping.

    Args:
        parts: The objects that the loop uses, such as the student, the optimizer and the policy.
        settings: Which checkpoints are kept, and the metric that chooses the best one.
        optimiser: Learning rates and gradient clipping.
        state: State from which training starts or resumes; updated in place.

    Returns:
        `state`.

    Raises:
        Interrupted: a signal arrived.  All completed updates have been saved in a checkpoint; an incomplete update is
            discarded.
        TrainingError: a check of an update ended the run, for example because the loss is not finite.
        ServerError: a server failed in this process or in another one; the error is raised in all processes.  All completed
            updates have been saved in a checkpoint; an incomplete update is discarded.
    """
    saved = first = state.step
    try:
        if state.step == 0:
            _validate(parts, state)
        while state.validation_due or not _ends(parts, state):
            if not state.validation_due:
                with _compiling(parts, is_first=state.step == first):
                    _step(parts, optimiser, state)
            if state.validation_due:
                _choose(parts, settings, state)
            if _is_due(state.step, parts.schedule.evaluate_every, parts.schedule.save_every) or _ends(parts, state):
                with parts.output.progress.phase("writing"):
                    save_checkpoint(parts, settings, state)
                saved = state.step
    except (Interrupted, ServerError) as error:
        if isinstance(error, ServerError) and parts.accelerator.num_processes > 1 and not error.is_everywhere:
            raise  # an error outside of an update: the other processes would not join in the saving
        if state.step != saved:
            save_checkpoint(parts, settings, state)
        if state.step:
            parts.output.progress.note(f"stopped at step {state.step} of {parts.schedule.updates}, saved")
        raise
    return state


def _compiling(parts: Parts, *, is_first: bool) -> AbstractContextManager[None]:
    """Context in which the progress bar shows "compiling", for the first update."""
    compiles = is_first and parts.learner.student.is_compiled
    return parts.output.progress.phase("compiling", in_log=True) if compiles else nullcontext()


def _step(parts: Parts, optimiser: OptimiserConfig, state: TrainingState) -> None:
    """Get sequences from the policy, compute the gradient, make one update and log it.

    If a signal arrives or a server fails before the gradient is complete, the state of the policy is restored.  After that,
    signals are not checked until the update is complete.
    """
    learner = parts.learner
    started, before = time.perf_counter(), parts.policy.state_dict()
    logged = [(log, log.num_bytes()) for log in parts.output.policy_logs]
    if learner.teacher is not None:
        learner.teacher.faults()  # discards the faults that were counted in validation
    try:
        with signals.failing_together(ServerError):  # `gather` is the next collective operation after requests to servers
            whole = _draw(parts, state.step)
            draw, drawn = learner.objective.select(whole), time.perf_counter()
            batches, counts, sums = gradients(draw, parts, state.step)
    except (Interrupted, ServerError):
        parts.policy.load_state_dict(before)  # a buffer may have changed already
        for log, size in logged if parts.accelerator.is_main_process else ():
            log.truncate_after(state.step, size)  # its text will be generated again
        parts.output.meter.read()  # discards the counts: the text will be generated again
        parts.output.meter.read_requests()
        learner.optimizer.zero_grad(set_to_none=True)
        raise
    faults, norms = int(sums.pop(_FAULTS)), _clip(learner, optimiser.max_grad_norm)
    metrics = averages(learner.objective, counts, sums)
    rates = set_learning_rates(learner.optimizer, optimiser, state.step, parts.schedule.updates)
    samples, read = sorted({item.sequence.sample for item in draw.items}), partial(_read_again, parts, batches)
    update = Update(step=state.step + 1, metrics=metrics, norms=norms, teacher_rows=faults, samples=samples, read=read)
    metrics |= learner.curriculum.metrics(state.step)
    if parts.guards.update.allows(update):
        learner.optimizer.step()
        learner.curriculum.observe(state.step, metrics.get("divergence"))
    elif faults:
        parts.policy.load_state_dict(before)  # discards text that was made with non-finite teacher logits
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.teacher is not None:
        learner.teacher.release()
    state.step += 1
    state.validation_due = _is_due(state.step, parts.schedule.evaluate_every) or state.step == parts.schedule.updates
    seconds = time.perf_counter() - started
    metrics |= {**norms, **rates, "seconds": seconds, "draw_seconds": drawn - started}
    if (speed := rate(counts.tokens, seconds)) is not None:
        metrics["tokens_per_s"] = speed
    state.trained_tokens += int(counts.tokens)
    _log_update(parts, state, metrics, draw, whole)
    _count_cost(parts, state, time.perf_counter() - started)


def _draw(parts: Parts, step: int) -> Draw:
    """Pass the student's weights to the engine, and return the sequences of an update."""
    student = parts.learner.student
    with parts.output.progress.phase("generating"), parts.learner.placement.unsharded(student):
        parts.engine.sync(student.model, step)
        return parts.policy.draw(step)


def cut(draw: Draw, micro_batch_size: int | None, parts: Parts) -> list[Batch]:
    """Return this process's sequences as micro-batches of similar lengths.

    A micro-batch has at most `micro_batch_size` gold sequences and at most `micro_batch_size` sampled sequences.  If
    `micro_batch_size` is None, the number of tokens including padding is limited instead (see `grouping.grouped`), by the cost
    of the device and by the memory of an accelerator.
    """
    device, objective = parts.accelerator.device, parts.learner.objective
    span_config = objective.span if objective.uses_spans else None
    corpus = () if objective.pretraining is None else corpus_items(draw, objective.pretraining)
    cost, collated = read_cost(device).limited(parts.learner.max_tokens), partial(collate, pad_id=parts.pad_id, device=device)
    return [
        *(collated(items, role="pretraining") for items in grouped(corpus, micro_batch_size, cost)),
        *(collated(items, span_config=span_config) for items in grouped(draw.items, micro_batch_size, cost)),
    ]


def filled_up(batches: list[Batch], parts: Parts) -> list[Batch]:
    """Return `batches` plus empty ones: all processes get the same number of batches.

    This is needed only if forward and backward passes are collective operations.  Otherwise, `batches` is returned
    unchanged.
    """
    if not parts.learner.placement.passes_communicate:
        return batches
    most = max(signals.gather([len(batches)]))
    empty = empty_batch(pad_id=parts.pad_id, device=parts.accelerator.device)
    return [*batches, *[empty] * (most - len(batches))]


def global_counts(batches: Sequence[Batch]) -> Counts:
    """Count the tokens and sequences of the global batch, over all processes."""
    return Counts.total(signals.gather([Counts.of(batches)]))


def gradients(draw: Draw, parts: Parts, step: int) -> tuple[list[Batch], Counts, dict[str, float]]:
    """Compute the gradient of the objective, in micro-batches.

    The gradient is accumulated in the attribute `grad` of the parameters.  If memory runs out on one process, all processes
    retry with half the micro-batch size, which does not change the gradient: the coefficients are computed from the global
    batch.

    Returns:
        This process's micro-batches, the counts of the global batch, and the sum of each loss term over the global batch, by
        name of the term.
    """
    learner, micro_batch = parts.learner, parts.guards.micro_batch
    if learner.teacher is not None and learner.objective.uses_teacher:
        learner.teacher.prepare([*draw.with_role("distillation"), *draw.corpus])
    while True:
        # Seeded for each attempt, so that its dropout is that of a run that started with this micro-batch size.
        torch.manual_seed(torch_seed(parts.seed, "dropout", step, parts.accelerator.process_index))
        batches = filled_up(cut(draw, micro_batch.size, parts), parts)
        counts = global_counts(batches)
        sums = accumulate_gradients(batches, counts, parts, learner.curriculum.progress(step))
        if sums is not None:
            return batches, counts, sums
        learner.optimizer.zero_grad(set_to_none=True)
        # The number of sampled or of gold sequences, whichever is larger; `training.micro_batch_size` limits each of them.
        sizes = (max(batch.num_sampled, len(batch.sequence_N[batch.sft_N].unique())) for batch in batches)
        micro_batch.halve(max(gather_object([max(sizes, default=1)])))


def accumulate_gradients(
    batches: Sequence[Batch], counts: Counts, parts: Parts, progress: float = 0.0
) -> dict[str, float] | None:
    """Compute the gradient of the global batch from micro-batches of all processes.

    `progress` is the training progress in [0, 1], which is passed to the divergence.

    Returns the sum of each loss term over the global batch, by name, or None if memory ran out on any process.

    The gradients of all processes are summed after the last backward pass, and not by hooks during the passes.  With hooks,
    all other processes would wait for a process that ran out of memory.  If parameters are sharded, the passes themselves
    are collective operations, and the run ends when one process runs out of memory.
    """
    learner, backward = parts.learner, partial(_backward, batches, counts, parts, progress)
    gathered = signals.gather([backward() if learner.placement.passes_communicate else unless_out_of_memory(backward)])
    found = [part for part in gathered if part is not None]
    if len(found) < len(gathered):
        return None
    learner.placement.reduce(learner.student.parameters())
    return {name: sum(part.get(name, 0.0) for part in found) for name in sorted({name for part in found for name in part})}


def _backward(batches: Sequence[Batch], counts: Counts, parts: Parts, progress: float) -> dict[str, float]:
    """Run forward and backward passes of this process's micro-batches.

    Returns the sum of each loss term over these micro-batches, by name.
    """
    learner, objective, teacher = parts.learner, parts.learner.objective, parts.learner.teacher
    learner.student.train(objective.policy_gradient is None)
    uses_teacher = teacher is not None and objective.uses_teacher
    sums: dict[str, torch.Tensor] = {}
    with learner.frozen.root() if uses_teacher else nullcontext():  # the vocabulary pass uses the teacher's head
        for batch in batches:
            if not learner.placement.passes_communicate:  # otherwise the `gather` after the passes reports signals
                signals.poll()
            with learner.frozen.passes() if uses_teacher else nullcontext():
                target = teacher.rows(batch) if teacher is not None and uses_teacher and batch.num_sampled else None
            with parts.accelerator.autocast(), recomputing(learner.student):
                own = terms(objective, counts, batch, learner.divergence, progress)
                total, batch_sums = learner.student(batch, target, own)
            parts.accelerator.backward(total)
            for name, value in batch_sums.items():
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    faults = torch.as_tensor(0 if teacher is None else teacher.faults(), device=parts.accelerator.device)
    values = torch.stack([*sums.values(), faults.double()]).tolist()  # the only synchronisation with the device
    return dict(zip([*sums, _FAULTS], values, strict=True))


def _clip(learner: Learner, max_norm: float) -> dict[str, float]:
    """Clip the gradients of the student and of the clip network in place, separately.

    The clip network is the network of DAC-KL that predicts which classes are kept.  Returns the gradient norms before clipping.
    """
    norms = {"grad_norm": clip_gradients(learner.student.model.parameters(), max_norm)}
    if learner.clip_parameters:
        norms["clip_network_grad_norm"] = clip_gradients(learner.clip_parameters, max_norm)
    values = torch.stack(list(norms.values())).tolist()  # one synchronisation with the device
    return dict(zip(norms, values, strict=True))


def _read_again(parts: Parts, batches: Sequence[Batch]) -> list[Mapping[str, object]]:
    """Return statistics of the logits of both models, one mapping per micro-batch."""
    learner = parts.learner
    with learner.placement.unsharded(learner.student), learner.frozen.passes():
        teacher = learner.teacher if learner.objective.uses_teacher else None
        return read_again(batches, learner.student, teacher, parts.accelerator.autocast)


def _log_update(parts: Parts, state: TrainingState, metrics: dict[str, float], draw: Draw, whole: Draw) -> None:
    """Log an update and its events, and check the generated text for a collapse.

    `whole` has all sequences that the policy returned; `draw` has only those that the objective uses.
    """
    sampled = draw.with_role("sft" if parts.learner.objective.sft_on == "sampled" else "distillation")
    changes_here = [change for size in parts.guards.sizes for change in size.take_changes()]
    sent_here = [parts.output.meter.read_requests()]
    mine = facts_of(sampled, parts.end_ids), facts_of(whole.with_role("sft"), parts.end_ids), changes_here, sent_here
    columns = zip(*gather_object([mine]), strict=True)
    texts, gold_texts, changes, sent = ([fact for s in column for fact in s] for column in columns)
    requests, tokens = map(sum, zip(*sent, strict=True))
    state.teacher_requests, state.teacher_tokens = state.teacher_requests + requests, state.teacher_tokens + tokens
    origins = Counter(text.origin for text in texts)
    lengths = [text.length for text in texts if text.origin != "dataset"]
    if parts.accelerator.is_main_process:
        line = {"kind": "train", "step": state.step, **without_nan(metrics)}
        if origins:
            line["origin"] = dict(sorted(origins.items()))
        if lengths:
            line["response_length"] = sum(lengths) / len(lengths)
        if requests:
            line |= {"teacher_requests": requests, "teacher_tokens": tokens}
        line |= text_metrics(texts)
        if policy := parts.policy.metrics():
            line["policy"] = policy
        parts.output.log.write(line)
        parts.output.progress.update(state.step, metrics)
    for change in dict.fromkeys(changes):
        parts.guards.report_event(Event(state.step, "out_of_memory", f"step {state.step}: {change}"))
    kept_names = KEPT if parts.learner.objective.trains_clip_network else ()
    kept = {name: metrics[name] for name in kept_names if name in metrics}
    parts.guards.collapse.observe(state.step, texts, gold_texts, kept)


def _validate(parts: Parts, state: TrainingState) -> dict[str, float]:
    """Validate the student; log and return its scores.

    The cross entropy is also passed to the policy, which may adapt to it.
    """
    learner = parts.learner
    with parts.output.progress.phase("validating"), learner.placement.unsharded(learner.student), learner.frozen.passes():
        scores = parts.validate()
    parts.policy.observe(scores["cross_entropy"])
    if parts.accelerator.is_main_process:
        parts.output.log.write({"kind": "validation", "step": state.step, **without_nan(scores)})
        shown = [f"{metric.title} {metric.shown(scores[metric.name])}" for metric in parts.metrics]
        shown += [f"{name.replace('_', ' ')} {scores[name]:.3f}" for name in ("cross_entropy", "acceptance") if name in scores]
        parts.output.progress.note(f"step {state.step}: validation {', '.join(shown)}")
    return scores


def _choose(parts: Parts, settings: TrainingConfig, state: TrainingState) -> None:
    """Validate the student; store the best score so far and whether training stops."""
    started = time.perf_counter()
    scores = _validate(parts, state)
    by = next((metric for metric in parts.metrics if metric.name == settings.choose_by), None)
    if by is None:
        score = scores[settings.choose_by] if settings.choose_by in ACCEPTANCE else -scores["cross_entropy"]
    else:
        score = by.goodness(scores[by.name])
    if _is_best(score, scores["cross_entropy"], state):
        state.best_score, state.best_step = score, state.step
        state.best_cross_entropy = scores["cross_entropy"] if math.isfinite(scores["cross_entropy"]) else None
    state.stopped = parts.guards.early_stopping.stop(score)
    state.validation_due = False
    _count_cost(parts, state, time.perf_counter() - started)


def _is_best(score: float, cross_entropy: float, state: TrainingState) -> bool:
    """Return whether the current student is the best of all validations so far.

    Of two equal scores, the one with the lower cross entropy is better.  If the cross entropies are equal too, the later is
    better.
    """
    if state.best_score is None or score != state.best_score:
        return state.best_score is None or score > state.best_score
    return state.best_cross_entropy is None or cross_entropy <= state.best_cross_entropy


def _count_cost(parts: Parts, state: TrainingState, seconds: float) -> None:
    costs = gather_object([(parts.output.meter.read(), peak_bytes(parts.accelerator.device))])
    state.generated_tokens += sum(generated for generated, _ in costs)
    state.peak_bytes = max(state.peak_bytes, *(peak for _, peak in costs))
    state.seconds += max(0.0, seconds)  # negative if the clock was set back


def _is_due(step: int, *intervals: int) -> bool:
    return any(every > 0 and step % every == 0 for every in intervals)


def _ends(parts: Parts, state: TrainingState) -> bool:
    return state.stopped or state.step == parts.schedule.updates
