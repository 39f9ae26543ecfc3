"""Run folders and evaluation folders, as they are read.

What is missing is None or empty; what is broken is an error of one line.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.config.decode import shown
from redistill.errors import CheckpointError, DataError
from redistill.records import FRACTION, PERCENT, Better
from redistill.storage import files

SCHEMAS = (1, 2)  # of run.json; other files have stayed at 1
MAX_TITLE = 60
_ASKED = "asked"
_KEY = re.compile(r"\w+", re.ASCII)
_RESPONSES = re.compile(r"(.+)-seed(-?\d+)\.jsonl")


@dataclass(frozen=True)
class Measure:
    """A metric as scores.json describes it.

    Args:
        name: Its key in files.
        title, unit, better: As of `redistill.records.Metric`.
    """

    name: str
    title: str
    unit: str
    better: Better

    @property
    def sign(self) -> int:
        """1 where a higher value is better, -1 where a lower one is."""
        return -1 if self.better == "lower" else 1


BEFORE_METRICS_HAD_NAMES = (
    Measure("rouge_l", "ROUGE-L", PERCENT, "higher"),
    Measure("exact_match", "exact match", FRACTION, "higher"),
)
"""The metrics of a folder whose scores.json does not say which it has: commit 98f02f3 and before."""


def measures(scores: Any) -> tuple[Measure, ...]:
    """The metrics of a data set in scores.json, its primary one first."""
    about = mapping(mapping(scores).get("metrics"))
    return (
        tuple(_measure(name, mapping(told)) for name, told in about.items() if _KEY.fullmatch(name)) or BEFORE_METRICS_HAD_NAMES
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One model's scores and answers.

    Args:
        label: What to call the model.
        role: "teacher", "before" (the student, untrained), "baseline" or "student".
        scores: What scores.json holds.
        answers: Data set -> evaluation seed -> prompt id -> line of the responses file.
    """

    label: str
    role: str
    scores: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]

    @property
    def datasets(self) -> Mapping[str, Any]:
        return mapping(self.scores.get("datasets"))

    def measures(self, dataset: str) -> tuple[Measure, ...]:
        """What the answers to a data set were scored by, the primary metric first."""
        return measures(self.datasets.get(dataset))

    def num_prompts(self, dataset: str) -> int:
        told = number(mapping(self.datasets.get(dataset)).get("prompts"))
        answered = max((len(lines) for lines in self.answers.get(dataset, {}).values()), default=0)
        return answered if told is None else int(told)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the answers depend on: hash of the weights, sampling, seeds, limit, lengths."""
        return mapping(self.scores.get("settings"))

    @property
    def identity(self) -> str:
        """The same for the same model: the hash of its weights, else its scores."""
        return str(self.settings.get("model") or json.dumps(self.scores, sort_keys=True))

    def seed_scores(self, dataset: str, name: str) -> dict[str, float]:
        """Evaluation seed -> score, for each seed that has it."""
        seeds = mapping(mapping(self.datasets.get(dataset)).get("seeds"))
        scores = {str(seed): number(mapping(found).get(name)) for seed, found in seeds.items()}
        return {seed: score for seed, score in scores.items() if score is not None}

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

    def asked(self, dataset: str) -> dict[str, str]:
        """Prompt id -> hash of the prompt and its references: ids alone do not tell two test files apart."""
        return {prompt: line[_ASKED] for lines in self.answers.get(dataset, {}).values() for prompt, line in lines.items()}


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


def read_run(folder: Path, *, scores_only: bool = False) -> RunFolder:
    """The run in `folder`.

    Args:
        scores_only: Leave out logs and the texts of answers, where many runs are read at once.

    Raises:
        CheckpointError: the folder or its run.json is missing, or a file in it is damaged or of a newer schema.
    """
    if not (folder / "run.json").is_file():
        fault = "has no run.json" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {fault}; give the folder of a run that redistill has trained")
    try:
        description = read_object(folder / "run.json")
        name = str(description.get("name") or folder.resolve().name)
        return RunFolder(
            path=folder,
            description=description,
            metrics=[] if scores_only else _objects(folder / "metrics.jsonl"),
            revisions=[] if scores_only else _objects(folder / "revisions.jsonl"),
            student=_read_evaluation(folder, name, "student", scores_only),
            teacher=_read_evaluation(folder / "teacher", "teacher", "teacher", scores_only),
            before=_read_evaluation(folder / "before", "before training", "before", scores_only),
        )
    except (DataError, OSError) as error:
        raise CheckpointError(f"{error}; restore the file, or repeat the stage that wrote it") from error


def read_object(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file of redistill's, of the schema that this version reads.

    Raises:
        DataError: the file is missing, holds no object, or is of another schema.
    """
    value = files.read_json(path)
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: holds {type(value).__name__}, not an object")
    if value.get("schema", SCHEMAS[0]) not in SCHEMAS:
        held, read = shown(value["schema"]), " or ".join(map(str, SCHEMAS))
        raise DataError(f"{path}: schema = {held}: this version of redistill reads {read}; install a later one")
    return value


def number(value: Any) -> float | None:
    """`value` as a finite number; None of anything else."""
    if isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _read_evaluation(folder: Path, label: str, role: str, scores_only: bool) -> Evaluation | None:
    if not (folder / "scores.json").is_file():
        return None
    scores = read_object(folder / "scores.json")
    datasets = {files.slug(name): name for name in mapping(scores.get("datasets"))}
    answers: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for path in sorted((folder / "responses").glob("*.jsonl")):
        match = _RESPONSES.fullmatch(path.name)
        dataset = datasets.get(files.slug(match[1])) if match else None
        if match and dataset is not None:
            names = [measure.name for measure in measures(mapping(scores["datasets"])[dataset])] if scores_only else None
            lines = {str(line["id"]): _answer(line, names) for line in _objects(path) if "id" in line}
            answers.setdefault(dataset, {})[match[2]] = lines
    return Evaluation(label=label, role=role, scores=scores, answers=answers)


def _answer(line: Mapping[str, Any], names: Sequence[str] | None) -> Mapping[str, Any]:
    """A line with a hash of its question; only these keys of it, where not all are wanted."""
    question = json.dumps([line.get("prompt"), line.get("references")])
    asked = hashlib.blake2b(question.encode(), digest_size=12).hexdigest()
    return {**(line if names is None else {name: line.get(name) for name in names}), _ASKED: asked}


def _measure(name: str, told: Mapping[str, Any]) -> Measure:
    title, unit = (str(told.get(key) or "")[:MAX_TITLE] for key in ("title", "unit"))
    return Measure(name, title or name, unit, "lower" if told.get("better") == "lower" else "higher")


def _objects(path: Path) -> list[Mapping[str, Any]]:
    return [line for line in files.read_lines(path) if isinstance(line, Mapping)]
