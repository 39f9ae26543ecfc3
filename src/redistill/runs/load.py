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
from redistill.data.chat import chat_notes
from redistill.data.corpus import load_corpus
from redistill.data.examples import Examples
from redistill.data.reader import ReadReport, read_records
from redistill.data.rejected import list_unlearned
from redistill.data.repeats import first_of_each
from redistill.data.rows import Rows, asks_one_of, question_digest
from redistill.data.special import SpecialTokenCounts, SpecialTokens
from redistill.data.tasks import Task, load_task
from redistill.data.templates import checked_renderings, described_renderings
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import ConfigError, DataError
from redistill.interfaces import Tokenizer
from redistill.records import Json, Record
from redistill.storage import files

MAX_CORPUS_BLOCKS = 200_000
"""Maximum number of blocks of a corpus.  With 512 tokens per block, it has 100 million tokens: 400 MB in every process."""


@dataclass(frozen=True, kw_only=True)
class DataSets:
    """The training, validation and test data of a run.

    Args:
        train: Training examples.
        validation: Validation records.
        validation_examples: The validation records as tokenised examples; records that exceed the length limits are omitted.
        tests: Test records by name of the test set.
        manifest: Description of the data for run.json: path, hash and number of rows of each file or hub data set; the numbers
            of its rows by template; and the numbers of rows that are used and of rows that were removed.
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


def trained_templates(templates: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the number of rows of all training files by template.

    Args:
        templates: Number of rows by template, for each data set; the names of training files begin with "train".
    """
    return dict(sum((Counter(found) for role, found in templates.items() if role.startswith("train")), Counter[str]()))


def load_data(
    config: DataConfig, tokenizer: Tokenizer, seed: int, *, rejected: Path | None, report: Callable[[str], None]
) -> DataSets:
    """Read and tokenise the data of a run.

    A training or validation row is removed if a test row has the same prompt.  Duplicates of training rows are kept.  Both are
    counted.

    Args:
        config: The data section of the recipe: paths of the data, test sets and length limits.
        tokenizer: The tokenizer of the student.
        seed: Seed of the run.  With `reference: random` in the recipe, it determines which reference answer of a row is used.
        rejected: JSON Lines file to which unusable and too long rows are written; if None, they are only counted.
        report: Function that is called with lines of text about the data, such as the number of rows of a file.

    Raises:
        ConfigError: data.validation is not set, and the training data does not have more than data.validation_rows rows; or
            there are conversations, and the tokenizer has no chat template.
        DataError: a file or data set is missing or empty, has too many unusable rows, or has no row within the length limits.
    """
    manifest, prompts = dict[str, Json](), dict[str, Mapping[str, int]]()
    builder = _ExampleBuilder(tokenizer, config, seed, rejected, report, Counter(), {})

    def read(source: str, split: str, role: str) -> Rows:
        limit = config.max_bad_rows
        records, found = read_records(source, split=split, max_bad_rows=limit, rejected=rejected, cache=report)
        report(f"{role}: {found.source}: {found.verdict}{_rejected(found)}")
        about: dict[str, Json] = {"source": source, "form": found.verdict, "rows": found.num_rows}
        manifest[role] = about | {"rejected": len(found.rejected)} | _hash(source)
        prompts[role] = found.prompts
        builder.bad[found.source] = len(found.rejected)
        return records

    roles = ["train"] if len(config.train) == 1 else [f"train {number + 1}" for number in range(len(config.train))]
    pool = Rows.joined([read(source, "train", role) for source, role in zip(config.train, roles)])
    repeats = sum(first != index for index, first in enumerate(first_of_each(pool)))
    if repeats:
        report(f"train: {repeats} exact duplicates of earlier rows are kept")
    held = None if config.validation is None else read(config.validation, "validation", "validation")
    tests = dict[str, Sequence[Record]]()
    for task, (records, found) in _read_tests(config, report, rejected).items():
        path, tests[task.name] = config.tasks[task], records
        about: dict[str, Json] = {"source": path or "hub", "rows": len(records), "rejected": len(found.rejected)}
        manifest[f"test {task.name}"] = about | _hash(path)
        prompts[f"test {task.name}"] = found.prompts
    manifest["templates"] = _templates(prompts, tokenizer, config.tokens, report)
    asked = {question_digest(record) for records in tests.values() for record in records}
    train, validation, leaked = _split(pool, held, asked, config)
    if any(leaked):
        report(f"removed, since a test set has the same prompt: {leaked[0]} training rows, {leaked[1]} validation rows")
    examples, counts, _ = builder.tokenised(train[: config.max_train_rows], "train")
    validation_examples, lost, validation = builder.tokenised(validation, "validation")
    builder.count_special_in(tests)
    counts |= {"in a test set": leaked[0]}
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


def _templates(
    prompts: Mapping[str, Mapping[str, int]], tokenizer: Tokenizer, tokens: TokenizeConfig, report: Callable[[str], None]
) -> dict[str, dict[str, int]]:
    """Report the templates of all data sets; return the numbers of rows by template, for each data set.

    `prompts` has the numbers of rows by type of prompt, for each data set.
    """
    for note in chat_notes(tokenizer, tokens.chat):
        report(f"note: {note}")
    found: dict[str, dict[str, int]] = {}
    for role, kinds in prompts.items():  # the training files come first
        trained = trained_templates(found) if role.startswith("test ") else None
        found[role] = report_templates(role, kinds, tokenizer, tokens, report, trained)
    return found


def report_templates(
    role: str,
    prompts: Mapping[str, int],
    tokenizer: Tokenizer,
    tokens: TokenizeConfig,
    report: Callable[[str], None],
    trained: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Report with which template each row of a data set is rendered.

    Args:
        role: Name of the data set in messages: "train", "validation" or "test <name>".
        prompts: Number of rows by the type of their prompt, as in `ReadReport`.
        tokenizer: The tokenizer of the student.
        tokens: The template.
        report: Function that is called with one line of text, and with a note on test rows whose template no training row has.
        trained: Number of training rows by template; None if `role` is not a test set, or if there was no training.

    Returns:
        Number of rows by template: "chat", "alpaca" or "verbatim".

    Raises:
        ConfigError: there are conversations, and the tokenizer has no chat template.
    """
    counts = checked_renderings(prompts, tokens.template, tokenizer, role)
    report(f"{role}: rendered {described_renderings(counts)}")
    if trained and (other := {name: count for name, count in counts.items() if name not in trained}):
        only = "chat" if "chat" in trained else "alpaca"
        report(
            f"note: {role}: {described_renderings(other)}, as no training row; data.tokens.template: {only} renders all rows "
            "with one template"
        )
    return counts


def report_tests(
    tests: Mapping[str, Sequence[Record]], tokenizer: Tokenizer, tokens: TokenizeConfig, report: Callable[[str], None]
) -> None:
    """Report with which template each row of the test sets is rendered.

    Args:
        tests: Records by name of the test set.
        tokenizer: The tokenizer of the model.
        tokens: The template, with its arguments and date.
        report: Function that is called with lines of text.

    Raises:
        ConfigError: there are conversations, and the tokenizer has no chat template.
    """
    for note in chat_notes(tokenizer, tokens.chat):
        report(f"note: {note}")
    for name, records in tests.items():
        prompts = Counter(type(record.prompt).__name__ for record in records)
        report_templates(f"test {name}", prompts, tokenizer, tokens, report)


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

    def tokenised(self, rows: Rows, role: str) -> tuple[Examples, dict[str, int], Rows]:
        """Tokenise training or validation rows.

        Args:
            rows: The rows.
            role: "train" or "validation", for messages and counts.

        Returns:
            The examples; the number of rows without an example, by reason ("too long" or "nothing to learn"); and the rows
            without those that have nothing to learn (rows that are too long are included).

        Raises:
            DataError: `rows` is empty, or more than `max_bad_rows` rows of a file or hub data set are unusable.
        """
        if not rows:
            raise DataError(f"{role}: the prompt of every row is also in a test set; use other data, or other test sets")
        examples, report = tokenize_training(rows, self.tokenizer, self.config.tokens, self.seed, cache=self.report)
        self._note_special(role, report.special_tokens)
        if self.rejected is not None:
            unused = sorted((*report.rejected, *report.too_long), key=lambda found: found.index)
            list_unlearned(self.rejected, [(*rows.where(found.index), found.reason) for found in unused])
        limit = self.config.max_bad_rows
        for found in report.rejected:
            source, line = rows.where(found.index)
            self.bad[source] += 1
            if self.bad[source] > limit:
                fault = f"{source}:{line}: {found.reason}; more than {limit} rows are unusable"
                listed = f" ({self.rejected} lists them)" if self.rejected else ""
                raise DataError(f"{fault}{listed}: fix or remove them, or raise max_bad_rows")
        useless = [found.index for found in report.rejected]
        counts = {"too long": report.num_too_long, "nothing to learn": len(useless)}
        return examples, counts, rows.take(np.delete(np.arange(len(rows)), useless)) if useless else rows

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


def _split(pool: Rows, held: Rows | None, asked: Set[bytes], config: DataConfig) -> tuple[Rows, Rows, tuple[int, int]]:
    """Select the training and the validation rows, without rows that have the prompt of a test row.

    Args:
        pool: The rows of the training data.
        held: The rows of the validation data; if None, the first rows of `pool` are used for validation.
        asked: Hashes of the prompts of all test rows.
        config: The data section of the recipe, which gives the number of validation rows.

    Returns:
        Training rows; validation rows; and how many rows of `pool` and of `held` have the prompt of a test row.

    Raises:
        ConfigError: `held` is None and `pool` has too few rows.
    """
    before = (pool, Rows.joined([]) if held is None else held)
    train, validation = (rows.take(~asks_one_of(rows, asked)) for rows in before)
    leaked, count = (len(pool) - len(train), len(before[1]) - len(validation)), config.validation_rows
    if held is not None:
        return train, validation[:count], leaked
    if len(train) <= count:
        fault = f"data.validation_rows = {count}: the training set has only {len(train)} rows"
        raise ConfigError(f"{fault}; lower data.validation_rows, or set data.validation to a file")
    return train[count:], train[:count], leaked


def _rejected(report: ReadReport) -> str:
    return f", {len(report.rejected)} rejected" if report.rejected else ""


def _hash(source: str | None) -> dict[str, str]:
    return {"sha256": files.digest(Path(source))} if source and Path(source).is_file() else {}


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
