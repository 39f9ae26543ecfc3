"""What the methods of a comparison took, beside what they reached."""

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
    """What a method took, means over its training seeds; None is what a run has not recorded.

    Args:
        figures: updates, sequences, trained_tokens, generated_tokens and seconds, the student's earlier stages among them;
            peak_bytes, the most of any stage; parameters of the student.
        stages: Updates of the stages that the student went through before this method, by the stage's name.
    """

    figures: Mapping[str, float | None]
    stages: Mapping[str, float | None]


def method_cost(entries: Sequence[Entry]) -> Cost:
    """What the runs of one label took.

    A stage that several runs share counts for each of them: without the others each would have had to pay it.  The teacher's
    stage counts for none; `teacher_cost` has it.
    """
    parts = [[_own(entry.run), *_stages(entry.run).values()] for entry in entries]
    figures = {name: _mean(_combined(part, name) for part in parts) for name in (*SUMMED, PEAK)}
    names = dict.fromkeys(name for entry in entries for name in _stages(entry.run))
    stages = {name: _mean(number(_stages(entry.run).get(name, {}).get("updates")) for entry in entries) for name in names}
    return Cost(figures={**figures, "parameters": _mean(_parameters(entry.run) for entry in entries)}, stages=stages)


def teacher_cost(entries: Sequence[Entry]) -> Cost | None:
    """What it took to fine-tune the teacher, a mean over its folders; None where no run tells of it."""
    told = {str(about.get("folder")): mapping(about.get("cost")) for entry in entries if (about := _teacher_stage(entry.run))}
    if not told:
        return None
    figures = {name: _mean(number(cost.get(name)) for cost in told.values()) for name in (*SUMMED, PEAK)}
    sizes = [
        number(mapping(mapping(entry.run.description.get("models")).get("teacher")).get("parameters")) for entry in entries
    ]
    known = [size for size in sizes if size is not None]
    return Cost(figures={**figures, "parameters": mean(known)}, stages={})


def machines(entries: Sequence[Entry]) -> list[str]:
    """The processors and accelerators that the runs were made on; seconds of different ones cannot be compared."""
    told = [mapping(entry.run.description.get("machine")) for entry in entries]
    names = [", ".join(str(part) for part in (about.get("cpu"), *(about.get("accelerators") or [])) if part) for about in told]
    return list(dict.fromkeys(name for name in names if name))


def _own(run: RunFolder) -> Mapping[str, Any]:
    return mapping(run.description.get("cost"))


def _stages(run: RunFolder) -> dict[str, Mapping[str, Any]]:
    """Costs of the student's earlier stages by name."""
    told = mapping(run.description.get("stages"))
    return {str(name): mapping(mapping(about).get("cost")) for name, about in told.items() if name != TEACHER_STAGE}


def _teacher_stage(run: RunFolder) -> Mapping[str, Any]:
    return mapping(mapping(run.description.get("stages")).get(TEACHER_STAGE))


def _combined(parts: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """One figure of a run and its stages; None if one of them has not recorded it."""
    found = [number(part.get(name)) for part in parts]
    known = [value for value in found if value is not None]
    if len(known) < len(found):
        return None
    return max(known) if name == PEAK else sum(known)


def _parameters(run: RunFolder) -> float | None:
    measured = None if run.student is None else number(run.student.scores.get("parameters"))
    told = mapping(mapping(run.description.get("models")).get("student")).get("parameters")
    return number(told) if measured is None else measured


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of all; None if one is not known, since a mean over fewer runs would be another figure."""
    found = list(values)
    known = [value for value in found if value is not None]
    return mean(known) if len(known) == len(found) else None
