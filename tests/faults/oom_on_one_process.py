"""A student that runs out of memory above a number of sequences, and a run in which one process alone has such a student."""

import os
from pathlib import Path

import pytest
import torch

from redistill.data.grouping import ReadCost
from redistill.models.student import StudentModule
from redistill.training import loop as training
from tests.faults.together import train


def cut_by_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no micro-batch be smaller than its size allows for the sake of padding, so that sizes can be told beforehand."""
    monkeypatch.setattr(training, "read_cost", lambda device: ReadCost(overhead_tokens=10**9, max_tokens=10**9))


def limited(monkeypatch: pytest.MonkeyPatch, limit: int, *, spare_every_other: bool = False) -> None:
    """Let the student read at most `limit` sequences with distillation terms; it fails once it has done its work.

    Args:
        spare_every_other: The first, third ... beyond the limit succeeds, so that a gradient is there at the failure.
    """
    forward, beyond = StudentModule.forward, []

    def short_of_memory(self, batch, target, terms):
        result = forward(self, batch, target, terms)
        if batch.num_sampled > limit:
            beyond.append(batch)
            if not (spare_every_other and len(beyond) % 2):
                raise torch.OutOfMemoryError("out of memory, as far as the test goes")
        return result

    monkeypatch.setattr(StudentModule, "forward", short_of_memory)


def train_with_one_short_of_memory(recipe: Path) -> None:
    """As one of several processes; the second can read no more than two sequences."""
    with pytest.MonkeyPatch.context() as patch:
        cut_by_size_alone(patch)
        if os.environ["RANK"] == "1":
            limited(patch, 2)
        train([recipe])
