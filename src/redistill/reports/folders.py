"""Readers of run folders and evaluation folders.

A field or an optional file that is missing is returned as None or as an empty value.  A damaged file raises an error.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from redistill.config.shown import shown
from redistill.errors import CheckpointError, DataError
from redistill.records import FRACTION, PERCENT, Better, Json
from redistill.reports.responses import QUESTION_HASH, hashed_line, responses_files
from redistill.storage import files

SCHEMAS = (1, 2)  # supported values of "schema"; only run.json uses 2
MAX_TITLE = 60


@dataclass(frozen=True)
class Measure:
    """A metric as described in scores.json.

    Args:
        name: Key of the metric in scores.json and responses files.
        title: Name of the metric in tables.
        unit: Unit of the metric, such as "%"; "" if it has none.
        better: Whether a "higher" or a "lower" value is better.
    """

    name: str
    title: str
    unit: str
    better: Better

    @property
    def heading(self) -> str:
        """Column heading: the title, and the unit unless it is "%", "fraction" or "".

        Example:
            >>> Measure("w", "length", "words", "lower").heading, Measure("f", "F1", "%", "higher").heading
            ('length, words', 'F1')
        """
        return self.title if self.unit in (PERCENT, FRACTION, "") else f"{self.title}, {self.unit}"

    def shown(self, value: float | None) -> float | None:
        """Return the number that pages print for a value of the metric.

        The number is the percentage if the unit is "fraction", else the value itself.

        Example:
            >>> Measure("f", "F1", "fraction", "higher").shown(0.25), Measure("w", "length", "words", "lower").shown(3.0)
            (25.0, 3.0)
        """
        return 100 * value if value is not None and self.unit == FRACTION else value

    @property
    def sign(self) -> int:
        """1 if higher is better, -1 if lower is better."""
        return -1 if self.better == "lower" else 1


Answers = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Json]]]]
"""Data set -> evaluation seed -> prompt id -> line of the responses file."""

BEFORE_METRICS_HAD_NAMES = (
    Measure("rouge_l", "ROUGE-L", PERCENT, "higher"),
    Measure("exact_match", "exact match", FRACTION, "higher"),
)
"""Metrics of evaluations whose scores.json does not list any, as in commit 98f02f3 and earlier versions."""


def measures(scores: Json) -> tuple[Measure, ...]:
    """Return the metrics of one data set, the primary metric first.

    `scores` is the value of the data set in scores.json.  If it lists no metrics, the file is from an earlier version.  The
    result is then `BEFORE_METRICS_HAD_NAMES`.
    """
    found = []
    for name, described in mapping(at(scores, "metrics")).items():
        if re.fullmatch(r"\w+", name, re.ASCII):
            title, unit = (str(at(described, key) or "")[:MAX_TITLE] for key in ("title", "unit"))
            found.append(Measure(name, title or name, unit, "lower" if at(described, "better") == "lower" else "higher"))
    return tuple(found) or BEFORE_METRICS_HAD_NAMES


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores and responses of one model.

    Args:
        label: Display name of the model.
        role: "teacher", "before" (the student before training), "baseline" or "student".
        scores: Content of scores.json.
        answers: Lines of the responses files, with the responses and their scores.
        decoded: Lines of the responses files of further decodings, by the name of the decoding; only with the scores.
    """

    label: str
    role: str
    scores: Mapping[str, Json]
    answers: Answers
    decoded: Mapping[str, Answers] = field(default_factory=dict)

    @property
    def datasets(self) -> Mapping[str, Json]:
        """Scores in scores.json, by name of the data set."""
        return mapping(self.scores.get("datasets"))

    def measures(self, dataset: str) -> tuple[Measure, ...]:
        """Return the metrics of a data set, the primary one first."""
        return measures(self.datasets.get(dataset))

    def num_prompts(self, dataset: str) -> int:
        """Return the number of prompts of a data set.

        The responses of one evaluation seed are counted if scores.json does not contain the number.
        """
        recorded = number(at(self.datasets, dataset, "prompts"))
        answered = max((len(lines) for lines in self.answers.get(dataset, {}).values()), default=0)
        return answered if recorded is None else int(recorded)

    @property
    def settings(self) -> Mapping[str, Json]:
        """Settings that determine responses: weight hash, sampling, seeds, length limits."""
        return mapping(self.scores.get("settings"))

    @property
    def identity(self) -> str:
        """Text that identifies the model: the hash of its weights.

        If scores.json has no such hash, the text is the whole content of scores.json.
        """
        return str(self.settings.get("model") or json.dumps(self.scores, sort_keys=True))

    def decodings(self, dataset: str) -> dict[str, str]:
        """Map the name of each further decoding of a data set to its title.

        The mapping is empty if there is only the main decoding.
        """
        found = mapping(at(self.datasets, dataset, "decodings"))
        return {name: decoding_title(at(about, "sampling")) for name, about in found.items()}

    def at_decoding(self, decoding: str) -> Self:
        """Return the evaluation as if a further decoding were the main decoding.

        Data sets without this decoding are left out.

        Args:
            decoding: Name of the decoding; see `decodings`.
        """
        found = {name: {**mapping(about), **mapping(at(about, "decodings", decoding))} for name, about in self.datasets.items()}
        datasets: Json = {name: about for name, about in found.items() if decoding in self.decodings(name)}
        scores = {**self.scores, "datasets": datasets}
        return replace(self, scores=scores, answers=self.decoded.get(decoding, {}), decoded={})

    def seed_scores(self, dataset: str, name: str, decoding: str | None = None) -> dict[str, float]:
        """Map each evaluation seed to its score `name`; omit seeds without this score.

        Answers sampled with `decoding` are scored; None is the main decoding.
        """
        path = () if decoding is None else ("decodings", decoding)
        seeds = mapping(at(self.datasets, dataset, *path, "seeds"))
        return {seed: score for seed, found in seeds.items() if (score := number(at(found, name))) is not None}

    def forced_score(self, dataset: str, name: str) -> float | None:
        """Return the teacher-forced score `name`; None if it is missing.

        The score is computed on the reference responses, so it does not depend on an evaluation seed.
        """
        return number(at(self.datasets, dataset, "teacher_forced", name))

    def prompt_scores(self, dataset: str, name: str) -> list[dict[str, float]]:
        """Return one mapping per evaluation seed, from prompt id to the score `name`.

        Prompts without this score are omitted.
        """
        return [
            {prompt: score for prompt, line in lines.items() if (score := number(line.get(name))) is not None}
            for lines in self.answers.get(dataset, {}).values()
        ]

    def question_hashes(self, dataset: str) -> dict[str, str]:
        """Map each prompt id to a hash of the prompt and its references.

        The hashes distinguish test files that use the same ids for different prompts.
        """
        seeds = self.answers.get(dataset, {}).values()
        return {prompt: str(line[QUESTION_HASH]) for lines in seeds for prompt, line in lines.items()}


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Content of a run folder, without the logs (see `log_lines`).

    Args:
        path: The folder.
        description: Content of run.json.
        student, teacher, before: Evaluations of the student, of the teacher and of the student before training; None if
            missing.
    """

    path: Path
    description: Mapping[str, Json]
    student: Evaluation | None
    teacher: Evaluation | None
    before: Evaluation | None

    @property
    def name(self) -> str:
        """Name of the run, or of its folder if no name is recorded."""
        return str(self.description.get("name") or self.path.resolve().name)


def read_run(folder: Path, *, scores_only: bool = False) -> RunFolder:
    """Read run.json and the evaluations of a run folder.

    Args:
        folder: A run folder.
        scores_only: If True, the texts of responses are not kept, to save memory when many runs are read.

    Raises:
        CheckpointError: the folder or its run.json is missing; a file in the folder is damaged; a file has a newer schema.
    """
    if not (folder / "run.json").is_file():
        fault = "run.json is missing" if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: {fault}; must be a run folder of redistill; check the path")
    with _damage_named():
        description = read_object(folder / "run.json")
        name = str(description.get("name") or folder.resolve().name)
        return RunFolder(
            path=folder,
            description=description,
            student=_read_evaluation(folder, name, "student", scores_only),
            teacher=_read_evaluation(folder / "teacher", "teacher", "teacher", scores_only),
            before=_read_evaluation(folder / "before", "before training", "before", scores_only),
        )


def read_evaluation(folder: Path, label: str, role: str) -> Evaluation | None:
    """Read scores.json and the responses of one evaluation.

    The result is None if the folder has no scores.json.

    Args:
        folder: The output folder of an evaluation, or a run folder for the evaluation of its student.
        label, role: As in `Evaluation`.

    Raises:
        CheckpointError: a file is damaged, or has a newer schema.
    """
    with _damage_named():
        return _read_evaluation(folder, label, role, scores_only=False)


def log_lines(path: Path) -> Iterator[Mapping[str, Json]]:
    """Yield the lines of a log in a run folder, such as metrics.jsonl.

    Only one line is kept in memory.  There are no lines if the file is missing.  Lines that are not JSON objects are skipped.

    Raises:
        CheckpointError: the file is damaged.
    """
    with _damage_named():
        yield from _objects(path)


def distinct_labels(runs: Sequence[RunFolder]) -> list[str]:
    """Return a label for each run, so that different runs have different labels.

    The label is the name of the run.  Runs with the same name are labelled by their methods, or else by the names of their
    folders, or else by the paths of their folders.

    Args:
        runs: Run folders; a folder may occur several times.
    """
    paths = [run.path.resolve() for run in runs]
    kinds = (
        [run.name for run in runs],
        [str(run.description.get("method") or run.name) for run in runs],
        [path.name for path in paths],
        [str(run.path) for run in runs],
    )
    labels = list(kinds[0])
    for others in kinds[1:]:
        pairs = set(zip(labels, paths))
        count = Counter(label for label, _ in pairs)
        labels = [other if count[label] > 1 else label for label, other in zip(labels, others)]
    return labels


@contextmanager
def _damage_named() -> Iterator[None]:
    """Context manager that raises `CheckpointError` if a file cannot be read."""
    try:
        yield
    except (DataError, OSError) as error:
        raise CheckpointError(f"{error}; restore the file, or rerun the command that wrote it") from error


def read_object(path: Path) -> Mapping[str, Json]:
    """Read a JSON object from a file of a run folder and check its schema.

    Raises:
        DataError: the file is missing, is not a JSON object, or has an unsupported schema.
    """
    value = files.read_json(path)
    if not isinstance(value, Mapping):
        raise DataError(f"{path}: contains {type(value).__name__}; must be a JSON object")
    if value.get("schema", SCHEMAS[0]) not in SCHEMAS:
        held, read = shown(value["schema"]), " or ".join(map(str, SCHEMAS))
        raise DataError(f"{path}: schema = {held}: must be {read}; install a newer version of redistill")
    return value


def number(value: object) -> float | None:
    """Convert `value` to a float; return None if it is not a finite number."""
    try:
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def mapping(value: object) -> Mapping[str, Json]:
    """Return `value` if it is a mapping, else an empty mapping."""
    return value if isinstance(value, Mapping) else {}


def at(tree: Json, *path: str) -> Json:
    """Return the value at a path of keys in nested mappings; None if it is missing.

    Example:
        >>> at({"models": {"student": {"name": "small"}}}, "models", "student", "name"), at({"models": "?"}, "models", "name")
        ('small', None)
    """
    for key in path:
        tree = mapping(tree).get(key)
    return tree


def decoding_title(sampling: Json) -> str:
    """Return a short description of a decoding, for headings.

    The temperature is always named.  top-p and top-k are omitted if they keep all tokens or are missing.

    Args:
        sampling: The fields temperature, top_p and top_k, as in scores.json.

    Example:
        >>> decoding_title({"temperature": 0.8}), decoding_title({"temperature": 0.0}), decoding_title({"top_p": 0.9})
        ('T 0.8', 'greedy', 'T 1, top-p 0.9')
    """
    found = {name: number(at(sampling, name)) for name in ("temperature", "top_p", "top_k")}
    temperature = 1.0 if found["temperature"] is None else found["temperature"]
    parts = ["greedy" if temperature == 0 else f"T {temperature:g}"]
    parts += [] if found["top_p"] in (None, 1) else [f"top-p {found['top_p']:g}"]
    return ", ".join(parts + ([f"top-k {found['top_k']:g}"] if found["top_k"] else []))


def _read_evaluation(folder: Path, label: str, role: str, scores_only: bool) -> Evaluation | None:
    if not (folder / "scores.json").is_file():
        return None
    scores = read_object(folder / "scores.json")
    found: dict[str | None, dict[str, dict[str, dict[str, Mapping[str, Json]]]]] = {None: {}}
    for dataset, decoding, seed, path in responses_files(folder, scores):
        named = [measure.name for measure in measures(at(scores, "datasets", dataset))]
        names = named if scores_only or decoding is not None else None
        lines = {str(line["id"]): hashed_line(line, names) for line in _objects(path) if "id" in line}
        found.setdefault(decoding, {}).setdefault(dataset, {})[seed] = lines
    decoded = {name: answers for name, answers in found.items() if name is not None}
    return Evaluation(label=label, role=role, scores=scores, answers=found[None], decoded=decoded)


def _objects(path: Path) -> Iterator[Mapping[str, Json]]:
    return (line for _, line in files.scan_lines(path) if isinstance(line, Mapping))
