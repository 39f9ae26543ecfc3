"""Statistics of both models' logits on the micro-batches of a skipped update, for guard-step-N.json only."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from redistill.contracts import Batch, Teacher
from redistill.models.student import StudentModule
from redistill.vocab_pass.rules import whole
from redistill.vocab_pass.walk import cuts

ROWS_AT_ONCE = 64


@torch.no_grad()
def read_again(
    batches: Sequence[Batch],
    student: StudentModule,
    teacher: Teacher | None,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> list[dict[str, Any]]:
    """The range of the student's logits and of the teacher's log-probabilities on each micro-batch's rows.

    The student runs in evaluation mode, so a fault that only dropout causes is not reproduced.

    Args:
        batches: This process's micro-batches.
        teacher: None if the objective uses no teacher.
        autocast: Returns the autocast context of training.

    Returns:
        For each micro-batch its "role", "samples" and "origins", and statistics of "student" and, where it was evaluated,
        "teacher": "min", "max" and "mean" of the finite numbers, the number of "not_finite" ones (NaN or +inf; -inf excludes a
        class and is valid), and "samples_not_finite", the samples that contain them.
    """
    student.eval()
    found: list[dict[str, Any]] = []
    for batch in batches:
        with autocast():
            hidden_ND, head = student.rows(batch)
        statistics = _Statistics(batch)
        for rows in cuts(slice(0, len(hidden_ND)), ROWS_AT_ONCE):
            with autocast():
                statistics.add(head.logits(hidden_ND[rows]), rows)
        about: dict[str, Any] = {"role": batch.role, "samples": list(batch.samples), "origins": list(batch.origins)}
        about["student"] = statistics.described()
        if teacher is not None and batch.num_sampled_rows:
            target, statistics = teacher.rows(batch), _Statistics(batch)
            for rows in cuts(slice(0, batch.num_sampled_rows), ROWS_AT_ONCE):
                statistics.add(whole(target(rows)), rows)
            about["teacher"] = statistics.described()
        found.append(about)
    return found


class _Statistics:
    """Range and non-finite numbers of a micro-batch's rows, accumulated over blocks of rows."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._least, self._most, self._sum = math.inf, -math.inf, 0.0
        self._finite = self._not_finite = 0
        self._faulty_samples: set[int] = set()

    def add(self, numbers_CV: torch.Tensor, rows: slice) -> None:
        fault_CV = numbers_CV.isnan() | numbers_CV.isposinf()
        good = numbers_CV[numbers_CV.isfinite()].double()
        self._finite += good.numel()
        self._not_finite += int(fault_CV.sum())
        if good.numel():
            self._least, self._most = min(self._least, float(good.min())), max(self._most, float(good.max()))
            self._sum += float(good.sum())
        sequences = self._batch.sequence_N[rows][fault_CV.any(dim=-1)].unique().tolist()
        self._faulty_samples |= {self._batch.samples[sequence] for sequence in sequences}

    def described(self) -> dict[str, Any]:
        has_any = self._finite > 0
        return {
            "min": self._least if has_any else None,
            "max": self._most if has_any else None,
            "mean": self._sum / self._finite if has_any else None,
            "not_finite": self._not_finite,
            "samples_not_finite": sorted(self._faulty_samples),
        }
