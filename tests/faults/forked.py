"""Whole runs in processes of their own, forked after the imports, with a fault at a chosen instant of each.

An instant is the n-th call of the disk inside of a save, or the n-th call of a function of the package: it can be repeated.
"""

import multiprocessing
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from redistill.config.run import load_config
from redistill.errors import RedistillError
from redistill.runs.run import evaluate_run, train_student
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults.faulty_disk import FaultyDisk, kill, refuse
from tests.faults.instants import at_call

PIECE = 1 << 14
IMPORTED_LATE = ("torch._dynamo", "transformers.models.gpt2.modeling_gpt2", "rouge_score.rouge_scorer")  # seconds, in each run


@dataclass(frozen=True)
class Instant:
    """When a run meets its fault; None as `number` counts the instants of its kind and lets the run be.

    Args:
        kind: "save" is a call of the disk inside of a save, "commit" one of these that is not of a part of a file's content,
            "write" a call of the disk anywhere, "call" one of a function of the package.
        error: What the system says to that call; 0 kills the process.
    """

    kind: Literal["save", "commit", "write", "call"]
    number: int | None = None
    error: int = 0


def run(recipe: Path, instant: Instant | None = None, *, count_to: Path | None = None) -> int | None:
    """Train and evaluate a recipe's run in a process of its own; returns its exit code, -9 where it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *IMPORTED_LATE])
    process = context.Process(target=_run, args=(recipe, instant, count_to))
    process.start()
    process.join()
    return process.exitcode


def _run(recipe: Path, instant: Instant | None, count_to: Path | None) -> None:
    torch.set_num_threads(1)
    torch.cuda.is_available = lambda: False
    with recipe.with_suffix(".log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        config = load_config(recipe)
        try:
            with pytest.MonkeyPatch.context() as patch:
                count = _with_fault(patch, instant, lambda: (train_student(config), evaluate_run(config)))
        except RedistillError as error:
            print(f"redistill: {error}")
            sys.exit(error.exit_code)
    if count_to is not None:
        count_to.write_text(str(count))


def _with_fault(patch: pytest.MonkeyPatch, instant: Instant | None, work: Callable[[], object]) -> int:
    """Do `work` with the fault at its instant; returns how many instants of that kind there were."""
    if instant is None:
        work()
        return 0
    act = refuse(instant.error) if instant.error else kill
    if instant.kind == "call":
        with at_call(instant.number, act) as calls:
            work()
        return calls.number
    in_a_save = instant.kind in ("save", "commit")
    disk = FaultyDisk(
        instant.number,
        act,
        lasting=instant.error != 0,
        removals=in_a_save,
        contents=instant.kind != "commit",
        piece=PIECE,
    )
    patch.setattr(files, "disk", disk)
    if in_a_save:
        _count_in_saves_alone(patch, disk)
    work()
    return len(disk.calls)


def _count_in_saves_alone(patch: pytest.MonkeyPatch, disk: FaultyDisk) -> None:
    disk.counting, save = False, checkpoint.save

    def counted(*arguments: Any, **options: Any) -> Path:
        disk.counting = True
        try:
            return save(*arguments, **options)
        finally:
            disk.counting = False

    patch.setattr(checkpoint, "save", counted)
