"""Run folders and evaluation folders, as they are read.

What is missing is None or empty; what is broken is an error of one line.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill import files
from redistill.errors import CheckpointError, DataError

SCHEMA = 1
_RESPONSES = re.compile(r"(.+)-seed(-?\d+)\.jsonl")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model's scores and answers.

    Args:
        label: What to call the model.
        role: "teacher", "before" (the student, untrained), "baseline" or "student".
        scores: What scores.json holds.
        answers: Data set -> seed -> prompt id -> line of the responses file.
    """

    label: str
    role: str
    scores: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]

    @property
    def datasets(self) -> Mapping[str, Any]:
        return mapping(self.scores.get("datasets"))

    def num_prompts(self, dataset: str) -> int:
        told = number(mapping(self.datasets.get(dataset)).get("prompts"))
        answered = max((len(lines) for lines in self.answers.get(dataset, {}).values()), default=0)
        return answered if told is None else int(told)

    def seed_scores(self, dataset: str, name: str) -> list[float]:
        """One score for each seed that has it."""
        seeds = mapping(mapping(self.datasets.get(dataset)).get("seeds"))
        scores = (number(mapping(seed).get(name)) for seed in seeds.values())
        return [score for score in scores if score is not None]

    def forced_score(self, dataset: str, name: str) -> float | None:
        """A score of reading the references, for which there are no seeds."""
        return number(mapping(mapping(self.datasets.get(dataset)).get("teacher_forced")).get(name))

    def prompt_scores(self, dataset: str, name: str) -> list[dict[str, float]]:
        """For each seed, prompt id -> score."""
        scores = []
        for lines in self.answers.get(dataset, {}).values():
            numbers = {prompt: number(line.get(name)) for prompt, line in lines.items()}
            scores.append({prompt: score for prompt, score in numbers.items() if score is not None})
        return scores


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run: its description, its logs, and the evaluations that lie in it."""

    path: Path
    description: Mapping[str, Any]
    metrics: list[Mapping[str, Any]]
    revisions: list[Mapping[str, Any]]
    student: Evaluation | None
    teacher: Evaluation | None
    before: Evaluation | None

    @property
    def name(self) -> str:
        return str(self.description.get("name") or self.path.resolve().name)


def read_run(folder: Path) -> RunFolder:
    """The run in `folder`.

    Raises:
        CheckpointError: the folder or its run.json is missing, or a file in it is damaged or of a newer schema.
    """
    if not (folder / "run.json").is_file():
        fault = "has no run.json" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {fault}; give the folder of a run that redistill has trained")
    try:
        description = _json_object(folder / "run.json")
        name = str(description.get("name") or folder.resolve().name)
        return RunFolder(
            path=folder,
            description=description,
            metrics=_objects(folder / "metrics.jsonl"),
            revisions=_objects(folder / "revisions.jsonl"),
            student=_read_evaluation(folder, name, "student"),
            teacher=_read_evaluation(folder / "teacher", "teacher", "teacher"),
            before=_read_evaluation(folder / "before", "before training", "before"),
        )
    except (DataError, OSError) as error:
        raise CheckpointError(f"{error}; restore the file, or repeat the stage that wrote it") from error


def number(value: Any) -> float | None:
    """`value` as a finite number; None of anything else."""
    if isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _read_evaluation(folder: Path, label: str, role: str) -> Evaluation | None:
    if not (folder / "scores.json").is_file():
        return None
    scores = _json_object(folder / "scores.json")
    datasets = {files.slug(name): name for name in mapping(scores.get("datasets"))}
    answers: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for path in sorted((folder / "responses").glob("*.jsonl")):
        match = _RESPONSES.fullmatch(path.name)
        dataset = datasets.get(files.slug(match[1])) if match else None
        if match and dataset is not None:
            answers.setdefault(dataset, {})[match[2]] = {str(line["id"]): line for line in _objects(path) if "id" in line}
    return Evaluation(label=label, role=role, scores=scores, answers=answers)


def _json_object(path: Path) -> Mapping[str, Any]:
    value = files.read_json(path)
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: holds {type(value).__name__}, not an object")
    if value.get("schema", SCHEMA) != SCHEMA:
        raise DataError(f"{path}: schema {value['schema']} is not {SCHEMA}, the one that this version of redistill reads")
    return value


def _objects(path: Path) -> list[Mapping[str, Any]]:
    return [line for line in files.read_lines(path) if isinstance(line, Mapping)]
