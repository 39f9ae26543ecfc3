"""Reads and tokenises the data of a run.

Only rejected.jsonl is written here, so a mistake in a configuration leaves no incomplete run folder.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from redistill.config.sections import DataConfig
from redistill.contracts import Example
from redistill.data.examples import Examples
from redistill.data.reader import ReadReport, read_records
from redistill.data.rejected import list_unlearned
from redistill.data.rows import Rows, asks_one_of, first_of_digests, question_digest
from redistill.data.special import SpecialTokenCounts, SpecialTokens
from redistill.data.tasks import Task, load_task
from redistill.data.tokenize import tokenize_training
from redistill.errors import ConfigError, DataError
from redistill.interfaces import Tokenizer
from redistill.records import Json, Record
from redistill.storage import files

Duplicates = Literal["keep", "drop"]


@dataclass(frozen=True, kw_only=True)
class DataSets:
    """The training, validation and test data of a run.

    Args:
        train: Training examples.
        validation: Validation records.
        validation_examples: Their gold sequences, without those that exceed the length limits.
        tests: Test records by name of the test set.
        manifest: Path, hash and row counts of each source, and the numbers of rows kept and dropped, for run.json.
    """

    train: Sequence[Example]
    validation: Sequence[Record]
    validation_examples: Sequence[Example]
    tests: Mapping[str, Sequence[Record]]
    manifest: Mapping[str, Any]


def load_data(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    rejected: Path | None,
    report: Callable[[str], None],
    duplicates: Duplicates = "keep",
) -> DataSets:
    """Read and tokenise the data of a run.

    A training or validation row with the prompt of a test row is removed and counted.

    Args:
        config, tokenizer: The sources, test sets and length limits; the student's tokenizer.
        seed: The run's seed, which chooses among several references of a training row.
        rejected: File that lists unusable rows; None writes none.
        report: Called with a line about every source.
        duplicates: Whether exact duplicates of earlier training rows are kept or dropped; they are counted in both cases.

    Raises:
        ConfigError: the training set has too few rows to hold out validation rows.
        DataError: a source is missing or empty, has too many unusable rows, or none of its rows fits the length limits.
    """
    manifest: dict[str, Any] = {}
    builder = _ExampleBuilder(tokenizer=tokenizer, config=config, seed=seed, rejected=rejected, report=report)
    parts: list[Rows] = []

    def read(source: str, split: str, role: str) -> Rows:
        records, found = read_records(source, split=split, max_bad_rows=config.max_bad_rows, rejected=rejected, cache=report)
        report(f"{role}: {found.source}: {found.verdict}" + (f", {len(found.rejected)} rejected" if found.rejected else ""))
        manifest[role] = _about_source(source, found)
        builder.bad[found.source] = len(found.rejected)
        return records

    for number, source in enumerate(config.train):
        parts.append(read(source, "train", "train" if len(config.train) == 1 else f"train {number + 1}"))
    pool, repeats = builder.handle_duplicates(Rows.joined(parts), duplicates, report)
    held = None if config.validation is None else read(config.validation, "validation", "validation")
    tests, about_tests = _test_sets(config, report, rejected)
    manifest |= about_tests
    test_questions = {question_digest(record) for records in tests.values() for record in records}
    train, validation, leaked = _split(pool, held, test_questions, config)
    if any(leaked):
        report(f"removed, since a test set has the same prompt: {leaked[0]} training rows, {leaked[1]} validation rows")
    examples, counts, _ = builder.tokenised(train[: config.max_train_rows], "train")
    validation_examples, lost, validation = builder.tokenised(validation, "validation")
    builder.count_in_tests(tests)
    counts |= {"in a test set": leaked[0]} | ({"duplicate": repeats} if repeats and duplicates == "drop" else {})
    lost |= {"in a test set": leaked[1]}
    manifest["kept"] = _kept(len(examples), counts, len(validation), lost, repeats if duplicates == "keep" else 0)
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    dropped = f" ({sum(counts.values())} dropped: {why})" if why else ""
    report(f"train: {len(examples)} examples{dropped}; validation: {len(validation)}")
    if builder.special_tokens:
        manifest["special tokens"] = builder.special_tokens
    return DataSets(
        train=examples,
        validation=validation,
        validation_examples=validation_examples,
        tests=tests,
        manifest=manifest,
    )


def _test_sets(
    config: DataConfig, report: Callable[[str], None], rejected: Path | None
) -> tuple[dict[str, list[Record]], dict[str, Any]]:
    """The test sets by name, and their entries in the manifest."""
    tests, manifest = {}, {}
    for task, (records, found) in _read_tests(config, report, rejected).items():
        path, tests[task.name] = config.tasks[task], records
        counts = {"rows": len(records), "rejected": len(found.rejected)}
        manifest[f"test {task.name}"] = {"source": path or "hub", **counts, **_hash(path)}
    return tests, manifest


def _kept(train: int, dropped: Mapping[str, int], validation: int, lost: Mapping[str, int], duplicates: int) -> dict[str, int]:
    """Numbers of rows kept and dropped, by reason, for run.json."""
    return {
        "train": train,
        "dropped": sum(dropped.values()),
        **dropped,
        "validation": validation,
        **({"duplicates kept": duplicates} if duplicates else {}),
        **{f"validation {reason}": count for reason, count in lost.items() if count},
    }


def load_tests(config: DataConfig, report: Callable[[str], None], rejected: Path | None = None) -> dict[str, list[Record]]:
    """Read the test sets.

    Args:
        config: The test sets.
        report: Called with a line about every test set.
        rejected: File that lists unusable rows; None writes none.

    Returns:
        Records by name of the test set.

    Raises:
        DataError: a test set is missing or empty, or has too many unusable rows.
    """
    return {task.name: records for task, (records, _) in _read_tests(config, report, rejected).items()}


def _read_tests(
    config: DataConfig, report: Callable[[str], None], rejected: Path | None
) -> dict[Task, tuple[list[Record], ReadReport]]:
    tests = {
        task: load_task(task, path, max_bad_rows=config.max_bad_rows, rejected=rejected) for task, path in config.tasks.items()
    }
    for task, (records, found) in tests.items():
        report(f"test: {task.name}: {len(records)} rows" + (f", {len(found.rejected)} rejected" if found.rejected else ""))
    return tests


@dataclass(frozen=True, kw_only=True)
class _ExampleBuilder:
    """Tokenises rows, and lists and counts the unusable ones.

    `bad` has their number by source, and `special_tokens` the special tokens in the text, by role.
    """

    tokenizer: Tokenizer
    config: DataConfig
    seed: int
    rejected: Path | None
    report: Callable[[str], None]
    bad: Counter[str] = field(default_factory=Counter)
    special_tokens: dict[str, Json] = field(default_factory=dict)

    def tokenised(self, rows: Rows, role: str) -> tuple[Examples, dict[str, int], Rows]:
        """Tokenise rows.

        Returns:
            The examples, the number of rows without an example by reason, and the rows whose prompts can be used.

        Raises:
            DataError: there are no rows, or more than `max_bad_rows` rows of a source are unusable.
        """
        if not rows:
            raise DataError(f"{role}: a test set has the prompt of every row; use other data, or other test sets")
        examples, found = tokenize_training(rows, self.tokenizer, self.config.tokens, self.seed, cache=self.report)
        self._note_special(role, found.special_tokens)
        found_bad = sorted((*found.rejected, *found.too_long), key=lambda left_out: left_out.index)
        self._list([(*rows.where(left_out.index), left_out.reason) for left_out in found_bad])
        for left_out in found.rejected:
            self._count_bad(*rows.where(left_out.index), left_out.reason)
        counts = {"too long": found.num_too_long, "nothing to learn": len(found.rejected)}
        useless = [left_out.index for left_out in found.rejected]
        return examples, counts, rows.take(np.delete(np.arange(len(rows)), useless)) if useless else rows

    def count_in_tests(self, tests: Mapping[str, Sequence[Record]]) -> None:
        """Report the special tokens in the prompts of test sets."""
        special = SpecialTokens(self.tokenizer)
        for name, records in tests.items():
            counts = SpecialTokenCounts()
            for record in records:
                counts.add(record, None, special, self.config.tokens.template)
            self._note_special(f"test {name}", counts)

    def _note_special(self, role: str, found: SpecialTokenCounts) -> None:
        for line in found.described():
            self.report(f"{role}: {line}")
        if counts := found.as_json():
            self.special_tokens[role] = counts

    def handle_duplicates(self, rows: Rows, duplicates: Duplicates, report: Callable[[str], None]) -> tuple[Rows, int]:
        """The rows that are kept, and the number of exact duplicates of earlier ones; dropped duplicates are listed."""
        first = first_of_digests(rows.contents)
        repeats: list[int] = np.flatnonzero(first != np.arange(len(rows))).tolist()
        if repeats:
            action = "kept" if duplicates == "keep" else "dropped"
            report(f"train: {len(repeats)} exact duplicates of earlier rows are {action}")
        if duplicates == "keep":
            return rows, len(repeats)
        earlier = (":".join(map(str, rows.where(int(first[index])))) for index in repeats)
        self._list([(*rows.where(index), f"exact duplicate of {name}") for index, name in zip(repeats, earlier)])
        return rows.take(first == np.arange(len(rows))), len(repeats)

    def _list(self, found: Sequence[tuple[str, int, str]]) -> None:
        if self.rejected is not None:
            list_unlearned(self.rejected, found)

    def _count_bad(self, source: str, line: int, reason: str) -> None:
        """Count an unusable row; raises DataError if its source has too many."""
        self.bad[source] += 1
        if self.bad[source] > self.config.max_bad_rows:
            listed = f" ({self.rejected} lists them)" if self.rejected else ""
            raise DataError(
                f"{source}:{line}: {reason}; more than {self.config.max_bad_rows} rows are unusable{listed}: fix or "
                "remove them, or raise max_bad_rows"
            )


def _split(pool: Rows, held: Rows | None, test_questions: Set[bytes], config: DataConfig) -> tuple[Rows, Rows, tuple[int, int]]:
    """Training and validation rows without those whose prompt is in a test set, and the number removed from each."""
    train = pool.take(~asks_one_of(pool, test_questions))
    leaked = len(pool) - len(train)
    if held is not None:
        validation = held.take(~asks_one_of(held, test_questions))
        return train, validation[: config.validation_rows], (leaked, len(held) - len(validation))
    if len(train) <= config.validation_rows:
        raise ConfigError(
            f"data.validation_rows = {config.validation_rows}: the training set has only {len(train)} rows; hold out fewer, "
            "or set data.validation to a file"
        )
    return train[config.validation_rows :], train[: config.validation_rows], (leaked, 0)


def _about_source(source: str, report: ReadReport) -> dict[str, Any]:
    about = {"source": source, "form": report.verdict, "rows": report.num_rows, "rejected": len(report.rejected)}
    return about | _hash(source)


def _hash(source: str | None) -> dict[str, str]:
    return {"sha256": files.digest(Path(source))} if source and Path(source).is_file() else {}
