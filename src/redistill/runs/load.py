"""The data of a run, read and tokenised.

Nothing is written here but rejected.jsonl, so a mistake in a config costs no half-made run folder.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from redistill.config.sections import DataConfig
from redistill.contracts import Example
from redistill.data.reader import ReadReport, line_of, read_records
from redistill.data.rejected import list_unlearned
from redistill.data.repeats import Question, first_of_each, question
from redistill.data.tasks import Task, load_task
from redistill.data.tokenize import tokenize_training
from redistill.errors import ConfigError, DataError
from redistill.records import Record
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
        say: Called with a line about every source.
        duplicates: Whether exact duplicates of earlier training rows are kept; both ways they are counted.

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
    lost |= {"in a test set": leaked[1]}
    manifest["kept"] = _kept(len(examples), counts, len(validation), lost, repeats if duplicates == "keep" else 0)
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    dropped = f" ({sum(counts.values())} dropped: {why})" if why else ""
    say(f"train: {len(examples)} examples{dropped}; validation: {len(validation)}")
    return DataSets(
        train=examples,
        validation=[row.record for row in validation],
        validation_examples=validation_examples,
        tests=tests,
        manifest=manifest,
    )


def _kept(train: int, dropped: Mapping[str, int], validation: int, lost: Mapping[str, int], duplicates: int) -> dict[str, int]:
    """How many rows were kept and dropped, by reason, as run.json has it."""
    return {
        "train": train,
        "dropped": sum(dropped.values()),
        **dropped,
        "validation": validation,
        **({"duplicates kept": duplicates} if duplicates else {}),
        **{f"validation {reason}": count for reason, count in lost.items() if count},
    }


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
        found_bad = sorted((*report.rejected, *report.too_long), key=lambda found: found.index)
        self._list([(rows[found.index], found.reason) for found in found_bad])
        for found in report.rejected:
            self._judge(rows[found.index], found.reason)
        useless = {found.index for found in report.rejected}
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


def _about_source(source: str, report: ReadReport) -> dict[str, Any]:
    about = {"source": source, "form": report.verdict, "rows": report.num_rows, "rejected": len(report.rejected)}
    return about | _hash(source)


def _hash(source: str | None) -> dict[str, str]:
    return {"sha256": files.digest(Path(source))} if source and Path(source).is_file() else {}
