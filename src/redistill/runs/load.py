"""Reads and tokenises the data of a run.

In the run folder, this module writes only rejected.jsonl, a list of rows that are not used.  So a mistake in the recipe or the
data is found before run.json and checkpoints are written.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from redistill.config.run import Run
from redistill.config.sections import DataConfig
from redistill.contracts import Example, TokenSequence
from redistill.data.corpus import load_corpus
from redistill.data.examples import Examples
from redistill.data.held_out import first_usable
from redistill.data.reader import ReadReport, read_records, single_sources
from redistill.data.rejected import list_unlearned
from redistill.data.repeats import first_of_each
from redistill.data.rows import Rows, asks_one_of, question_digest
from redistill.data.sources import Source
from redistill.data.special import SpecialTokenCounts, SpecialTokens
from redistill.data.tasks import Task, load_task
from redistill.data.tokenize import RejectedRecord, tokenize_prompts, tokenize_training
from redistill.errors import ConfigError, DataError
from redistill.interfaces import Tokenizer
from redistill.records import Json, Record
from redistill.runs.renderings import report_all_templates, trained_templates
from redistill.storage import files
from redistill.storage.paths import expanded

MAX_CORPUS_BLOCKS = 200_000
"""Maximum number of blocks of a corpus.  With 512 tokens per block, a corpus then has 100 million tokens, which take 400 MB of
memory in every process.
"""


@dataclass(frozen=True, kw_only=True)
class DataSets:
    """The training, validation and test data of a run.

    Args:
        train: Training examples.
        validation: Validation records.
        validation_examples: The validation records as tokenised examples.
        tests: Test records by name of the test set.
        manifest: Description of the data for run.json.  It has the path, the hash and the number of rows of each file or
            hub data set, and numbers of rows by template.  It also has the numbers of used and of removed rows.
    """

    train: Sequence[Example]
    validation: Sequence[Record]
    validation_examples: Sequence[Example]
    tests: Mapping[str, Sequence[Record]]
    manifest: Mapping[str, Json]

    @property
    def templates(self) -> Mapping[str, int]:
        """Number of training rows by template: "chat", "alpaca" or "verbatim"."""
        return trained_templates(cast("Mapping[str, Mapping[str, int]]", self.manifest.get("templates", {})))


def load_data(
    config: DataConfig,
    tokenizer: Tokenizer,
    seed: int,
    *,
    why_gold: str = "training needs gold answers",
    rejected: Path | None,
    report: Callable[[str], None],
) -> DataSets:
    """Read and tokenise the data of a run.

    A training or validation row is removed if a test row has the same prompt.  Duplicates of training rows are kept.  The
    numbers of removed rows and of duplicates are stored in the manifest.  Validation rows have an answer, and are selected
    after tokenisation, so that each of them can be used.

    Args:
        config: The data section of the recipe: paths of the data, test sets and length limits.
        tokenizer: The tokenizer of the student.
        seed: Seed of the run.  With `reference: random` in the recipe, it determines which reference answer of a row is used.
        why_gold: The reason why training needs gold answers (the answers in the data), from `capabilities.why_gold`.  If
            "", training rows may be prompts alone.
        rejected: JSON Lines file to which unusable and too long rows are written; if None, these rows are only counted.
        report: Function that is called with lines of text about the data, such as the number of rows of a file.

    Raises:
        ConfigError: there are conversations, and the tokenizer has no chat template; or validation rows must be taken from
            the training data, and it has too few usable rows with an answer.
        DataError: a file or data set is missing or empty, has too many unusable rows, or has no row within the length limits.
    """
    manifest = dict[str, Json]()
    builder = _ExampleBuilder(tokenizer, config, seed, rejected, report, Counter(), {})

    pool, held, tests, prompts = _read_rows(builder, why_gold, manifest)
    manifest["templates"] = report_all_templates(prompts, tokenizer, config.tokens, report)
    asked = {question_digest(record) for records in tests.values() for record in records}
    train, validation, leaked = builder.split(pool, held, asked)
    if any(leaked):
        report(f"removed, since a test set has the same prompt: {leaked[0]} training rows, {leaked[1]} validation rows")
    examples, counts = builder.tokenised(train[: config.max_train_rows], "train", prompts_alone=not why_gold)
    validation_examples, lost = builder.tokenised(validation, "validation")
    builder.check_tests(tests)
    builder.count_special_in(tests)
    counts |= {"in a test set": leaked[0]}
    repeats = _repeats(pool)
    if repeats:
        report(f"train: {repeats} exact duplicates of earlier rows are kept")
    manifest["kept"] = _kept(len(examples), counts, len(validation), lost | {"in a test set": leaked[1]}, repeats)
    report(f"train: {len(examples)} examples{_dropped(counts)}; validation: {len(validation)}")
    manifest |= {"special tokens": builder.special_tokens} if builder.special_tokens else {}
    return DataSets(
        train=examples, validation=validation, validation_examples=validation_examples, tests=tests, manifest=manifest
    )


def _dropped(counts: Mapping[str, int]) -> str:
    why = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    return f" ({sum(counts.values())} dropped: {why})" if why else ""


def _kept(train: int, dropped: Mapping[str, int], validation: int, lost: Mapping[str, int], duplicates: int) -> dict[str, int]:
    """Return numbers of used and of removed rows by name, for run.json.

    Args:
        train: Number of training examples.
        dropped: Numbers of removed training rows, by reason.
        validation: Number of validation rows.
        lost: Numbers of validation rows that were removed or are too long, by reason.
        duplicates: Number of training rows that are equal to an earlier one; these rows are used.
    """
    kept = {"train": train, "dropped": sum(dropped.values()), **dropped, "validation": validation}
    kept |= {"duplicates kept": duplicates} if duplicates else {}
    return kept | {f"validation {reason}": count for reason, count in lost.items() if count}


def _repeats(rows: Rows) -> int:
    """Return the number of rows that are equal to an earlier row."""
    return sum(first != index for index, first in enumerate(first_of_each(rows)))


def _read_rows(
    builder: "_ExampleBuilder", why_gold: str, manifest: dict[str, Json]
) -> tuple[Rows, Rows | None, dict[str, Sequence[Record]], dict[str, Mapping[str, int]]]:
    """Read the rows of a run, and describe each source in `manifest`.

    There are four results: the training rows; the rows of the validation data (None if the recipe has none); the test
    records by name of the test set; and for each data set the number of rows by type of prompt.  `why_gold` is the argument
    of `load_data`.
    """
    config, report, prompts = builder.config, builder.report, dict[str, Mapping[str, int]]()

    def read(source: Source, split: str, role: str, why: str) -> Rows:
        records, found = read_records(
            source,
            split=split,
            max_bad_rows=config.max_bad_rows,
            require_answer=bool(why),
            why_answer=why,
            rejected=builder.rejected,
            cache=report,
        )
        report(f"{role}: {found.source}: {found.verdict}{_rejected(found)}")
        for line in found.noted():
            report(f"{role}: {found.source}: {line}")
        about: dict[str, Json] = {"source": source.name, "form": found.verdict, "rows": found.num_rows}
        manifest[role] = about | {"rejected": len(found.rejected)} | _not_used(found) | _hash(source)
        prompts[role] = found.prompts
        builder.bad[found.source] = len(found.rejected)
        return records

    pool = Rows.joined([read(source, "train", role, why_gold) for source, role in _files(config, "train")])
    parts = [read(part, "validation", role, "validation needs answers") for part, role in _files(config, "validation")]
    tests = dict[str, Sequence[Record]]()
    for task, (records, found) in _read_tests(config, report, builder.rejected).items():
        path, tests[task.name] = config.tasks[task], records
        about: dict[str, Json] = {"source": path.name if path else "hub", "rows": len(records), "rejected": len(found.rejected)}
        manifest[f"test {task.name}"] = about | _not_used(found) | _hash(path)
        prompts[f"test {task.name}"] = found.prompts
    return pool, Rows.joined(parts) if parts else None, tests, prompts


def _files(config: DataConfig, split: str) -> list[tuple[Source, str]]:
    """Return the files and hub data sets of a split, with names such as "train 2"."""
    found = [file for source, of in config.sources if of == split for file in single_sources(source, split)]
    return [(file, split if len(found) == 1 else f"{split} {number}") for number, file in enumerate(found, 1)]


def load_tests(config: DataConfig, report: Callable[[str], None]) -> dict[str, list[Record]]:
    """Read the test sets.

    Args:
        config: The data section of the recipe, which lists the test sets.
        report: Function that is called with one line of text for every test set.

    Returns:
        The records of each test set, by its name.

    Raises:
        DataError: a test set is missing or empty, or has too many unusable rows.
    """
    return {task.name: records for task, (records, _) in _read_tests(config, report, None).items()}


def _read_tests(
    config: DataConfig, report: Callable[[str], None], rejected: Path | None
) -> dict[Task, tuple[list[Record], ReadReport]]:
    tests = {
        task: load_task(task, path, max_bad_rows=config.max_bad_rows, rejected=rejected) for task, path in config.tasks.items()
    }
    for task, (records, found) in tests.items():
        report(f"test: {task.name}: {len(records)} rows{_rejected(found)}")
        for line in found.noted():
            report(f"test: {task.name}: {line}")
    return tests


class _ExampleBuilder(NamedTuple):
    """Tokenises the rows of a run, and counts unusable rows and special tokens.

    Args:
        tokenizer: The tokenizer of the student.
        config: The data section of the recipe.
        seed: Seed of the run.
        rejected: JSON Lines file to which unusable and too long rows are appended; if None, they are only counted.
        report: Function that is called with lines of text about special tokens and the cache of tokenised data.
        bad: Number of unusable rows by file or hub data set; updated in place.
        special_tokens: Counts of special tokens in the text of rows, by "train", "validation" or "test <name>"; updated in
            place.
    """

    tokenizer: Tokenizer
    config: DataConfig
    seed: int
    rejected: Path | None
    report: Callable[[str], None]
    bad: Counter[str]
    special_tokens: dict[str, Json]

    def split(self, pool: Rows, held: Rows | None, asked: Set[bytes]) -> tuple[Rows, Rows, tuple[int, int]]:
        """Select the training and the validation rows, without prompts of test rows.

        Args:
            pool: The rows of the training data.
            held: The rows of the validation data; if None, rows of `pool` are used for validation.
            asked: Hashes of the prompts of all test rows.

        Returns:
            Training rows; validation rows, all of which are usable, unless no row is usable; and the numbers of rows of
            `pool` and of `held` that have the prompt of a test row.

        Raises:
            ConfigError: `held` is None and `pool` has too few usable rows.
            DataError: the prompts of all rows are in a test set, or too many rows are unusable.
        """
        before = (pool, Rows.joined([]) if held is None else held)
        train, validation = (rows.take(~asks_one_of(rows, asked)) for rows in before)
        leaked, count = (len(pool) - len(train), len(before[1]) - len(validation)), self.config.validation_rows
        source = train if held is None else validation
        if not source:
            role = "train" if held is None else "validation"
            raise DataError(f"{role}: the prompt of every row is also in a test set; use other data, or other test sets")
        found = first_usable(source, count, self.tokenizer, self.config.tokens, cache=self.report)
        if held is not None and not len(found.indices):
            return train, validation, leaked  # `tokenised` reports why no row is usable, of the training data first
        if held is not None:
            self._list_left_out(validation, found.rejected, found.too_long, "validation data")
            return train, validation.take(found.indices), leaked
        if len(found.indices) < count or len(train) <= count:
            raise ConfigError(self._too_few(train, len(found.indices), (*found.rejected, *found.too_long)))
        if 2 * count > len(train):
            self.report(f"note: validation has {count} of {len(train)} training rows; data.validation_rows sets this number")
        chosen = np.zeros(len(train), dtype=bool)
        chosen[found.indices] = True
        return train.take(~chosen), train.take(chosen), leaked

    def _too_few(self, train: Rows, usable: int, left_out: Sequence[RejectedRecord]) -> str:
        """Return the error message for training data with too few rows for validation.

        `usable` is the number of rows of `train` that validation can use, and `left_out` are the others.
        """
        fault = f"data.validation_rows = {self.config.validation_rows}: the training set has only {len(train)} rows"
        if left_out:
            first = min(left_out, key=lambda found: found.index)
            source, line = train.where(first.index)
            fault += f", and validation can use {usable} of them ({source}:{line}: {first.reason})"
        return f"{fault}; lower data.validation_rows, or set data.validation to a file"

    def tokenised(self, rows: Rows, role: str, *, prompts_alone: bool = False) -> tuple[Examples, dict[str, int]]:
        """Tokenise training or validation rows.

        Args:
            rows: The rows.
            role: "train" or "validation", for messages and counts.
            prompts_alone: Whether rows may be prompts without an answer.

        Returns:
            The examples; and the number of rows without an example, by reason ("too long" or "nothing to learn").

        Raises:
            DataError: `rows` is empty, or more than `max_bad_rows` rows of a file or hub data set are unusable.
        """
        if not rows:
            raise DataError(f"{role}: the prompt of every row is also in a test set; use other data, or other test sets")
        name = f"{'training' if role == 'train' else role} data"
        examples, report = tokenize_training(
            rows,
            self.tokenizer,
            self.config.tokens,
            self.seed,
            role=name,
            prompts_alone=prompts_alone,
            cache=self.report,
        )
        self._note_special(role, report.special_tokens)
        self._list_left_out(rows, report.rejected, report.too_long, name)
        return examples, {"too long": report.num_too_long, "nothing to learn": len(report.rejected)}

    def _list_left_out(
        self, rows: Rows, rejected: Sequence[RejectedRecord], too_long: Sequence[RejectedRecord], role: str
    ) -> None:
        """Add rows without an example to rejected.jsonl; raise DataError if too many."""
        if self.rejected is not None:
            unused = sorted((*rejected, *too_long), key=lambda found: found.index)
            list_unlearned(self.rejected, [(*rows.where(found.index), found.reason) for found in unused])
        limit = self.config.max_bad_rows
        first = dict[str, str]()
        for found in rejected:
            source, line = rows.where(found.index)
            self.bad[source] += 1
            first.setdefault(source, f"{source}:{line}: {found.reason}")
            if self.bad[source] > limit:
                fault = f"{role}: {first[source]}; more than {limit} rows are unusable"
                listed = f" ({self.rejected} lists them)" if self.rejected else ""
                raise DataError(f"{fault}{listed}: fix or remove them, or raise max_bad_rows")

    def check_tests(self, tests: Mapping[str, Sequence[Record]]) -> None:
        """Check that the prompts of the test sets can be tokenised.

        For example, a chat template may reject a prompt.

        Raises:
            DataError: a prompt cannot be tokenised.
        """
        for name, records in tests.items():
            tokenize_prompts(records, self.tokenizer, self.config.tokens, role=f"test set {name}")

    def count_special_in(self, tests: Mapping[str, Sequence[Record]]) -> None:
        """Count and report the special tokens in the prompts of the test sets."""
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


def _not_used(report: ReadReport) -> dict[str, Json]:
    """Return nonzero counts: values in unused columns, and rows without an answer."""
    found: dict[str, Json] = {"unused columns": report.unused, "prompts alone": report.prompts_alone}
    return {name: value for name, value in found.items() if value}


def _rejected(report: ReadReport) -> str:
    return f", {len(report.rejected)} rejected" if report.rejected else ""


def _hash(source: Source | None) -> dict[str, str]:
    path = None if source is None else expanded(source.path)
    return {"sha256": files.digest(path)} if path is not None and path.is_file() else {}


def read_corpus(config: Run, tokenizer: Tokenizer, report: Callable[[str], None], *, updates: int) -> Sequence[TokenSequence]:
    """Read the blocks of text for the pre-training term; () without this term.

    Args:
        config: The run.
        tokenizer: The tokenizer of the student.
        report: Function that is called with a line of text if the recipe has the term but no corpus, or a corpus but no term.
        updates: Number of updates of the run, which limits the number of blocks.
    """
    sources, tokens = config.data.corpus, config.data.tokens
    has_term = config.resolved_method.objective.pretraining is not None
    if has_term != bool(sources):
        why = "no data.corpus" if has_term else f"method {config.method} does not use data.corpus"
        report(f"note: {why}; there is no pre-training term")
    if not (has_term and sources):
        return ()
    length, most = tokens.prompt_tokens + tokens.response_tokens, min(updates * config.training.batch_size, MAX_CORPUS_BLOCKS)
    return load_corpus(sources, tokenizer, block_tokens=length, max_blocks=most)
