"""Checks before training that the disk has enough space for the files of a run."""

from dataclasses import dataclass
from pathlib import Path

import torch

from redistill.models.families import unwrapped
from redistill.models.lora import Export, has_adapters, trainable_state
from redistill.models.quantised import num_weights
from redistill.models.student import StudentModule
from redistill.storage import files
from redistill.storage import tensors as tensor_files
from redistill.training import checkpoint
from redistill.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Space:
    """Disk space of the checkpoints of a run and of its exported student.

    Logs and generated texts are not counted, since they have only a few megabytes.

    Args:
        checkpoint_bytes: Size of one checkpoint in bytes.
        while_saving: Largest number of checkpoints that are on disk at the same time: a new checkpoint is written before an
            older one is removed.
        afterwards: Number of checkpoints that are kept at the end of training, including the best one.
        student_bytes: Size of the exported student's weights in bytes.
    """

    checkpoint_bytes: int
    while_saving: int
    afterwards: int
    student_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Largest total size in bytes at any time of the run.

        The peak is reached either when a checkpoint is saved, or when the student is exported while the checkpoints are
        still on disk.
        """
        return max(self.while_saving * self.checkpoint_bytes, self.afterwards * self.checkpoint_bytes + self.student_bytes)


def needed_space(student: StudentModule, schedule: Schedule, *, keep: int, export: Export) -> Space:
    """Compute the disk space of a run from the shapes of the student's parameters.

    The state of a policy, such as a replay buffer, is not counted: it is small compared with the weights of a real model.

    Args:
        student: The student in training, with its adapters and its clip network (the network that predicts the clipping
            interval of DAC-KL), if it has them.
        schedule: Number of updates of the run, between two validations, and between two checkpoints.
        keep: Number of newest checkpoints to keep.  If the run validates during training, the checkpoint with the best
            validation score is kept as well.
        export: How LoRA adapters are exported: merged into the weights of the model ("merged"), or without the model
            ("adapter").
    """
    every = [length for length in (schedule.evaluate_every, schedule.save_every) if length]
    saves = 1 + sum(any(step % length == 0 for length in every) for step in range(1, schedule.updates))
    kept = keep + (schedule.evaluate_every > 0)
    return Space(
        checkpoint_bytes=_checkpoint_bytes(student),
        while_saving=min(saves, kept + 1),
        afterwards=min(saves, kept),
        student_bytes=_student_bytes(student.model, export),
    )


def check_space(folder: Path, space: Space) -> None:
    """Check that the disk has enough free space for a run.

    Existing checkpoints of the run count as free space, because the run replaces them.  An existing exported student does not,
    because it is removed only after the new one has been written.

    Args:
        folder: The run folder, which exists.
        space: The disk space that the run needs.

    Raises:
        DiskFullError: there is too little free space; the message has the free and the needed size.
    """
    existing = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    needed = space.peak_bytes - sum(path.stat().st_size for path in existing)
    free = files.disk.free_bytes(folder)
    if free < needed:
        fault = f"{folder}: {megabytes(free)} are free and {megabytes(needed)} are needed"
        each, student = megabytes(space.checkpoint_bytes), megabytes(space.student_bytes)
        parts = f"{space.while_saving} checkpoints of {each} at once, then a student of {student}"
        raise files.DiskFullError(f"{fault} ({parts}); free space, lower training.keep, or choose another output folder")


def _checkpoint_bytes(student: StudentModule) -> int:
    """Return the size of a checkpoint in bytes: trained weights and state of AdamW."""
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    moments = {
        f"{moment}/{name}": torch.empty_like(parameter, device="meta")  # not shared: shared tensors are counted once
        for moment in ("exp_avg", "exp_avg_sq")
        for name, parameter in trained.items()
    }
    steps = {f"step/{name}": torch.empty((), device="meta") for name in trained}
    tensors = {"model": trainable_state(student.model), "optimizer": moments | steps}
    if student.clip_network is not None:
        tensors["clip_network"] = student.clip_network.state_dict()
    names = {"groups": list(trained), "scalars": {name: {} for name in trained}, "tensors": list(tensors["optimizer"])}
    return checkpoint.num_bytes(tensors, {"optimizer": names})


def _student_bytes(model: torch.nn.Module, export: Export) -> int:
    if not has_adapters(model) or export == "adapter":
        return tensor_files.num_bytes(trainable_state(model))
    dtype: torch.dtype = unwrapped(model).dtype  # the dtype in which quantised weights are exported
    base = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return sum(num_weights(weight) * (weight.dtype if weight.is_floating_point() else dtype).itemsize for weight in base)


def megabytes(num_bytes: int) -> str:
    """Return a size in megabytes, for messages."""
    return f"{num_bytes / 1e6:,.1f} MB"
