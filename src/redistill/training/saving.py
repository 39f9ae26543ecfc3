"""Saves the state of training as a checkpoint, and restores it.

`redistill.training.checkpoint` defines the files.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast, get_type_hints

from redistill.errors import CheckpointError, RedistillError, one_line
from redistill.models.lora import load_trainable_state, trainable_state
from redistill.models.student import StudentModule
from redistill.policies.state import StoredState, restore, store
from redistill.processes.memory import is_out_of_memory
from redistill.processes.placement import full
from redistill.records import Json
from redistill.storage.redaction import plain_line
from redistill.training import checkpoint
from redistill.training.metrics import MetricsLog
from redistill.training.parts import Parts, TrainingState
from redistill.training.schedule import TrainingConfig

_MAX_REASON = 200  # characters; a reason may quote the state


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
                "updates": parts.schedule.updates,
                "optimizer": optimizer_state,
                "policy": policy.values,
                "policy_entries": policy.entries,
                "guard": parts.guards.update.state_dict(),
                "collapse": parts.guards.collapse.state_dict(),
                "curriculum": learner.curriculum.state_dict(),
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

    The parts may be partly restored if an error is raised.

    Raises:
        CheckpointError: `found` lacks tensors or values, has values of wrong types, or belongs to a run with other
            settings.
    """
    try:
        _restore_parts(parts, found)
        return _training_state(found.state["training"])
    except RedistillError:
        raise
    except Exception as error:  # each part, which may be external code, raises its own exceptions for a value of a wrong type
        if is_out_of_memory(error):
            raise
        raise _unfit(found, plain_line(one_line(error))[:_MAX_REASON]) from error


def log_size(found: checkpoint.Checkpoint, log: MetricsLog) -> int | None:
    """Return the size of `log` in bytes at the time when `found` was saved.

    Return None if the checkpoint does not contain the size, as in commit 3d89816 and earlier versions.

    Raises:
        CheckpointError: the size is not a whole number, or is negative.
    """
    sizes = found.state.get("log_bytes", {})
    size = sizes.get(log.path.name) if isinstance(sizes, dict) else sizes
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise _unfit(found, f"the size of {log.path.name} is not a whole number")
    return size


def planned_updates(found: checkpoint.Checkpoint) -> int | None:
    """Return the length, in updates, of the run that saved a checkpoint.

    Return None if the checkpoint does not contain the length, as in earlier versions.

    Raises:
        CheckpointError: the length is not a whole number, or is below 1.
    """
    updates = found.state.get("updates")
    if updates is not None and (not isinstance(updates, int) or isinstance(updates, bool) or updates < 1):
        raise _unfit(found, "its number of updates is not a whole number")
    return updates


def _unfit(found: checkpoint.Checkpoint, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{plain_line(str(found.folder))}: its state cannot be restored ({reason}); remove this checkpoint, or use a new folder"
    )


def load_weights(student: StudentModule, found: checkpoint.Checkpoint) -> None:
    """Load the weights of a checkpoint.

    These are the weights of the student, and those of DAC-KL's network if there is one.

    Args:
        student: The student, changed in place.
        found: The checkpoint.
    """
    load_trainable_state(student.model, found.tensors["model"])
    if student.clip_network is not None and "clip_network" in found.tensors:
        load_trainable_state(student.clip_network, found.tensors["clip_network"])


def _restore_parts(parts: Parts, found: checkpoint.Checkpoint) -> None:
    learner, student, guards = parts.learner, parts.learner.student, parts.guards
    own = {
        "policy": store(parts.policy.state_dict()).values,
        "guard": guards.update.state_dict(),
        "collapse": guards.collapse.state_dict(),
        "early_stopping": guards.early_stopping.state_dict(),
        "curriculum": learner.curriculum.state_dict(),
    }
    curriculum = found.state.get("curriculum", {})  # checkpoints of earlier versions lack this state
    for part, value in own.items():
        _check_types(curriculum if part == "curriculum" else found.state[part], value, part)
    load_weights(student, found)
    named = dict(student.named_parameters())
    checkpoint.restore_optimizer(learner.optimizer, named, found.tensors["optimizer"], found.state["optimizer"])
    parts.policy.load_state_dict(restore(_policy_state(found)))
    guards.update.load_state_dict(found.state["guard"])
    guards.collapse.load_state_dict(found.state["collapse"])
    for size, held in zip(guards.sizes, found.state["memory"], strict=True):
        _check_types(held, size.state_dict(), "memory")
        size.load_state_dict(held)
    guards.early_stopping.load_state_dict(found.state["early_stopping"])
    learner.curriculum.load_state_dict(curriculum)


def _training_state(values: Mapping[str, Json]) -> TrainingState:
    state = TrainingState(**cast("dict[str, Any]", values))
    for name, expected in get_type_hints(TrainingState).items():
        value = getattr(state, name)
        is_number = isinstance(value, int) and not isinstance(value, bool) and isinstance(1.0, expected)
        if not is_number and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
            raise TypeError(f"training.{name} has a value of a wrong type")
    return state


def _check_types(stored: object, own: object, path: str) -> None:
    """Check that stored values have the types of the values of this run.

    Integers and floats count as one type. If the value in this run is None, the stored value may be any scalar. The contents of
    a list or dict may differ.

    Raises:
        TypeError: a stored value has another type.
    """
    if isinstance(own, Mapping) and isinstance(stored, Mapping):
        for name in own.keys() & stored.keys():
            _check_types(stored[name], own[name], f"{path}.{name}")
    if isinstance(own, list | Mapping):
        is_allowed = stored is None or isinstance(stored, list | Mapping)  # None: the value is stored as tensors
    else:
        is_allowed = _type(stored) is _type(own) or (own is None and not isinstance(stored, list | Mapping))
    if not is_allowed:
        raise TypeError(f"{path} has a value of a wrong type")


def _type(value: object) -> type:
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


def _policy_state(found: checkpoint.Checkpoint) -> StoredState:
    """Read the policy's state from a checkpoint.

    In checkpoints of commit 3d89816 and earlier versions, the state consists of JSON values without tensors.
    """
    tensors, entries = found.tensors.get("policy", {}), found.state.get("policy_entries", [])
    return StoredState(tensors=tensors, values=found.state["policy"], entries=entries)
