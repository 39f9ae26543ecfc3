"""Everything a run needs, built from its config: data, tokenizer, teacher, student.

Nothing is written here, so a mistake in a config costs no half-made run folder.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from redistill.config.run import DataConfig, Run
from redistill.contracts import Example
from redistill.data.reader import ReadReport, line_of, read_records
from redistill.data.rejected import list_unlearned
from redistill.data.repeats import Question, first_of_each, question
from redistill.data.tasks import Task, load_task
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import ConfigError, DataError
from redistill.models import vocabulary
from redistill.models.families import position_limit
from redistill.models.initialise import cast_weights, student_from_layers
from redistill.models.load import (
    checkpoint_activations,
    compatibility_warnings,
    end_token_ids,
    head,
    load_model,
    parameter_bytes,
    parameter_count,
)
from redistill.models.lora import add_lora, lora_notes
from redistill.records import Record
from redistill.runs.stages import student_source, teacher_source
from redistill.storage import files

Duplicates = Literal["keep", "drop"]


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


def load_models(config: Run) -> Models:
    """The models of a run, on the CPU; a fine-tuned copy is read from its stage's folder.

    Raises:
        ModelError: a model cannot be loaded.
        VocabularyError: teacher and student do not share their token ids.
    """
    source, taught_by = student_source(config), teacher_source(config)
    teacher, teacher_tokenizer = load_model(taught_by) if taught_by is not None else (None, None)
    if source.model == "teacher":
        assert teacher is not None and source.initialise is not None
        student, tokenizer = student_from_layers(teacher, source.initialise.layers), teacher_tokenizer
    else:
        student, tokenizer = load_model(source, "none" if source.lora is None else source.lora.quantise)
        if source.initialise is not None:
            student = student_from_layers(student, source.initialise.layers)
    cast_weights(student, torch.bfloat16 if source.dtype == "bfloat16" else torch.float32)
    notes: list[str] = []
    if source.lora is not None:
        student = add_lora(student, source.lora, config.seed)
        notes = lora_notes(student)
    if source.gradient_checkpointing:
        checkpoint_activations(student)
    check_positions(student, config.data.tokens, "student")
    size = head(student).num_classes
    if teacher is not None:
        check_positions(teacher, config.data.tokens, "teacher")
        match = shared_vocabulary(teacher, teacher_tokenizer, student, tokenizer)
        size = match.size
        notes += compatibility_warnings(teacher_tokenizer, tokenizer)
        if match.padded:
            notes.append(
                f"the heads have {match.teacher_size} (teacher) and {match.student_size} (student) rows for one vocabulary; "
                f"both are cut to {match.size}"
            )
    manifest = {"student": _about(student, config.student.model)}
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


def load_data(
    config: DataConfig,
    tokenizer: Any,
    seed: int,
    *,
    rejected: Path | None,
    say: Callable[[str], None],
    duplicates: Duplicates = "keep",
) -> DataSets:
    """The data of a run, read and tokenised; each source's verdict is said.

    A training or validation row that asks what a test set asks is left out and counted.

    Args:
        rejected: File for the rows that cannot be used.
        say: Told a line about every source.
        duplicates: Whether a training row with the prompt and the answers of an earlier one, to the letter, is learned again.
            Both ways such rows are counted.

    Raises:
        DataError: a source is missing or empty, has too many unusable rows, or nothing of it fits the length limits.
    """
    manifest: dict[str, Any] = {}
    desk = _Desk(tokenizer=tokenizer, config=config, seed=seed, rejected=rejected)

    def read(source: str, split: str, role: str) -> list[_Row]:
        records, report = read_records(source, split=split, max_bad_rows=config.max_bad_rows, rejected=rejected)
        say(f"{role}: {report.source}: {report.verdict}" + (f", {len(report.rejected)} rejected" if report.rejected else ""))
        manifest[role] = _about_source(source, report)
        desk.bad[report.source] = len(report.rejected)
        return [_Row(report.source, record) for record in records]

    pool: list[_Row] = []
    for number, source in enumerate(config.train):
        pool += read(source, "train", "train" if len(config.train) == 1 else f"train {number + 1}")
    pool, repeats = desk.told_apart(pool, duplicates, say)
    held = None if config.validation is None else read(config.validation, "validation", "validation")
    tests: dict[str, list[Record]] = {}
    for task, (records, report) in _read_tests(config, say, rejected).items():
        path, tests[task.name] = config.tasks[task], records
        counts = {"rows": len(records), "rejected": len(report.rejected)}
        manifest[f"test {task.name}"] = {"source": path or "hub", **counts, **_hash(path)}
    asked = {question(record) for records in tests.values() for record in records}
    train, validation, leaked = _parted(pool, held, asked, config)
    if any(leaked):
        say(f"asked in a test set too, and left out: {leaked[0]} training rows, {leaked[1]} validation rows")
    examples, counts, _ = desk.tokenised(train[: config.max_train_rows], "train")
    validation_examples, lost, validation = desk.tokenised(validation, "validation")
    counts |= {"in a test set": leaked[0]} | ({"duplicate": repeats} if repeats and duplicates == "drop" else {})
    dropped = sum(counts.values())
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    say(
        f"train: {len(examples)} examples"
        + (f" ({dropped} dropped: {why})" if dropped else "")
        + f"; validation: {len(validation)}"
    )
    manifest["kept"] = {"train": len(examples), "dropped": dropped, **counts, "validation": len(validation)}
    manifest["kept"] |= {"duplicates kept": repeats} if repeats and duplicates == "keep" else {}
    manifest["kept"] |= {f"validation {reason}": n for reason, n in (lost | {"in a test set": leaked[1]}).items() if n}
    return DataSets(
        train=examples,
        validation=[row.record for row in validation],
        validation_examples=validation_examples,
        tests=tests,
        manifest=manifest,
    )


def load_tests(config: DataConfig, say: Callable[[str], None], rejected: Path | None = None) -> dict[str, list[Record]]:
    """The test sets by name; `rejected` lists their rows that cannot be used."""
    return {task.name: records for task, (records, _) in _read_tests(config, say, rejected).items()}


def _read_tests(
    config: DataConfig, say: Callable[[str], None], rejected: Path | None
) -> dict[Task, tuple[list[Record], ReadReport]]:
    tests = {
        task: load_task(task, path, max_bad_rows=config.max_bad_rows, rejected=rejected) for task, path in config.tasks.items()
    }
    for task, (records, report) in tests.items():
        say(f"test: {task.name}: {len(records)} rows" + (f", {len(report.rejected)} rejected" if report.rejected else ""))
    return tests


@dataclass(frozen=True)
class _Row:
    """A record, and the file or hub data set that it was read from."""

    source: str
    record: Record

    @property
    def line(self) -> int:
        return line_of(self.record)


@dataclass(frozen=True, kw_only=True)
class _Desk:
    """Where rows become examples, and rows that cannot are listed and counted; `bad` has the unusable ones by source."""

    tokenizer: Any
    config: DataConfig
    seed: int
    rejected: Path | None
    bad: Counter[str] = field(default_factory=Counter)

    def tokenised(self, rows: Sequence[_Row], role: str) -> tuple[list[Example], dict[str, int], list[_Row]]:
        """The examples, how many rows are none by reason, and the rows that can at least be asked.

        Raises:
            DataError: nothing is left, or more rows of a source than `max_bad_rows` cannot be used.
        """
        if not rows:
            raise DataError(f"{role}: no row is left that no test set asks too; name other data, or other test sets")
        examples, report = tokenize_training([row.record for row in rows], self.tokenizer, self.config.tokens, self.seed)
        found_bad = sorted((*report.rejected, *report.too_long), key=lambda found: found.place)
        self._list([(rows[found.place], found.reason) for found in found_bad])
        for found in report.rejected:
            self._judge(rows[found.place], found.reason)
        useless = {found.place for found in report.rejected}
        counts = {"too long": report.num_too_long, "nothing to learn": len(useless)}
        return examples, counts, [row for place, row in enumerate(rows) if place not in useless]

    def told_apart(self, rows: list[_Row], duplicates: Duplicates, say: Callable[[str], None]) -> tuple[list[_Row], int]:
        """The rows to go on with, and how many say what an earlier one says; those are listed where they are dropped."""
        first = first_of_each([row.record for row in rows])
        repeats = [(row, rows[k]) for place, (row, k) in enumerate(zip(rows, first)) if k != place]
        if repeats:
            fate = "kept" if duplicates == "keep" else "dropped"
            say(f"train: {len(repeats)} rows repeat an earlier one to the letter, and are {fate}")
        if duplicates == "keep":
            return rows, len(repeats)
        self._list([(row, f"repeats {earlier.source}:{earlier.line} to the letter") for row, earlier in repeats])
        return [row for place, (row, k) in enumerate(zip(rows, first)) if k == place], len(repeats)

    def _list(self, found: Sequence[tuple[_Row, str]]) -> None:
        if self.rejected is not None:
            list_unlearned(self.rejected, [(row.source, row.line, reason) for row, reason in found])

    def _judge(self, row: _Row, reason: str) -> None:
        """Count an unusable row, and refuse its source when they are too many."""
        self.bad[row.source] += 1
        if self.bad[row.source] > self.config.max_bad_rows:
            listed = f" ({self.rejected} lists them)" if self.rejected else ""
            raise DataError(
                f"{row.source}:{row.line}: {reason}; more than {self.config.max_bad_rows} rows cannot be used{listed}: mend or "
                "remove them, or raise max_bad_rows"
            )


def _parted(
    pool: list[_Row], held: list[_Row] | None, asked: Set[Question], config: DataConfig
) -> tuple[list[_Row], list[_Row], tuple[int, int]]:
    """Training and validation rows without those that a test set asks, and how many those were in each."""
    train = [row for row in pool if question(row.record) not in asked]
    leaked = len(pool) - len(train)
    if held is not None:
        validation = [row for row in held if question(row.record) not in asked]
        return train, validation[: config.validation_rows], (leaked, len(held) - len(validation))
    if len(train) <= config.validation_rows:
        raise ConfigError(
            f"data.validation_rows = {config.validation_rows}: the training set has only {len(train)} rows; hold out fewer, "
            "or name a validation file"
        )
    return train[config.validation_rows :], train[: config.validation_rows], (leaked, 0)


def _about(model: nn.Module, name: str) -> dict[str, Any]:
    return {"name": name, "parameters": parameter_count(model), "bytes": parameter_bytes(model)}


def _about_source(source: str, report: ReadReport) -> dict[str, Any]:
    about = {"source": source, "form": report.verdict, "rows": report.num_rows, "rejected": len(report.rejected)}
    return about | _hash(source)


def _hash(source: str | None) -> dict[str, str]:
    return {"sha256": files.digest(Path(source))} if source and Path(source).is_file() else {}
