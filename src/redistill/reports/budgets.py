"""Checks that the compared runs used the same budgets and settings.

A difference is reported with the value of each run; scores are not adjusted for it.  Learning rates are not checked, because
each method has its own.  Numbers of generated tokens differ by design, so they are reported with the costs.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from redistill.records import Json
from redistill.reports.folders import at, mapping
from redistill.reports.lineup import Entry, Lineup

_HASH_CHARACTERS = 10


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """Budgets and settings of the compared runs, as text.

    An aspect is one budget or one setting.

    Args:
        unequal: One text per aspect that differs between runs; it lists each value with the labels of the runs that have it,
            such as "updates: 150 (sft), 300 (mgsr, kd)".
        unequal_names: Names of the aspects in `unequal`, such as "updates".
        equal: One text per aspect that does not differ, such as "updates 150".
        unknown: Names of the aspects for which no run has recorded a value.
    """

    unequal: Sequence[str]
    unequal_names: Sequence[str]
    equal: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True)
class _Aspect:
    """One budget or setting that should be equal in all runs.

    Args:
        name: Name of the budget or setting in the output, such as "updates".
        read: Function that returns a run's value of the budget or setting.  It returns None or "" if the run has not recorded a
            value.  Values are compared as text.
        optional: Whether a run may have no value; for example, a run without a teacher has no teacher weights. If True, runs
            without a value are ignored. If False, the value of such a run is the text "not recorded".
        by_seed: If True, only runs with the same training seed are compared.  For example, each training seed may have its own
            fine-tuned teacher.
    """

    name: str
    read: Callable[[Entry], Json]
    optional: bool = False
    by_seed: bool = False


def check_budgets(lineup: Lineup) -> Budgets:
    """Return which budgets and settings are equal in all runs, and which differ."""
    seeds = _Aspect("training seeds", lambda entry: sorted(other.seed for other in lineup.of(entry.label)))
    students = [entry.run.student for entry in lineup.entries if entry.run.student is not None]
    datasets = dict.fromkeys(name for student in students for name in student.datasets)
    prompts = [_Aspect(f"prompts of {name}", partial(_prompts, name)) for name in datasets]
    unequal, names, equal, unknown = [], [], [], []
    for aspect in (*_ASPECTS, seeds, *prompts):
        read = [(entry, aspect.read(entry)) for entry in lineup.entries]
        found = [(entry, None if value is None else _text(value)) for entry, value in read]
        values = [(entry, text or "not recorded") for entry, text in found if text or not aspect.optional]
        if not any(text for _, text in found):
            unknown += [] if aspect.optional else [aspect.name]
        elif _agree((entry.seed if aspect.by_seed else 0, text) for entry, text in values):
            distinct = list(dict.fromkeys(text for _, text in values))
            equal.append(f"{aspect.name} {distinct[0]}" if len(distinct) == 1 else f"{aspect.name}, for each training seed")
        else:
            unequal.append(f"{aspect.name}: {_by_value(values, lineup)}")
            names.append(aspect.name)
    return Budgets(unequal=unequal, unequal_names=names, equal=equal, unknown=unknown)


def _agree(pairs: Iterable[tuple[int, str]]) -> bool:
    """Return whether all pairs (group, value) with the same group have the same value."""
    distinct = set(pairs)
    return len(distinct) == len({group for group, _ in distinct})


def _by_value(values: Sequence[tuple[Entry, str]], lineup: Lineup) -> str:
    """Return a text that lists each value with the labels of the runs that have it.

    Training seeds follow a label if only some of its runs have the value.
    """
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


def _text(value: Json) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "none" if value is None else str(value)


def _config(*path: str, unset: str | None = None) -> Callable[[Entry], Json]:
    """Return a function that reads one setting from the recipe of a run.

    `path` consists of the keys that lead to the setting.  The function returns `unset` if the recipe omits the setting, and
    None if the run has recorded no recipe.
    """

    def read(entry: Entry) -> Json:
        config = at(entry.run.description, "config")
        value = at(config, *path)
        return (None if value is None else _text(value)) or (unset if config else None)

    return read


def _dtypes(entry: Entry) -> Json:
    found = [at(entry.run.description, "config", role, "dtype") for role in ("teacher", "student")]
    return [dtype for dtype in found if dtype]


def _updates(entry: Entry) -> Json:
    """Return the number of updates that a run has performed.

    Early stopping can make it smaller than the number in the recipe.  The setting in the recipe is returned only if the run has
    not recorded how many updates it performed.
    """
    performed = at(entry.run.description, "cost", "updates")
    return at(entry.run.description, "config", "training", "updates") if performed is None else performed


def _training_data(entry: Entry) -> Json:
    """Return a hash of each data set that a run has used for training and validation.

    The keys are the names in run.json, such as "train" and "corpus".  If run.json has no hash of a data set, the value is the
    path of the data set, or its name on the hub.
    """
    manifest = mapping(at(entry.run.description, "data"))
    return {
        role: _hash(at(held, "sha256")) or at(held, "source") or at(held, "path") or "unnamed"
        for role, held in manifest.items()
        if role not in ("kept", "special tokens", "templates") and not role.startswith("test ")
    }


def _hash(value: Json) -> str:
    return str(value or "")[:_HASH_CHARACTERS]


def _rows(entry: Entry) -> Json:
    kept = mapping(at(entry.run.description, "data", "kept"))
    return [f"{kept[role]} {role}" for role in ("train", "validation") if role in kept]


def _model(role: str) -> Callable[[Entry], Json]:
    def read(entry: Entry) -> Json:
        name = at(entry.run.description, "models", role, "name")
        initialise = at(entry.run.description, "config", role, "initialise")
        return [name, initialise] if name and initialise else name

    return read


def _weights(role: str) -> Callable[[Entry], Json]:
    """Return a function that reads the hash of a model's weights from a run.

    The model is the teacher if `role` is "teacher".  Otherwise, it is the student before training.  The function returns None
    if the run has not evaluated the model.
    """

    def read(entry: Entry) -> Json:
        evaluation = entry.run.teacher if role == "teacher" else entry.run.before
        return None if evaluation is None else _hash(evaluation.settings.get("model"))

    return read


def _fine_tuned(stage: str, role: str) -> Callable[[Entry], Json]:
    """Return a function that reads the hashes of fine-tuned weights from a run.

    `stage` is a fine-tuning before the distillation: "teacher" fine-tunes the teacher, "start" fine-tunes the student.  The
    function returns one hash per file of weights.  Without recorded hashes, it returns the folder of the weights.  It returns
    "not fine-tuned" if the run had no such fine-tuning.  It returns None if the run has no model of this `role`.  It also
    returns None for an old run.json without entries for fine-tuning.
    """

    def read(entry: Entry) -> Json:
        described = entry.run.description
        if "stages" not in described or role not in mapping(at(described, "models")):
            return None
        recorded = mapping(at(described, "stages", stage))
        hashes = [_hash(value) for value in mapping(recorded.get("sha256")).values()]
        return (hashes or recorded.get("folder")) if recorded else "not fine-tuned"

    return read


def _evaluated(name: str, *parts: str) -> Callable[[Entry], Json]:
    """Return a function that reads the evaluation setting `name` from a run.

    If `parts` is not empty, the setting is a mapping, and the function returns only the keys in `parts`.  A value in
    scores.json takes precedence over the value in the recipe.
    """

    def read(entry: Entry) -> Json:
        recipe, tokens = (at(entry.run.description, "config", *path) for path in (("evaluation",), ("data", "tokens")))
        recorded = {} if entry.run.student is None else entry.run.student.settings
        held: Mapping[str, Json] = {**mapping(recipe), "sampling": recipe, "tokens": tokens, **recorded}
        if not parts:
            return _text(held[name]) if name in held else None
        section = mapping(held.get(name))
        return {part: section[part] for part in parts if part in section}

    return read


def _prompts(dataset: str, entry: Entry) -> Json:
    """Return the number and a hash of the prompts of a data set, as text.

    The hash covers the ids, the prompts and the references.  Two test files may use the same ids for different prompts.
    """
    hashes = {} if entry.run.student is None else entry.run.student.question_hashes(dataset)
    found = hashlib.blake2b(json.dumps(sorted(hashes.items())).encode(), digest_size=5).hexdigest()
    return f"{len(hashes)} ({found})" if hashes else None


_ASPECTS = (
    _Aspect("updates", _updates),
    _Aspect("sequences per update", _config("training", "batch_size")),
    _Aspect("precision", _config("training", "precision")),
    _Aspect("updates between validations", _config("training", "evaluate_every")),
    _Aspect("best checkpoint chosen by", _config("training", "choose_by")),
    _Aspect("patience, in validations", _config("training", "patience", unset="none")),
    _Aspect("compatibility mode", _config("compat", unset="none")),
    _Aspect("training data", _training_data),
    _Aspect("rows", _rows),
    _Aspect("teacher", _model("teacher"), optional=True),
    _Aspect("fine-tuned teacher", _fine_tuned("teacher", "teacher"), optional=True),
    _Aspect("teacher's weights", _weights("teacher"), optional=True, by_seed=True),
    _Aspect("student", _model("student")),
    _Aspect("adapters", _config("student", "lora", unset="none")),
    _Aspect("dtypes of teacher and student", _dtypes),
    _Aspect("student's start checkpoint", _fine_tuned("start", "student"), optional=True, by_seed=True),
    _Aspect("student's weights before training", _weights("before"), optional=True, by_seed=True),
    _Aspect("evaluation seeds", _evaluated("seeds")),
    _Aspect("evaluation limit", _evaluated("limit")),
    _Aspect("sampling", _evaluated("sampling", "temperature", "top_p", "top_k", "no_repeat_ngram")),
    _Aspect("lengths and template", _evaluated("tokens", "prompt_tokens", "response_tokens", "template")),
    _Aspect("commit", lambda entry: _hash(entry.run.description.get("commit"))),
)
