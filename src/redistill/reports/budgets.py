"""Whether the compared runs had the same of everything that should be equal.

A disagreement is told, never repaired: which runs had which value.  Learning rates are each method's own and not looked at;
generated tokens differ by the nature of the methods and stand with the costs.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redistill.reports.folders import Evaluation, mapping
from redistill.reports.lineup import Entry, Lineup

_HASH_LETTERS = 10


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """What is equal in all compared runs, and what is not, in words.

    Args:
        unequal: Such as "updates: 150 (sft), 300 (mgsr, kd)".
        equal: Such as "updates 150".
        unknown: Names of what no run has recorded.
    """

    unequal: Sequence[str]
    equal: Sequence[str]
    unknown: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class _Aspect:
    """Something that runs should have in common.

    Args:
        read: A run's value in words; None where it has recorded none.
        optional: Runs without a value are left out of the check (a method without a teacher), not flagged.
        by_seed: Only runs of the same training seed must agree (a teacher that is fine-tuned for each seed).
    """

    name: str
    read: Callable[[Entry], str | None]
    optional: bool = False
    by_seed: bool = False


def check_budgets(lineup: Lineup) -> Budgets:
    """What all runs of a comparison have in common, and where they disagree."""
    unequal, equal, unknown = [], [], []
    for aspect in (*_ASPECTS, _training_seeds(lineup), *_prompts(lineup)):
        read = [(entry, aspect.read(entry)) for entry in lineup.entries]
        found = [(entry, str(value) if value else None) for entry, value in read]  # a run.json may hold anything
        values = [(entry, value or "not recorded") for entry, value in found if value or not aspect.optional]
        if not any(value for _, value in found):
            unknown += [] if aspect.optional else [aspect.name]
        elif _agree(values, aspect.by_seed):
            distinct = list(dict.fromkeys(value for _, value in values))
            equal.append(f"{aspect.name} {distinct[0]}" if len(distinct) == 1 else f"{aspect.name}, seed by seed")
        else:
            unequal.append(f"{aspect.name}: {_by_value(values, lineup)}")
    return Budgets(unequal=unequal, equal=equal, unknown=unknown)


def _agree(values: Sequence[tuple[Entry, str]], by_seed: bool) -> bool:
    groups: dict[int, set[str]] = {}
    for entry, value in values:
        groups.setdefault(entry.seed if by_seed else 0, set()).add(value)
    return all(len(group) == 1 for group in groups.values())


def _by_value(values: Sequence[tuple[Entry, str]], lineup: Lineup) -> str:
    """Each value with the labels that have it; single runs are named where a label's runs disagree."""
    holders: dict[str, list[Entry]] = {}
    for entry, value in values:
        holders.setdefault(value, []).append(entry)
    told = []
    for value, entries in holders.items():
        names = []
        for label in dict.fromkeys(entry.label for entry in entries):
            seeds = [entry.seed for entry in entries if entry.label == label]
            complete = len(seeds) == len(lineup.of(label))
            names.append(label if complete else f"{label} seed {', '.join(map(str, seeds))}")
        told.append(f"{value} ({', '.join(names)})")
    return ", ".join(told)


def _config(*path: str) -> Callable[[Entry], str | None]:
    """A setting of the run's recipe in words."""

    def read(entry: Entry) -> str | None:
        value: Any = entry.run.description.get("config")
        for name in path:
            value = mapping(value).get(name)
        return None if value is None else _words(value)

    return read


def _setting(*path: str) -> Callable[[Entry], str | None]:
    """A setting that a recipe may leave out, in words: "none" where it does; None where the run has no recipe."""

    def read(entry: Entry) -> str | None:
        return (_config(*path)(entry) or "none") if entry.run.description.get("config") else None

    return read


def _dtypes(entry: Entry) -> str | None:
    found = [_config(role, "dtype")(entry) for role in ("teacher", "student")]
    return ", ".join(dtype for dtype in found if dtype) or None


def _updates(entry: Entry) -> str | None:
    """Updates made, which early stopping may have cut short; planned ones where a run has not recorded them."""
    made = mapping(entry.run.description.get("cost")).get("updates")
    return _config("training", "updates")(entry) if made is None else str(made)


def _learnt_from(entry: Entry) -> str | None:
    """The files or hub names that the run has read to learn from, by hash where they were files."""
    manifest = mapping(entry.run.description.get("data"))
    about = {role: mapping(told) for role, told in manifest.items() if role != "kept" and not role.startswith("test ")}
    return ", ".join(f"{role} {_source(told)}" for role, told in about.items()) or None


def _source(told: Mapping[str, Any]) -> str:
    return str(told.get("sha256", ""))[:_HASH_LETTERS] or str(told.get("source") or told.get("path") or "unnamed")


def _rows(entry: Entry) -> str | None:
    kept = mapping(mapping(entry.run.description.get("data")).get("kept"))
    return ", ".join(f"{kept[role]} {role}" for role in ("train", "validation") if role in kept) or None


def _model(role: str) -> Callable[[Entry], str | None]:
    def read(entry: Entry) -> str | None:
        told = mapping(mapping(entry.run.description.get("models")).get(role)).get("name")
        initialise = _config(role, "initialise")(entry)
        return f"{told}, {initialise}" if told and initialise else told

    return read


def _weights(role: str) -> Callable[[Entry], str | None]:
    """Hash of the weights of a model that was evaluated with the run."""

    def read(entry: Entry) -> str | None:
        evaluation = entry.run.teacher if role == "teacher" else entry.run.before
        return None if evaluation is None else str(evaluation.settings.get("model") or "")[:_HASH_LETTERS]

    return read


def _tuned(stage: str, role: str) -> Callable[[Entry], str | None]:
    """Hash of the weights that came out of the fine-tuning before the run; None where the run has no such model."""

    def read(entry: Entry) -> str | None:
        described = entry.run.description
        if "stages" not in described or role not in mapping(described.get("models")):
            return None
        told = mapping(mapping(described["stages"]).get(stage))
        hashes = ", ".join(str(value)[:_HASH_LETTERS] for value in mapping(told.get("sha256")).values())
        return (hashes or str(told.get("folder"))) if told else "not fine-tuned"

    return read


def _evaluated(*names: str) -> Callable[[Entry], str | None]:
    """How the answers were drawn, as the scores tell it, else as the recipe asked for it."""

    def read(entry: Entry) -> str | None:
        config = mapping(entry.run.description.get("config"))
        asked = mapping(config.get("evaluation"))
        held = {**asked, "sampling": asked, "tokens": mapping(config.get("data")).get("tokens"), **_settings(entry)}
        place = mapping(held.get(names[0])) if len(names) > 1 else held
        found = [name for name in (names[1:] or names) if name in place]
        return ", ".join(f"{name} {_words(place[name])}" if len(names) > 1 else _words(place[name]) for name in found) or None

    return read


def _settings(entry: Entry) -> Mapping[str, Any]:
    return {} if entry.run.student is None else entry.run.student.settings


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_words(item) for item in value)
    return "none" if value is None else str(value)


def _training_seeds(lineup: Lineup) -> _Aspect:
    def read(entry: Entry) -> str:
        return ", ".join(str(other.seed) for other in sorted(lineup.of(entry.label), key=lambda other: other.seed))

    return _Aspect(name="training seeds", read=read)


def _prompts(lineup: Lineup) -> Iterator[_Aspect]:
    """For each data set, what was asked; ids alone do not tell two files apart."""
    students = [entry.run.student for entry in lineup.entries if entry.run.student is not None]
    for dataset in dict.fromkeys(name for student in students for name in student.datasets):
        yield _Aspect(name=f"prompts of {dataset}", read=_questions(dataset))


def _questions(dataset: str) -> Callable[[Entry], str | None]:
    def read(entry: Entry) -> str | None:
        student: Evaluation | None = entry.run.student
        asked = {} if student is None else student.asked(dataset)
        if not asked:
            return None
        found = hashlib.blake2b(json.dumps(sorted(asked.items())).encode(), digest_size=5).hexdigest()
        return f"{len(asked)} ({found})"

    return read


_ASPECTS = (
    _Aspect(name="updates", read=_updates),
    _Aspect(name="sequences of an update", read=_config("training", "batch_size")),
    _Aspect(name="precision", read=_config("training", "precision")),
    _Aspect(name="updates between validations", read=_config("training", "evaluate_every")),
    _Aspect(name="best checkpoint by", read=_config("training", "choose_by")),
    _Aspect(name="validations without gain allowed", read=_setting("training", "patience")),
    _Aspect(name="habits of the reference code", read=_setting("compat")),
    _Aspect(name="data learnt from", read=_learnt_from),
    _Aspect(name="rows", read=_rows),
    _Aspect(name="teacher", read=_model("teacher"), optional=True),
    _Aspect(name="fine-tuned teacher", read=_tuned("teacher", "teacher"), optional=True),
    _Aspect(name="teacher's weights", read=_weights("teacher"), optional=True, by_seed=True),
    _Aspect(name="student", read=_model("student")),
    _Aspect(name="adapters", read=_setting("student", "lora")),
    _Aspect(name="weights of teacher and student in", read=_dtypes),
    _Aspect(name="student's start", read=_tuned("start", "student"), optional=True, by_seed=True),
    _Aspect(name="student's weights before training", read=_weights("before"), optional=True, by_seed=True),
    _Aspect(name="evaluation seeds", read=_evaluated("seeds")),
    _Aspect(name="evaluation limit", read=_evaluated("limit")),
    _Aspect(name="sampling", read=_evaluated("sampling", "temperature", "top_p", "top_k", "no_repeat_ngram")),
    _Aspect(name="lengths and template", read=_evaluated("tokens", "prompt_tokens", "response_tokens", "template")),
    _Aspect(name="commit", read=lambda entry: str(entry.run.description.get("commit") or "")[:_HASH_LETTERS]),
)
