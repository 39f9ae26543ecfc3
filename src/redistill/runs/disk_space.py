"""Whether what a run writes will fit on the disk, asked before anything is computed."""

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
    """The room that checkpoints and the student take; logs and answers, some megabytes, are not counted.

    Args:
        checkpoint_bytes: Of one.
        while_saving: Checkpoints that stand at once when the last of them has just been written.
        afterwards: Those that are kept, with the best one.
        student_bytes: Weights of the exported student.
    """

    checkpoint_bytes: int
    while_saving: int
    afterwards: int
    student_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Most that stands at once: during a save, or when the student is written beside what is kept."""
        return max(self.while_saving * self.checkpoint_bytes, self.afterwards * self.checkpoint_bytes + self.student_bytes)


def needed_space(student: StudentModule, schedule: Schedule, *, keep: int, export: Export) -> Space:
    """What a run needs, from the shapes of what it trains.

    What a policy remembers, such as a replay buffer, is not counted: it is small beside the weights of a real model.

    Args:
        student: As it is trained, with its adapters and its clip network.
        schedule: Says how many checkpoints are written at all.
        keep: Newest checkpoints that are kept; the best one stands besides where validations may choose another.
        export: How adapters are written in the end.
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
    """Refuse a run that the disk has no room for; checkpoints of an interrupted one already count as room.

    A student that one has left behind does not: it stands until another is written beside it.

    Args:
        folder: The run folder, which exists.

    Raises:
        DiskFullError: too little is free; says how much is, and how much is needed.
    """
    written = [path for path in (folder / "checkpoints").rglob("*") if path.is_file()]
    needed = space.peak_bytes - sum(path.stat().st_size for path in written)
    free = files.disk.free_bytes(folder)
    if free < needed:
        raise files.DiskFullError(
            f"{folder}: {_megabytes(free)} are free and {_megabytes(needed)} are needed ({space.while_saving} checkpoints of "
            f"{_megabytes(space.checkpoint_bytes)} at once, then a student of {_megabytes(space.student_bytes)}); free space, "
            "lower training.keep, or choose another output folder"
        )


def _checkpoint_bytes(student: StudentModule) -> int:
    """The size of a checkpoint with the moments that AdamW will have; see `training.save_checkpoint`."""
    trained = {name: parameter for name, parameter in student.named_parameters() if parameter.requires_grad}
    moments = {
        f"{moment}/{name}": torch.empty_like(parameter, device="meta")
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
    dtype: torch.dtype = unwrapped(model).dtype  # of what quantised weights are written as
    base = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return sum(num_weights(weight) * (weight.dtype if weight.is_floating_point() else dtype).itemsize for weight in base)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
