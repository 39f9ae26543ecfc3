"""The gradient of an objective on one draw, without dropout."""

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
"""Values of each parameter's gradient that are compared."""


class NoGraph(NotExamined):
    """The objective depends on no trainable parameter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """The gradient of an objective on the sequences of one update, without dropout.

    Args:
        loss: The objective; 0 if no term has a row.
        norms: Norm of each trainable parameter's gradient, by name.
        values: Some values of the gradient of each parameter, in one vector.
    """

    loss: float
    norms: Mapping[str, float]
    values: torch.Tensor

    @property
    def norm(self) -> float:
        """Norm of the whole gradient."""
        return float(torch.tensor(list(self.norms.values()), dtype=torch.float64).square().sum().sqrt())


def measure(parts: Parts, draw: Draw, objective: Objective | None = None, micro_batch_size: int | None = None) -> Measured:
    """Compute the gradient of an objective as the training loop does it.

    Args:
        parts: The student, the teacher and the recipe's objective.
        draw: The sequences.
        objective: None is the recipe's own.
        micro_batch_size: As `training.micro_batch_size`.

    Raises:
        NoGraph: no term depends on a trainable parameter.
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
        parts.learner.teacher.faults()  # discards the count
    return result


def every_few(values: torch.Tensor) -> torch.Tensor:
    """At most `KEPT_VALUES` values of a vector, evenly spaced."""
    return values[:: -(-len(values) // KEPT_VALUES)].clone()


@contextmanager
def without_dropout(student: nn.Module) -> Iterator[None]:
    """Context: the student stays in eval mode when the loop sets training mode."""
    vars(student)["train"] = lambda mode=True: nn.Module.train(student, False)
    try:
        yield
    finally:
        del vars(student)["train"]
