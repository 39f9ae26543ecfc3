"""The identity of a run: hashes of its settings, model files and data.

A run resumes only from checkpoints of the same identity.  All ranks of a job must have the same identity.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from redistill.config.run import Run, encode_run, without_length, without_outputs
from redistill.contracts import Example, TokenSequence
from redistill.data.examples import digest_of
from redistill.models.load import ModelConfig
from redistill.models.model_hashes import model_hashes
from redistill.processes import signals
from redistill.processes.watch import RanksDifferError
from redistill.records import Json, Record
from redistill.runs.opened import OpenRun
from redistill.runs.record import versions
from redistill.runs.served import same_model
from redistill.runs.stages import student_source, teacher_source
from redistill.storage.file_hash import file_hash
from redistill.teachers.served import ServedTeacher
from redistill.training import checkpoint

LATER: Mapping[str, Json] = {
    "attention": None,
    "decoder": None,
    "offload": None,
    "quantise": None,
    "max_staleness": None,
    "colocated": None,
    "transfer": "reload",
}
"""Settings that were added to recipes after runs had been made, with the values that the earlier runs have."""


def checked_identity(run: OpenRun) -> dict[str, str]:
    """Return the identity of a run, after a check that all ranks have the same inputs.

    The identity consists of hashes of the settings, of the model files, and of the training, validation and pre-training
    data.  The ranks must also have the same test data and the same existing checkpoints.  The versions of redistill and of
    packages that can change a result must be equal as well.  Every rank must call this function.

    Args:
        run: The run, with loaded models and data.

    Returns:
        Hexadecimal SHA-256 hashes by name, such as "teacher weights", "student chat template" or "training data".  The
        hashes of the models come before those of the data.  An error names only the first hash that differs, and another
        tokenizer also changes the hashes of the data.

    Raises:
        ModelError: the files of a model were removed while the run was loading.
        RanksDifferError: on all ranks, if a rank differs from rank 0.
        Interrupted: a signal arrived, in this process or another.
    """
    with signals.handled(at_once=True):
        mine = _identity(run)
        steps = ", ".join(map(str, checkpoint.steps(run.output.checkpoints)))
        length = {"training.updates": str(run.config.training.updates), "corpus": digest_of(run.corpus)}
        compared = {**mine, **length, "test data": _records_hash(run.data.tests), "checkpoints": steps}
    check_ranks(run.processes.gather([(compared, versions())]))
    return mine


def check_ranks(ranks: Sequence[tuple[Mapping[str, str], Mapping[str, str]]]) -> None:
    """Check that all ranks have the same inputs.

    Args:
        ranks: For each rank: a mapping from the name of an input to its hash or value, and the versions of packages by name.

    Raises:
        RanksDifferError: a rank differs from rank 0; the error names the first such rank and what differs.
    """
    inputs, packages = ranks[0]
    for rank, (other_inputs, other_packages) in enumerate(ranks):
        names = list(_changed(inputs, other_inputs))
        both = [f"{name} {theirs} and {ours}" for name, (ours, theirs) in _changed(packages, other_packages).items()]
        names += [f"package versions ({', '.join(both)})"] if both else []
        if names:
            raise RanksDifferError(
                f"rank {rank} has different {', '.join(names)} than rank 0; start all ranks with the same recipe, files and "
                "packages"
            )


def _changed(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the names that have different values in two mappings, with both values.

    The text "none" replaces the value of a name that a mapping lacks.
    """
    both = {name: (ours.get(name, "none"), theirs.get(name, "none")) for name in {**ours, **theirs}}
    return {name: values for name, values in both.items() if values[0] != values[1]}


def _identity(run: OpenRun) -> dict[str, str]:
    config, note = run.config, run.output.progress.note
    any_placement = replace(config, placement="auto")  # a run may resume with another placement
    tree = _without_unset(without_length(without_outputs(encode_run(any_placement))))
    settings = json.dumps(tree, sort_keys=True)
    found = {"settings": hashlib.sha256(settings.encode()).hexdigest()}
    for role, source in _sources(config).items():
        hashes = model_hashes(source, partial(file_hash, report=note, poll=signals.poll))
        found |= {f"{role} {part}": sha256 for part, sha256 in hashes.items()}
    if run.models.states is not None:
        found["cached teacher"] = run.models.states.digest
    if isinstance(run.teacher, ServedTeacher):
        found["served teacher"] = same_model(run, run.teacher)
    read: dict[str, Sequence[Example | TokenSequence]] = {
        "training data": run.data.train,
        "validation data": run.data.validation_examples,
    }
    found |= {name: digest_of(sequences) for name, sequences in read.items()}
    return found | {"pre-training data": _corpus_hash(run)}


def _without_unset(tree: Mapping[str, Json]) -> dict[str, Json]:
    """Return a copy of a configuration without newer fields that have their default.

    `LATER` has the newer fields and their defaults.  Runs of earlier versions, which did not have these fields, keep their
    identity.
    """
    kept = {name: item for name, item in tree.items() if name not in LATER or item != LATER[name]}
    return {name: _without_unset(item) if isinstance(item, Mapping) else item for name, item in kept.items()}


def _corpus_hash(run: OpenRun) -> str:
    """Return a hash of the files of the corpus, and of the first blocks of text.

    Only the blocks of one update are included: a run with more updates reads more blocks, and its hash must be the same.
    """
    note, sources = run.output.progress.note, [Path(source) for source in run.config.data.corpus if run.corpus]
    hashes = [file_hash(source, report=note, poll=signals.poll) for source in sources if source.is_file()]
    first = digest_of(run.corpus[: run.config.training.batch_size])
    return hashlib.sha256(json.dumps([first, *hashes]).encode()).hexdigest()


def _sources(config: Run) -> dict[str, ModelConfig]:
    """Return the settings of the models that a run loads, by their names in errors.

    A student that is made of layers of the teacher is left out.
    """
    teacher, student = teacher_source(config), student_source(config)
    found: dict[str, ModelConfig] = {}
    if teacher is not None:
        found["teacher" if teacher is config.teacher else "fine-tuned teacher"] = teacher
    if student.model != "teacher":  # otherwise it consists of layers of the teacher
        role = "student" if student.lora is None else "LoRA base"
        found[role if student is config.student else "fine-tuned student"] = student
    return found


def _records_hash(tests: Mapping[str, Sequence[Record]]) -> str:
    found = hashlib.sha256()
    for name, records in tests.items():
        for record in records:
            found.update(repr((name, record)).encode())  # repr escapes surrogates
    return found.hexdigest()
