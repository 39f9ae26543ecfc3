"""Faults that a GPU would show: tensors that are left on the CPU, and places where the host waits for the device."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any
from unittest import mock

import torch

from redistill.generation import generate, prefix
from redistill.generation.decoder import Decoder
from redistill.losses.dac_kl import DacKL
from redistill.models.caches import CachedBody, Columns
from redistill.models.student import StudentModule
from redistill.teachers.local import LocalTeacher
from redistill.training import loop
from redistill.vocab_pass import walk
from tests.simulated_cuda.device import OnDevice


@dataclass(frozen=True)
class Fault:
    """A fault in a run.

    Args:
        trial: Name of the run.
        owner, name: The object and the name of its function that is replaced.
        change: Function of the replaced function; returns the faulty one.
        shown_by: What detects the fault: "error", or the part of a run in which the host waits too often: "generation",
            "update" or "vocabulary pass".
        updates: Updates of the run; the second one is the first that has an optimiser state.
    """

    trial: str
    owner: Any
    name: str
    change: Callable[[Callable[..., Any]], Callable[..., Any]]
    shown_by: str = "error"
    updates: int = 1

    def planted(self) -> AbstractContextManager[Any]:
        """Context in which the run has the fault."""
        return mock.patch.object(self.owner, self.name, self.change(getattr(self.owner, self.name)))


def on_the_cpu(tree: Any) -> Any:
    """The same values with all tensors on the CPU."""
    if isinstance(tree, torch.Tensor):
        return tree.cpu()
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{each.name: on_the_cpu(getattr(tree, each.name)) for each in fields(tree) if each.init})
    return type(tree)(map(on_the_cpu, tree)) if isinstance(tree, list | tuple) else tree


def result_on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: on_the_cpu(function(*arguments, **options))


def optimiser_state_on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    def step(parts: Any, *arguments: Any) -> Any:
        for state in parts.learner.optimizer.state.values():
            state |= {name: value.cpu() for name, value in state.items() if isinstance(value, OnDevice)}
        return function(parts, *arguments)

    return step


def waits(get: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A function that reads a value of a tensor on the host, which `get` takes from the arguments, and calls the original."""

    def change(function: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*arguments: Any, **options: Any) -> Any:
            get(*arguments)
            return function(*arguments, **options)

        return waiting

    return change


FAULTS: Mapping[str, Fault] = {
    "collate on the CPU": Fault("kd", loop, "collate", result_on_the_cpu),
    "terms on the CPU": Fault("mgsr", loop, "terms", result_on_the_cpu),
    "sampling on the CPU": Fault("opd", generate, "sample_rows", result_on_the_cpu),
    "prefix memory on the CPU": Fault("mgsr", prefix, "load_prefixes", result_on_the_cpu),
    "clip network on the CPU": Fault("mgsr", DacKL, "_interval", result_on_the_cpu),
    "optimiser state on the CPU": Fault("kd", loop, "_step", optimiser_state_on_the_cpu, updates=2),
    "item in the vocabulary pass": Fault(
        "kd", walk, "visit", waits(lambda core, tile, *rest: tile.raw_CV.max().item()), "vocabulary pass"
    ),
    "tolist in the decode loop": Fault(
        "opd", generate, "_next_tokens", waits(lambda logits, *rest: logits[0][0, :4].tolist()), "generation"
    ),
    "item in the clip network": Fault(
        "mgsr", DacKL, "forward", waits(lambda module, logq, *rest: logq.max().item()), "vocabulary pass"
    ),
    "numpy in logging": Fault(
        "kd", loop, "_log_update", waits(lambda parts, *rest: next(parts.learner.student.parameters()).detach().numpy())
    ),
    "item in the decoder": Fault("opd", Decoder, "logits", waits(lambda decoder, ids, *rest: ids.max().item()), "generation"),
    "item in the KV cache": Fault("opd", CachedBody, "read", waits(lambda body, ids, *rest: ids.max().item()), "generation"),
    "item in the prefix memory": Fault("mgsr", Columns, "append", waits(lambda columns, new: new.max().item()), "generation"),
    "fifty items in the teacher": Fault(
        "kd", LocalTeacher, "rows", waits(lambda teacher, batch: [batch.target_N.max().item() for _ in range(50)]), "update"
    ),
    "item in each micro-batch of the student": Fault(
        "kd",
        StudentModule,
        "forward",
        waits(lambda student, batch, *rest: [batch.target_N.max().item() for _ in range(4)]),
        "update",
    ),
}
