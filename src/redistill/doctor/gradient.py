"""The gradient of an objective on the sequences of one update, without dropout."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from redistill.contracts import Draw
from redistill.doctor.findings import NotExamined
from redistill.processes.memory import Halving
from redistill.training.loop import gradients
from redistill.training.objective import Objective, averages
from redistill.training.parts import Parts

KEPT_VALUES = 4096
"""Maximum number of values that are compared for each parameter's gradient."""


class NoGraph(NotExamined):
    """Raised if the objective does not depend on any trainable parameter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """The value and the gradient of an objective on one update, without dropout.

    Args:
        loss: Value of the objective; 0 if the update has no targets (tokens that the student is trained to predict).
        norms: L2 norm of the gradient of each trainable parameter, by the name of the parameter.
        values: At most 4096 (`KEPT_VALUES`) values of the gradient of each trainable parameter, concatenated to a vector.
    """

    loss: float
    norms: Mapping[str, float]
    values: torch.Tensor

    @property
    def norm(self) -> float:
        """L2 norm of the gradient of all trainable parameters together."""
        return float(torch.tensor(list(self.norms.values()), dtype=torch.float64).square().sum().sqrt())


def measure(parts: Parts, draw: Draw, objective: Objective | None = None, micro_batch_size: int | None = None) -> Measured:
    """Return the value and the gradient of an objective for one update.

    The gradient is computed with the functions of the training loop. Dropout is disabled, and no parameter is changed.

    Args:
        parts: The components of the training loop, such as the student, the teacher and the recipe's objective.
        draw: The sequences that the update is computed on.
        objective: The objective. If None, the recipe's objective is used.
        micro_batch_size: Maximum number of sequences in a micro-batch; see `training.micro_batch_size`.

    Raises:
        NoGraph: no term of the objective depends on a trainable parameter.
    """
    objective = objective or parts.learner.objective
    sizes = replace(parts.guards, micro_batch=Halving("training.micro_batch_size", micro_batch_size))
    parts = replace(parts, learner=replace(parts.learner, objective=objective), guards=sizes)
    try:
        with without_dropout(parts.learner.student):
            _, counts, sums = gradients(objective.select(draw), parts, 0)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
        raise NoGraph("no gradient reaches the student") from error
    named = [(name, parameter) for name, parameter in parts.learner.student.model.named_parameters() if parameter.requires_grad]
    found = {name: torch.zeros(1) if parameter.grad is None else parameter.grad.detach().float() for name, parameter in named}
    values = [every_few(gradient.flatten()) for gradient in found.values()]
    result = Measured(
        loss=averages(objective, counts, sums)["loss"],
        norms={name: float(gradient.norm()) for name, gradient in found.items()},
        values=torch.cat(values).cpu() if values else torch.zeros(0),
    )
    parts.learner.optimizer.zero_grad(set_to_none=True)
    if parts.learner.teacher is not None:
        parts.learner.teacher.faults()  # resets the teacher's count of rows with non-finite logits
    return result


def every_few(values: torch.Tensor) -> torch.Tensor:
    """Return a copy of at most 4096 (`KEPT_VALUES`) evenly spaced values of a vector."""
    return values[:: -(-len(values) // KEPT_VALUES)].clone()


@contextmanager
def without_dropout(student: nn.Module) -> Iterator[None]:
    """Context in which `student.train()` selects eval mode.

    The training loop calls `student.train()`, which would otherwise enable dropout.
    """
    vars(student)["train"] = lambda mode=True: nn.Module.train(student, False)
    try:
        yield
    finally:
        del vars(student)["train"]
