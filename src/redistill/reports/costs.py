"""Training costs of the methods of a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redistill.reports.folders import RunFolder, mapping, number
from redistill.reports.lineup import Entry
from redistill.reports.statistics import mean

SUMMED = ("updates", "sequences", "trained_tokens", "generated_tokens", "seconds")
PEAK = "peak_bytes"
TEACHER_STAGE = "teacher"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Training cost of a method, as means over its training seeds.

    A figure is None if any run has not recorded it.

    Args:
        figures: updates, sequences, trained_tokens, generated_tokens and seconds, including the student's earlier stages;
            peak_bytes, the maximum over stages; parameters of the student.
        stages: Stage name -> number of updates, for the stages of the student before this method.
    """

    figures: Mapping[str, float | None]
    stages: Mapping[str, float | None]


def method_cost(entries: Sequence[Entry]) -> Cost:
    """Training cost of the runs of one label.

    A stage that several runs share is counted for each of them, since each would need it if run alone.  Fine-tuning of the
    teacher is not counted; see `teacher_cost`.
    """
    parts = [[_own(entry.run), *_stages(entry.run).values()] for entry in entries]
    figures = {name: _mean(_combined(part, name) for part in parts) for name in (*SUMMED, PEAK)}
    names = dict.fromkeys(name for entry in entries for name in _stages(entry.run))
    stages = {name: _mean(number(_stages(entry.run).get(name, {}).get("updates")) for entry in entries) for name in names}
    return Cost(figures={**figures, "parameters": _mean(_parameters(entry.run) for entry in entries)}, stages=stages)


def teacher_cost(entries: Sequence[Entry]) -> Cost | None:
    """Cost of fine-tuning the teacher; None if no run recorded it.

    Means over the teacher folders.
    """
    stages = (_teacher_stage(entry.run) for entry in entries)
    by_folder = {str(stage.get("folder")): mapping(stage.get("cost")) for stage in stages if stage}
    if not by_folder:
        return None
    figures = {name: _mean(number(cost.get(name)) for cost in by_folder.values()) for name in (*SUMMED, PEAK)}
    sizes = [
        number(mapping(mapping(entry.run.description.get("models")).get("teacher")).get("parameters")) for entry in entries
    ]
    known = [size for size in sizes if size is not None]
    return Cost(figures={**figures, "parameters": mean(known)}, stages={})


def machines(entries: Sequence[Entry]) -> list[str]:
    """The distinct processors and accelerators of the runs.

    Seconds on different machines are not comparable.
    """
    found = [mapping(entry.run.description.get("machine")) for entry in entries]
    names = [", ".join(str(part) for part in (held.get("cpu"), *(held.get("accelerators") or [])) if part) for held in found]
    return list(dict.fromkeys(name for name in names if name))


def _own(run: RunFolder) -> Mapping[str, Any]:
    return mapping(run.description.get("cost"))


def _stages(run: RunFolder) -> dict[str, Mapping[str, Any]]:
    """Stage name -> cost, for the student's earlier stages."""
    recorded = mapping(run.description.get("stages"))
    return {str(name): mapping(mapping(stage).get("cost")) for name, stage in recorded.items() if name != TEACHER_STAGE}


def _teacher_stage(run: RunFolder) -> Mapping[str, Any]:
    return mapping(mapping(run.description.get("stages")).get(TEACHER_STAGE))


def _combined(parts: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """One figure combined over a run and its stages; None if any of them has not recorded it."""
    found = [number(part.get(name)) for part in parts]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return None
    return max(known) if name == PEAK else sum(known)


def _parameters(run: RunFolder) -> float | None:
    measured = None if run.student is None else number(run.student.scores.get("parameters"))
    recorded = mapping(mapping(run.description.get("models")).get("student")).get("parameters")
    return number(recorded) if measured is None else measured


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean; None if any value is unknown, since a mean over fewer runs would not be comparable."""
    found = list(values)
    known = [value for value in found if value is not None]
    return mean(known) if len(known) == len(found) else None
