"""Saves the state of training as a checkpoint, and restores it.

`redistill.training.checkpoint` defines the files.
"""

from collections.abc import Mapping
from dataclasses import asdict

from redistill.models.lora import load_trainable_state, trainable_state
from redistill.policies.state import StoredState, restore, store
from redistill.processes.placement import full
from redistill.training import checkpoint
from redistill.training.metrics import MetricsLog
from redistill.training.parts import Parts, TrainingState
from redistill.training.schedule import TrainingConfig


def save_checkpoint(parts: Parts, settings: TrainingConfig, state: TrainingState) -> None:
    """Save a checkpoint with everything that is needed to resume the run.

    Every process must call this function: all processes gather the state, and the main process writes it.
    """
    learner, student = parts.learner, parts.learner.student
    optimizer, optimizer_state = checkpoint.optimizer_tensors(learner.optimizer, dict(student.named_parameters()))
    tensors = {"model": full(trainable_state(student.model)), "optimizer": full(optimizer)}
    if student.clip_network is not None and learner.clip_parameters:
        tensors["clip_network"] = learner.placement.state(student.clip_network)
    if parts.accelerator.is_main_process:
        policy = store(parts.policy.state_dict())
        checkpoint.save(
            parts.output.checkpoints,
            state.step,
            tensors=tensors | ({"policy": policy.tensors} if policy.tensors else {}),
            state={
                "training": asdict(state),
                "optimizer": optimizer_state,
                "policy": policy.values,
                "policy_entries": policy.entries,
                "guard": parts.guards.update.state_dict(),
                "collapse": parts.guards.collapse.state_dict(),
                "memory": [size.state_dict() for size in parts.guards.sizes],
                "early_stopping": parts.guards.early_stopping.state_dict(),
                "log_bytes": {log.path.name: log.num_bytes() for log in parts.output.logs},
            },
            keep=settings.keep,
            protect=() if state.best_step is None else (state.best_step,),
        )
    parts.accelerator.wait_for_everyone()


def restore_checkpoint(parts: Parts, found: checkpoint.Checkpoint) -> TrainingState:
    """Restore `parts` in place from a checkpoint; return the state of training.

    Raises:
        CheckpointError: `found` lacks tensors or values, or its optimizer state does not fit this run.
    """
    learner, student, guards = parts.learner, parts.learner.student, parts.guards
    load_trainable_state(student.model, found.tensors["model"])
    if student.clip_network is not None and learner.clip_parameters:
        load_trainable_state(student.clip_network, found.tensors["clip_network"])
    named = dict(student.named_parameters())
    checkpoint.restore_optimizer(learner.optimizer, named, found.tensors["optimizer"], found.state["optimizer"])
    parts.policy.load_state_dict(restore(_policy_state(found)))
    guards.update.load_state_dict(found.state["guard"])
    guards.collapse.load_state_dict(found.state["collapse"])
    for size, held in zip(guards.sizes, found.state["memory"], strict=True):
        size.load_state_dict(held)
    guards.early_stopping.load_state_dict(found.state["early_stopping"])
    return TrainingState(**found.state["training"])


def log_size(found: checkpoint.Checkpoint, log: MetricsLog) -> int | None:
    """Return the size of `log` in bytes at the time when `found` was saved.

    Return None if the checkpoint does not contain the size, as in commit 3d89816 and earlier versions.
    """
    sizes: Mapping[str, int] = found.state.get("log_bytes", {})
    return sizes.get(log.path.name)


def _policy_state(found: checkpoint.Checkpoint) -> StoredState:
    """Read the policy's state from a checkpoint.

    In checkpoints of commit 3d89816 and earlier versions, it consists of JSON values without tensors.
    """
    tensors, entries = found.tensors.get("policy", {}), found.state.get("policy_entries", [])
    return StoredState(tensors=tensors, values=found.state["policy"], entries=entries)
