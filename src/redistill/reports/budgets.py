"""Checks that the compared runs used the same budgets and settings.

A difference is reported with the value of each run; nothing is corrected.  Learning rates belong to the methods and are not
checked.  The number of generated tokens differs by design and is reported with the costs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redistill.reports.folders import Evaluation, mapping
from redistill.reports.lineup import Entry, Lineup

_HASH_CHARACTERS = 10


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Budgets and settings of the compared runs, grouped by agreement, as text.

    Args:
        unequal: One entry per aspect that differs, such as "updates: 150 (sft), 300 (mgsr, kd)".
        equal: One entry per aspect that is equal, such as "updates 150".
        unknown: Names of the aspects that no run has recorded.
    """

    unequal: Sequence[str]
    equal: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Aspect:
    """One budget or setting that should be equal in all runs.

    Args:
        read: Returns a run's value as text, None if the run has not recorded it.
        optional: Ignore runs without a value (a method without a teacher) instead of reporting a difference.
        by_seed: Compare only runs of the same training seed (a teacher that is fine-tuned for each seed).
    """

    name: str
    read: Callable[[Entry], str | None]
    optional: bool = False
    by_seed: bool = False


def check_budgets(lineup: Lineup) -> Budgets:
    """Compare the budgets and settings of all runs of a comparison."""
    unequal, equal, unknown = [], [], []
    for aspect in (*_ASPECTS, _training_seeds(lineup), *_prompts(lineup)):
        read = [(entry, aspect.read(entry)) for entry in lineup.entries]
        found = [(entry, str(value) if value else None) for entry, value in read]  # values in run.json have no guaranteed type
        values = [(entry, value or "not recorded") for entry, value in found if value or not aspect.optional]
        if not any(value for _, value in found):
            unknown += [] if aspect.optional else [aspect.name]
        elif _agree(values, aspect.by_seed):
            distinct = list(dict.fromkeys(value for _, value in values))
            equal.append(f"{aspect.name} {distinct[0]}" if len(distinct) == 1 else f"{aspect.name}, for each training seed")
        else:
            unequal.append(f"{aspect.name}: {_by_value(values, lineup)}")
    return Budgets(unequal=unequal, equal=equal, unknown=unknown)


def _agree(values: Sequence[tuple[Entry, str]], by_seed: bool) -> bool:
    groups: dict[int, set[str]] = {}
    for entry, value in values:
        groups.setdefault(entry.seed if by_seed else 0, set()).add(value)
    return all(len(group) == 1 for group in groups.values())


def _by_value(values: Sequence[tuple[Entry, str]], lineup: Lineup) -> str:
    """Each value with its labels; training seeds are added where the runs of one label differ."""
    holders: dict[str, list[Entry]] = {}
    for entry, value in values:
        holders.setdefault(value, []).append(entry)
    parts = []
    for value, entries in holders.items():
        names = []
        for label in dict.fromkeys(entry.label for entry in entries):
            seeds = [entry.seed for entry in entries if entry.label == label]
            complete = len(seeds) == len(lineup.of(label))
            names.append(label if complete else f"{label} seed {', '.join(map(str, seeds))}")
        parts.append(f"{value} ({', '.join(names)})")
    return ", ".join(parts)


def _config(*path: str) -> Callable[[Entry], str | None]:
    """Reader of one setting of the run's recipe, as text."""

    def read(entry: Entry) -> str | None:
        value: Any = entry.run.description.get("config")
        for name in path:
            value = mapping(value).get(name)
        return None if value is None else _text(value)

    return read


def _setting(*path: str) -> Callable[[Entry], str | None]:
    """Reader of an optional setting, as text: "none" if the recipe omits it, None if the run has no recipe."""

    def read(entry: Entry) -> str | None:
        return (_config(*path)(entry) or "none") if entry.run.description.get("config") else None

    return read


def _dtypes(entry: Entry) -> str | None:
    found = [_config(role, "dtype")(entry) for role in ("teacher", "student")]
    return ", ".join(dtype for dtype in found if dtype) or None


def _updates(entry: Entry) -> str | None:
    """Number of updates performed (early stopping may reduce it), else the number in the recipe."""
    performed = mapping(entry.run.description.get("cost")).get("updates")
    return _config("training", "updates")(entry) if performed is None else str(performed)


def _training_data(entry: Entry) -> str | None:
    """Training, validation and corpus sources by role: the file's hash, else its path or hub name."""
    manifest = mapping(entry.run.description.get("data"))
    sources = {role: mapping(held) for role, held in manifest.items() if role != "kept" and not role.startswith("test ")}
    return ", ".join(f"{role} {_source(held)}" for role, held in sources.items()) or None


def _source(held: Mapping[str, Any]) -> str:
    return str(held.get("sha256", ""))[:_HASH_CHARACTERS] or str(held.get("source") or held.get("path") or "unnamed")


def _rows(entry: Entry) -> str | None:
    kept = mapping(mapping(entry.run.description.get("data")).get("kept"))
    return ", ".join(f"{kept[role]} {role}" for role in ("train", "validation") if role in kept) or None


def _model(role: str) -> Callable[[Entry], str | None]:
    def read(entry: Entry) -> str | None:
        name = mapping(mapping(entry.run.description.get("models")).get(role)).get("name")
        initialise = _config(role, "initialise")(entry)
        return f"{name}, {initialise}" if name and initialise else name

    return read


def _weights(role: str) -> Callable[[Entry], str | None]:
    """Reader of the weights' hash: the evaluated teacher, else the student before training."""

    def read(entry: Entry) -> str | None:
        evaluation = entry.run.teacher if role == "teacher" else entry.run.before
        return None if evaluation is None else str(evaluation.settings.get("model") or "")[:_HASH_CHARACTERS]

    return read


def _fine_tuned(stage: str, role: str) -> Callable[[Entry], str | None]:
    """Reader of the hash of the weights that a fine-tuning stage produced; None if the run has no such model."""

    def read(entry: Entry) -> str | None:
        described = entry.run.description
        if "stages" not in described or role not in mapping(described.get("models")):
            return None
        recorded = mapping(mapping(described["stages"]).get(stage))
        hashes = ", ".join(str(value)[:_HASH_CHARACTERS] for value in mapping(recorded.get("sha256")).values())
        return (hashes or str(recorded.get("folder"))) if recorded else "not fine-tuned"

    return read


def _evaluated(*names: str) -> Callable[[Entry], str | None]:
    """Reader of evaluation settings: those recorded with the scores, else those of the recipe."""

    def read(entry: Entry) -> str | None:
        config = mapping(entry.run.description.get("config"))
        recipe = mapping(config.get("evaluation"))
        held = {**recipe, "sampling": recipe, "tokens": mapping(config.get("data")).get("tokens"), **_settings(entry)}
        section = mapping(held.get(names[0])) if len(names) > 1 else held
        found = [name for name in (names[1:] or names) if name in section]
        return ", ".join(f"{name} {_text(section[name])}" if len(names) > 1 else _text(section[name]) for name in found) or None

    return read


def _settings(entry: Entry) -> Mapping[str, Any]:
    return {} if entry.run.student is None else entry.run.student.settings


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return "none" if value is None else str(value)


def _training_seeds(lineup: Lineup) -> _Aspect:
    def read(entry: Entry) -> str:
        return ", ".join(str(other.seed) for other in sorted(lineup.of(entry.label), key=lambda other: other.seed))

    return _Aspect(name="training seeds", read=read)


def _prompts(lineup: Lineup) -> Iterator[_Aspect]:
    """One aspect per data set: a hash of its prompts, since two files may use the same ids."""
    students = [entry.run.student for entry in lineup.entries if entry.run.student is not None]
    for dataset in dict.fromkeys(name for student in students for name in student.datasets):
        yield _Aspect(name=f"prompts of {dataset}", read=_prompts_of(dataset))


def _prompts_of(dataset: str) -> Callable[[Entry], str | None]:
    def read(entry: Entry) -> str | None:
        student: Evaluation | None = entry.run.student
        hashes = {} if student is None else student.question_hashes(dataset)
        if not hashes:
            return None
        found = hashlib.blake2b(json.dumps(sorted(hashes.items())).encode(), digest_size=5).hexdigest()
        return f"{len(hashes)} ({found})"

    return read


_ASPECTS = (
    _Aspect(name="updates", read=_updates),
    _Aspect(name="sequences per update", read=_config("training", "batch_size")),
    _Aspect(name="precision", read=_config("training", "precision")),
    _Aspect(name="updates between validations", read=_config("training", "evaluate_every")),
    _Aspect(name="best checkpoint chosen by", read=_config("training", "choose_by")),
    _Aspect(name="patience, in validations", read=_setting("training", "patience")),
    _Aspect(name="compatibility mode", read=_setting("compat")),
    _Aspect(name="training data", read=_training_data),
    _Aspect(name="rows", read=_rows),
    _Aspect(name="teacher", read=_model("teacher"), optional=True),
    _Aspect(name="fine-tuned teacher", read=_fine_tuned("teacher", "teacher"), optional=True),
    _Aspect(name="teacher's weights", read=_weights("teacher"), optional=True, by_seed=True),
    _Aspect(name="student", read=_model("student")),
    _Aspect(name="adapters", read=_setting("student", "lora")),
    _Aspect(name="dtypes of teacher and student", read=_dtypes),
    _Aspect(name="student's start checkpoint", read=_fine_tuned("start", "student"), optional=True, by_seed=True),
    _Aspect(name="student's weights before training", read=_weights("before"), optional=True, by_seed=True),
    _Aspect(name="evaluation seeds", read=_evaluated("seeds")),
    _Aspect(name="evaluation limit", read=_evaluated("limit")),
    _Aspect(name="sampling", read=_evaluated("sampling", "temperature", "top_p", "top_k", "no_repeat_ngram")),
    _Aspect(name="lengths and template", read=_evaluated("tokens", "prompt_tokens", "response_tokens", "template")),
    _Aspect(name="commit", read=lambda entry: str(entry.run.description.get("commit") or "")[:_HASH_CHARACTERS]),
)
