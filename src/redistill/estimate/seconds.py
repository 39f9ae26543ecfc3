"""Seconds of an update and of a validation, by part, from what a token, a row and a layer cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from redistill.config.run import Run
from redistill.estimate.costs import Costs
from redistill.estimate.slivers import Role
from redistill.estimate.workload import Workload
from redistill.policies import TeacherGenerated


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Of one process.

    Args:
        parts: Of an update, means over updates.
        validation: Of one validation.
    """

    parts: Mapping[str, float]
    validation: float

    @property
    def step(self) -> float:
        return sum(self.parts.values())


def seconds(
    run: Run,
    costs: Mapping[Role, Costs],
    head: Mapping[str, float],
    work: Workload,
    updates: int | None,
) -> Seconds:
    """What an update and a validation take.

    Args:
        costs: Of the models.
        head: Of `costs.head_costs`.
        work: What an update has to do.
        updates: Of the whole run, where that is known.
    """
    student = costs["student"]
    parts = {
        "write": _writing(run, costs, work, updates),
        "revise": _revising(run, costs, head, work),
        "teacher reads": _teacher(run, costs, work),
        "student learns": student["learn"] * (work.mean("padded") + work.start * work.micro_batches),
        "vocabulary pass": head["walk"] * work.mean("rows"),
        "optimiser": student["update"] + head["update"],
    }
    return Seconds(parts=parts, validation=_validation(run, costs, head, work))


def _texts(run: Run, work: Workload) -> tuple[float, float]:
    """How many times a batch of texts is written in an update, and how many it has."""
    most = work.writing.of(run.training.batch_size)
    size = max(1, min(most, run.training.generation_batch_size))
    return work.writing.share * run.training.batch_size / size, size


def _writing(run: Run, costs: Mapping[Role, Costs], work: Workload, updates: int | None) -> float:
    batches, _ = _texts(run, work)
    if isinstance(run.resolved_method.policy, TeacherGenerated) and work.num_examples is not None and updates is not None:
        batches *= min(1.0, work.num_examples / (updates * run.training.batch_size))  # an answer is written once
    return batches * sum(
        cost["draft start"] + (work.response - 1) * cost["draft token"]
        for role, cost in costs.items()
        if (work.writing.student if role == "student" else work.writing.teacher)
    )


def _revising(run: Run, costs: Mapping[Role, Costs], head: Mapping[str, float], work: Workload) -> float:
    """The scoring of what was written, and the tails; the student knows what it wrote, where its family can remember."""
    if not work.writing.is_scored:
        return 0.0
    (batches, size), student = _texts(run, work), costs["student"]
    tokens = size * (work.prompt + work.response)
    scored = tokens * costs["teacher"]["read"] + size * work.response * head["statistics"]
    if not work.writing.rounds:
        return batches * (scored + tokens * student["read"])
    again = 0.0 if head["reuses"] else tokens * student["read"]
    opened = student["draft reopen" if head["reuses"] else "draft start"]
    longest = work.response * size / (size + 1)  # of so many tails that begin anywhere
    return batches * work.writing.rounds * (scored + again + opened + longest * student["draft token"])


def _teacher(run: Run, costs: Mapping[Role, Costs], work: Workload) -> float:
    """Reading what is learned from, less the beginnings that were read when drafts were scored."""
    if "teacher" not in costs or not run.resolved_method.objective.uses_teacher:
        return 0.0
    tokens = work.mean("sampled_padded") + work.start * work.micro_batches
    if work.writing.rounds and not work.writing.is_added:
        batches, size = _texts(run, work)
        tokens -= batches * size * (work.prompt + work.response / 2)
    return costs["teacher"]["read"] * max(0.0, tokens)


def _validation(run: Run, costs: Mapping[Role, Costs], head: Mapping[str, float], work: Workload) -> float:
    rows, student = run.data.validation_rows, costs["student"]
    batches = -(-rows // run.evaluation.batch_size)
    written = batches * (student["answer start"] + (work.response - 1) * student["answer token"])
    read = sum(cost["read"] for cost in costs.values()) * rows * (work.prompt + work.response)
    return written + read + rows * work.response * (head["statistics"] or head["walk"] / 3)
