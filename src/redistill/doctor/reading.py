"""Forward passes of teacher and student over gold answers.

Gold answers are the answers in the training data. The passes use the precision of the run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from redistill.contracts import Batch, items_of
from redistill.data.collate import collate
from redistill.policies.order import gold_sequence
from redistill.runs.opened import OpenRun
from redistill.vocab_pass.cutting import cuts
from redistill.vocab_pass.rules import whole

ROWS_AT_ONCE = 64
"""Maximum number of targets whose logits exist at the same time."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Statistics of the models' logits on gold answers (answers in the training data).

    Each field maps "student" to the value of the student. If the teacher returns logits of the full vocabulary, the field also
    maps "teacher" to the value of the teacher.

    Args:
        classes: Size of the last dimension of the logits.
        cross_entropies: Mean cross entropy of the targets (the tokens of the answers), in nats per token.
        faults: Number of logits that are NaN or positive infinity. Negative infinity is valid, since it excludes a class.
    """

    classes: Mapping[str, int]
    cross_entropies: Mapping[str, float]
    faults: Mapping[str, int]


def gold_batch(opened: OpenRun, rows: int | None = None) -> Batch:
    """Return one batch of the first `rows` training examples with their gold answers.

    Gold answers are the answers in the training data. If `rows` is None, the batch contains all training examples.
    """
    sequences = [gold_sequence(example) for example in opened.data.train[:rows]]
    return collate(items_of(sequences, "sft", "distillation"), pad_id=opened.models.pad_id, device=opened.accelerator.device)


@torch.no_grad()
def read_gold(opened: OpenRun) -> Reading:
    """Run both models on gold answers, and return statistics of their logits.

    Gold answers are the answers in the training data. The models are in eval mode.
    """
    batch, teacher = gold_batch(opened), opened.teacher
    if teacher is not None and not teacher.capabilities.full_vocabulary:
        teacher = None
    found: dict[str, list[tuple[int, float, int]]] = {"student": []}
    blocks = cuts(slice(0, batch.num_sampled_rows), ROWS_AT_ONCE)
    opened.student.eval()
    with opened.accelerator.autocast():
        hidden_ND, head = opened.student.rows(batch)
        found["student"] = [_sums(head.logits(hidden_ND[rows]), batch.target_N[rows]) for rows in blocks]
        if teacher is not None:
            teacher.prepare([gold_sequence(example) for example in opened.data.train])
            target = teacher.rows(batch)
            found["teacher"] = [_sums(whole(target(rows)), batch.target_N[rows]) for rows in blocks]
    if teacher is not None:
        teacher.release()
    return Reading(
        classes={role: sums[0][0] for role, sums in found.items()},
        cross_entropies={role: math.fsum(each[1] for each in sums) / batch.num_sampled_rows for role, sums in found.items()},
        faults={role: sum(each[2] for each in sums) for role, sums in found.items()},
    )


def _sums(logits_NV: torch.Tensor, target_N: torch.Tensor) -> tuple[int, float, int]:
    """Return three statistics of the logits.

    The first is V, the number of classes. The second is the sum of the N targets' cross entropies in nats. The third is the
    number of logits that are NaN or positive infinity.
    """
    logits_NV = logits_NV.float()
    faults = int((logits_NV.isnan() | logits_NV.isposinf()).sum())
    return logits_NV.shape[1], float(torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="sum")), faults
