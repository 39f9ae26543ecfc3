"""Statistics of the logits of student and teacher in the update that ended a run.

The statistics are written to guard-step-N.json.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from redistill.contracts import Batch, SampledClasses, Teacher, TopClasses
from redistill.interfaces import Autocast
from redistill.models.student import StudentModule
from redistill.vocab_pass.cutting import cuts
from redistill.vocab_pass.rules import TargetRows, whole

ROWS_AT_ONCE = 64


@torch.no_grad()
def read_again(
    batches: Sequence[Batch], student: StudentModule, teacher: Teacher | None, autocast: Autocast
) -> list[Mapping[str, object]]:
    """Run both models again after a faulty update; compute statistics of the outputs.

    The outputs are the logits of the student, and the logits or log-probabilities of the teacher.  The student runs in
    evaluation mode, so a fault that only dropout causes is not reproduced.

    Args:
        batches: This process's micro-batches of the update.
        teacher: The teacher; None if the objective uses no teacher.
        autocast: Function that returns the autocast context of training.

    Returns:
        One mapping per micro-batch.  Its keys are "role" ("task" or "pretraining"); "samples", the indices of the training
        examples; "origins", the origins of the sequences; and "student" and "teacher", the statistics of both models.
        "teacher" is missing if the teacher is not run on any sequence of the micro-batch.

        The statistics are "min", "max" and "mean" of the finite numbers; "not_finite", the number of NaN and +inf (-inf
        excludes a class and is valid); and "samples_not_finite", the indices of training examples with NaN or +inf.
    """
    student.eval()
    found: list[Mapping[str, object]] = []
    for batch in batches:
        with autocast():
            hidden_ND, head = student.rows(batch)
            blocks = cuts(slice(0, len(hidden_ND)), ROWS_AT_ONCE)
            read = {"student": _statistics(batch, ((rows, head.logits(hidden_ND[rows])) for rows in blocks))}
        if teacher is not None and batch.num_sampled_rows:
            target, blocks = teacher.rows(batch), cuts(slice(0, batch.num_sampled_rows), ROWS_AT_ONCE)
            read["teacher"] = _statistics(batch, ((rows, _numbers(target(rows))) for rows in blocks))
        found.append({"role": batch.role, "samples": batch.samples, "origins": batch.origins, **read})
    return found


def _numbers(target_rows: TargetRows) -> torch.Tensor:
    """Return the numbers of a teacher's output whose statistics are computed.

    The numbers are the teacher's log-probabilities, or the weights of classes that were sampled from the teacher.
    """
    if isinstance(target_rows, TopClasses):
        return torch.cat([target_rows.logp_NK, target_rows.log_rest_N[:, None]], dim=1)
    return target_rows.weight_NK if isinstance(target_rows, SampledClasses) else whole(target_rows)


def _statistics(batch: Batch, blocks: Iterable[tuple[slice, torch.Tensor]]) -> Mapping[str, object]:
    """Return statistics of a micro-batch's logits, accumulated over blocks of rows.

    The result has the minimum, maximum and mean of the finite logits.  It also has the number of logits that are NaN or
    +inf, and the training examples that have such logits.  `blocks` yields the rows and the logits [rows, vocabulary] of
    each block.
    """
    least, most, total, num_finite, num_faults, faulty = math.inf, -math.inf, 0.0, 0, 0, set[int]()
    for rows, numbers_CV in blocks:
        fault_CV = numbers_CV.isnan() | numbers_CV.isposinf()
        num_faults += int(fault_CV.sum())
        good = numbers_CV[numbers_CV.isfinite()].double()
        if good.numel():
            num_finite, total = num_finite + good.numel(), total + float(good.sum())
            least, most = min(least, float(good.min())), max(most, float(good.max()))
        sequences = batch.sequence_N[rows][fault_CV.any(dim=-1)].unique().tolist()
        faulty |= {batch.samples[sequence] for sequence in sequences}
    low, high, mean = (least, most, total / num_finite) if num_finite else (None, None, None)
    return {"min": low, "max": high, "mean": mean, "not_finite": num_faults, "samples_not_finite": sorted(faulty)}
