"""Everything a run needs, built from its config: data, tokenizer, teacher, student.

Nothing is written here, so a mistake in a config costs no half-made run folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from redistill import files, vocabulary
from redistill.config import DataConfig, Run
from redistill.contracts import Example, Record
from redistill.data.reader import ReadReport, read_records
from redistill.data.tasks import load_task
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import ConfigError, DataError
from redistill.models.families import position_limit
from redistill.models.initialise import cast_weights, student_from_layers
from redistill.models.load import (
    ModelConfig,
    checkpoint_activations,
    compatibility_warnings,
    end_token_ids,
    head,
    load_model,
    parameter_bytes,
    parameter_count,
)


@dataclass(frozen=True, kw_only=True)
class DataSets:
    """What is learnt from, what chooses the best checkpoint, and what is reported.

    `manifest` says of each source where it came from, its hash, and how many rows were kept, dropped and rejected.
    """

    train: Sequence[Example]
    validation: Sequence[Record]
    validation_examples: Sequence[Example]
    tests: Mapping[str, Sequence[Record]]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Models:
    """Teacher (None where no part of the run asks it) and student, with what they share.

    Args:
        vocabulary: Classes that both heads are cut to.
        notes: Sentences about differences that may matter, for the log.
    """

    teacher: nn.Module | None
    student: Any
    tokenizer: Any
    vocabulary: int
    end_ids: tuple[int, ...]
    manifest: Mapping[str, Any]
    notes: Sequence[str]

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


def load_models(config: Run, teacher_source: ModelConfig | None) -> Models:
    """The models of a run, on the CPU.

    Args:
        teacher_source: Where the teacher is read from - a fine-tuned copy has another place than the config says.

    Raises:
        ModelError: a model cannot be loaded.
        VocabularyError: teacher and student do not share their token ids.
    """
    source = config.student
    teacher, teacher_tokenizer = load_model(teacher_source) if teacher_source is not None else (None, None)
    if source.model == "teacher":
        assert teacher is not None and source.initialise is not None
        student, tokenizer = student_from_layers(teacher, source.initialise.layers), teacher_tokenizer
    else:
        student, tokenizer = load_model(source)
        if source.initialise is not None:
            student = student_from_layers(student, source.initialise.layers)
    if source.gradient_checkpointing:
        checkpoint_activations(student)
    cast_weights(student, torch.bfloat16 if source.dtype == "bfloat16" else torch.float32)
    check_positions(student, config.data.tokens, "student")
    size = head(student).num_classes
    notes: list[str] = []
    if teacher is not None:
        check_positions(teacher, config.data.tokens, "teacher")
        match = shared_vocabulary(teacher, teacher_tokenizer, student, tokenizer)
        size = match.size
        notes = compatibility_warnings(teacher_tokenizer, tokenizer)
        if match.padded:
            notes.append(
                f"the heads have {match.teacher_size} (teacher) and {match.student_size} (student) rows for one vocabulary; "
                f"both are cut to {match.size}"
            )
    manifest = {"student": _about(student, source.model)}
    if teacher is not None and config.teacher is not None:
        manifest["teacher"] = _about(teacher, config.teacher.model)
    return Models(
        teacher=teacher,
        student=student,
        tokenizer=tokenizer,
        vocabulary=size,
        end_ids=end_token_ids(student, tokenizer),
        manifest=manifest,
        notes=notes,
    )


def shared_vocabulary(
    teacher: nn.Module, teacher_tokenizer: Any, student: nn.Module, tokenizer: Any
) -> vocabulary.VocabularyMatch:
    """The classes that both models know by the same ids, or VocabularyError."""
    return vocabulary.compare(
        teacher_tokenizer.get_vocab(), tokenizer.get_vocab(), head(teacher).num_classes, head(student).num_classes
    )


def check_positions(model: nn.Module, tokens: TokenizeConfig, name: str) -> None:
    """Refuse lengths that the model cannot read, before anything is written.

    Raises:
        ConfigError: a prompt and its response may be longer than the model has positions.
    """
    limit, longest = position_limit(model), tokens.prompt_tokens + tokens.response_tokens
    if limit is not None and longest > limit:
        raise ConfigError(
            f"prompt_tokens + response_tokens = {longest}: the {name} has {limit} positions; lower one of the two"
        )


def load_data(config: DataConfig, tokenizer: Any, seed: int, *, rejected: Path | None, say: Callable[[str], None]) -> DataSets:
    """The data of a run, read and tokenised; each source's verdict is said.

    Args:
        rejected: File for the rows that cannot be used.
        say: Told a line about every source.

    Raises:
        DataError: a source is missing or empty, has too many unusable rows, or nothing of it fits the length limits.
    """
    manifest: dict[str, Any] = {}

    def read(source: str, split: str, role: str) -> list[Record]:
        records, report = read_records(source, split=split, max_bad_rows=config.max_bad_rows, rejected=rejected)
        say(f"{role}: {report.source}: {report.verdict}" + (f", {len(report.rejected)} rejected" if report.rejected else ""))
        manifest[role] = _about_source(source, report)
        return records

    train: list[Record] = []
    for number, source in enumerate(config.train):
        train += read(source, "train", "train" if len(config.train) == 1 else f"train {number + 1}")
    if config.validation is not None:
        validation = read(config.validation, "validation", "validation")[: config.validation_rows]
    elif len(train) > config.validation_rows:
        validation, train = train[: config.validation_rows], train[config.validation_rows :]
    else:
        raise ConfigError(
            f"data.validation_rows = {config.validation_rows}: the training set has only {len(train)} rows; hold out fewer, "
            "or name a validation file"
        )
    tests = load_tests(config, say)
    for task, path in config.tests.items():
        manifest[f"test {task}"] = {"source": path or "hub", "rows": len(tests[task]), **_hash(path)}
    examples, dropped = _tokenised(train[: config.max_train_rows], tokenizer, config, seed, "train")
    validation_examples, _ = _tokenised(validation, tokenizer, config, seed, "validation")
    say(f"train: {len(examples)} examples" + (f" ({dropped} dropped)" if dropped else "") + f"; validation: {len(validation)}")
    manifest["kept"] = {"train": len(examples), "dropped": dropped, "validation": len(validation)}
    return DataSets(
        train=examples, validation=validation, validation_examples=validation_examples, tests=tests, manifest=manifest
    )


def load_tests(config: DataConfig, say: Callable[[str], None]) -> dict[str, list[Record]]:
    """The test sets by name."""
    tests = {task: load_task(task, path) for task, path in config.tests.items()}
    for task, records in tests.items():
        say(f"test: {task}: {len(records)} rows")
    return tests


def _tokenised(
    records: Sequence[Record], tokenizer: Any, config: DataConfig, seed: int, role: str
) -> tuple[list[Example], int]:
    examples, _ = tokenize_training(records, tokenizer, config.tokens, seed)
    if not examples:
        raise DataError(
            f"{role}: none of {len(records)} rows is left after tokenising; raise data.tokens.prompt_tokens "
            f"({config.tokens.prompt_tokens}) or shorten the prompts"
        )
    return examples, len(records) - len(examples)


def _about(model: nn.Module, name: str) -> dict[str, Any]:
    return {"name": name, "parameters": parameter_count(model), "bytes": parameter_bytes(model)}


def _about_source(source: str, report: ReadReport) -> dict[str, Any]:
    about = {"source": source, "form": report.verdict, "rows": report.num_rows, "rejected": len(report.rejected)}
    return about | _hash(source)


def _hash(source: str | None) -> dict[str, str]:
    return {"sha256": files.digest(Path(source))} if source and Path(source).is_file() else {}
