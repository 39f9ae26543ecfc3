"""Training costs of the methods of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from redistill.records import Json
from redistill.reports.folders import RunFolder, at, mapping, number
from redistill.reports.lineup import Entry
from redistill.reports.statistics import mean, mean_of_all

SUMMED = ("updates", "sequences", "trained_tokens", "generated_tokens", "seconds")
PEAK = "peak_bytes"
TEACHER_STAGE = "teacher"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Training cost of a method, as means over its training seeds.

    A figure is None if any run has not recorded it.  A stage is a fine-tuning of the student before its distillation.

    Args:
        figures: Cost by name.  "updates", "sequences", "trained_tokens", "generated_tokens" and "seconds" are sums over the
            run and its stages.  "peak_bytes" is the largest peak memory of the run and its stages, in bytes.  "parameters" is
            the number of parameters of the student.
        stages: Number of updates of each stage, by name of the stage.
    """

    figures: Mapping[str, float | None]
    stages: Mapping[str, float | None]


def method_cost(entries: Sequence[Entry]) -> Cost:
    """Return the mean training cost of a method; `entries` are its runs.

    Several runs may start from the same fine-tuned student.  The cost of its fine-tuning is counted for each of these runs.
    Fine-tuning of the teacher is not counted; see `teacher_cost`.
    """
    stages = [_stages(entry.run) for entry in entries]
    parts = [[at(entry.run.description, "cost"), *before.values()] for entry, before in zip(entries, stages, strict=True)]
    figures = {name: mean_of_all(_combined(part, name) for part in parts) for name in (*SUMMED, PEAK)}
    return Cost(
        figures={**figures, "parameters": mean_of_all(_parameters(entry.run) for entry in entries)},
        stages={
            name: mean_of_all(number(at(before, name, "updates")) for before in stages)
            for name in dict.fromkeys(name for before in stages for name in before)
        },
    )


def teacher_cost(entries: Sequence[Entry]) -> Cost | None:
    """Return the cost of fine-tuning the teacher; None if no run recorded it.

    If the runs used several fine-tuned teachers, the figures are means over these teachers.
    """
    stages = (mapping(at(entry.run.description, "stages", TEACHER_STAGE)) for entry in entries)
    by_folder = {str(stage.get("folder")): stage.get("cost") for stage in stages if stage}
    if not by_folder:
        return None
    figures = {name: mean_of_all(number(at(cost, name)) for cost in by_folder.values()) for name in (*SUMMED, PEAK)}
    sizes = (number(at(entry.run.description, "models", "teacher", "parameters")) for entry in entries)
    return Cost(figures={**figures, "parameters": mean(size for size in sizes if size is not None)}, stages={})


def machines(entries: Sequence[Entry]) -> list[str]:
    """Return a text for each machine that was used, without duplicates.

    The text names the processor and the accelerators.  Durations on different machines are not comparable.
    """
    found = [mapping(at(entry.run.description, "machine")) for entry in entries]
    parts = [[held.get("cpu"), *cast(list[Json], held.get("accelerators") or [])] for held in found]
    return list(dict.fromkeys(name for machine in parts if (name := ", ".join(str(part) for part in machine if part))))


def _stages(run: RunFolder) -> dict[str, Json]:
    """Return the costs of the stages of a run, by name.

    A stage is a fine-tuning of the student before the run.
    """
    recorded = mapping(at(run.description, "stages"))
    return {name: at(stage, "cost") for name, stage in recorded.items() if name != TEACHER_STAGE}


def _combined(parts: Sequence[Json], name: str) -> float | None:
    """Return the cost `name` of a run and its stages together.

    `parts` are the costs of the run and of each stage.  The result is the sum over the parts, or the maximum for peak memory.
    It is None if a part lacks this cost.
    """
    found = [number(at(part, name)) for part in parts]
    known = [value for value in found if value is not None]
    return None if len(known) < len(found) else max(known) if name == PEAK else sum(known)


def _parameters(run: RunFolder) -> float | None:
    measured = None if run.student is None else number(run.student.scores.get("parameters"))
    return number(at(run.description, "models", "student", "parameters")) if measured is None else measured
