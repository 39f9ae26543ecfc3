"""Checks of data before a run: unusable rows, duplicates, overlap with test sets, and lengths in tokens.

The checks write no file and need no model.
"""

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from redistill.data.reader import line_of, survey_records
from redistill.data.rejected import LISTED_ROWS, RejectedRow
from redistill.data.repeats import Question, first_of_each, loose_question, question
from redistill.data.tasks import Task, load_task
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import DataError
from redistill.records import Record
from redistill.storage.redaction import plain

_UNLIMITED = 1 << 40  # tokens; also measures texts that a run would cut or leave out


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A row that repeats another row.

    Args:
        line: The line of the row in its source.
        of: The other row, as "source:line".
        how: "duplicate": prompt and answers equal those of an earlier row verbatim. "exact": the prompt equals that of a test
            row up to white space; a run leaves the row out. "normalised": the prompt differs from that of a test row only in
            case, character width and outer punctuation; a run keeps the row.
    """

    line: int
    of: str
    how: Literal["duplicate", "exact", "normalised"]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Statistics of text lengths in tokens; `longest_95` is the 95th percentile."""

    shortest: int
    median: int
    mean: float
    longest_95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        """The statistics of `lengths`, which has at least one element.

        Example:
            >>> Lengths.of([3, 1, 2, 10])
            Lengths(shortest=1, median=2, mean=4.0, longest_95=10, longest=10)
        """
        ordered = sorted(lengths)
        return cls(
            shortest=ordered[0],
            median=ordered[(len(ordered) - 1) // 2],
            mean=sum(ordered) / len(ordered),
            longest_95=ordered[math.ceil(0.95 * len(ordered)) - 1],
            longest=ordered[-1],
        )


@dataclass(frozen=True, kw_only=True)
class TokenCheck:
    """Token lengths of one source; answers include their end token.

    Args:
        prompts: Lengths of the prompts.
        answers: Lengths of the answers.
        prompts_left_out: Number of rows that a run leaves out because their prompt is too long.
        answers_cut: Number of answers that a run truncates.
    """

    prompts: Lengths
    answers: Lengths
    prompts_left_out: int
    answers_cut: int


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """The result of checking one source.

    Args:
        source: The file or hub data set.
        test: Name of the test set; None for training and validation data.
        rows: Number of usable rows.
        verdict: The forms of the rows, or the reason why the source cannot be read.
        readable: Whether the source could be read and has at least one row.
        unusable: The unusable rows.
        repeats: Duplicates of earlier rows (in this source or an earlier one), and rows whose prompt is also in a test set.
        tokens: Lengths in tokens; None without a tokenizer.
    """

    source: str
    test: str | None
    rows: int
    verdict: str
    readable: bool = True
    unusable: tuple[RejectedRow, ...] = ()
    repeats: tuple[Repeat, ...] = ()
    tokens: TokenCheck | None = None

    @property
    def faults(self) -> Mapping[str, int]:
        """Number of unusable rows by kind of fault, most frequent first."""
        return dict(Counter(row.fault for row in self.unusable).most_common())

    @property
    def leaks(self) -> tuple[Repeat, ...]:
        """The rows whose prompt is also in a test set."""
        return tuple(repeat for repeat in self.repeats if repeat.how != "duplicate")

    @property
    def is_sound(self) -> bool:
        """Whether every row is usable and none is in a test set; duplicates are allowed."""
        return self.readable and not self.unusable and not self.leaks

    def as_json(self) -> dict[str, Any]:
        """The check as JSON values.

        Counts cover all rows; lists of rows hold at most `LISTED_ROWS`.
        """
        return {
            "source": self.source,
            "test": self.test,
            "sound": self.is_sound,
            "rows": self.rows,
            "verdict": self.verdict,
            "faults": dict(self.faults),
            "repeats": dict(Counter(repeat.how for repeat in self.repeats)),
            "unusable": [dataclasses.asdict(row) for row in self.unusable[:LISTED_ROWS]],
            "repeated": [dataclasses.asdict(repeat) for repeat in self.repeats[:LISTED_ROWS]],
            "tokens": None if self.tokens is None else dataclasses.asdict(self.tokens),
        }


def check_data(
    sources: Sequence[tuple[str, str]],
    tests: Mapping[str, str | None] | Mapping[Task, str | None],
    *,
    tokenizer: Any = None,
    tokens: TokenizeConfig | None = None,
) -> list[SourceCheck]:
    """Check training and validation data, and compare it with test sets.

    Args:
        sources: Pairs of a file, folder or hub name and the split of a folder or hub data set, as a run reads them.
        tests: Maps test sets, or their names, to a file; None reads the hub file of a known test set.
        tokenizer: Measures lengths, and finds rows without a target token; None skips both checks.
        tokens: Template and length limits; None uses the defaults.

    Returns:
        One check per source, in order, then one per test set.

    Raises:
        ConfigError: a test set is neither known nor given a file; or the template is "chat" and the tokenizer has no chat
            template.
        ModelError: the tokenizer has no end token.
    """
    checked_tests, test_prompts = _check_tests(tests)
    surveys = [_survey(source, split) for source, split in sources]
    origins = [f"{check.source}:{line_of(record)}" for check, records in surveys for record in records]
    first = first_of_each([record for _, records in surveys for record in records])
    checks = []
    start = 0
    for check, records in surveys:
        numbered = list(enumerate(records, start))
        start += len(records)
        repeats = [
            Repeat(line=line_of(record), of=origins[first[index]], how="duplicate")
            for index, record in numbered
            if first[index] != index
        ]
        repeats += [repeat for record in records if (repeat := test_prompts.find(record)) is not None]
        lengths, unlearnable = (None, ()) if tokenizer is None or not records else _measured(records, tokenizer, tokens)
        unusable = tuple(sorted((*check.unusable, *unlearnable), key=lambda row: row.line))
        usable = check.rows - len(unlearnable)
        checks.append(dataclasses.replace(check, rows=usable, unusable=unusable, repeats=tuple(repeats), tokens=lengths))
    return [*checks, *checked_tests]


def described(checks: Sequence[SourceCheck]) -> Iterator[str]:
    """Lines for a terminal that describe the result of each check.

    They report usable rows, faults with one example of each kind, repeats and lengths.
    """
    for check in checks:
        yield plain(f"{check.source}{f' (test set {check.test})' if check.test else ''}")
        yield plain(f"  {check.rows} usable rows: {check.verdict}" if check.readable else f"  {check.verdict}")
        yield from map(plain, _described_rows(check))
        if check.tokens is not None:
            yield from _described_tokens(check.tokens)
    unsound = sum(not check.is_sound for check in checks)
    yield f"{len(checks)} checked, {unsound} with faults" if unsound else f"{len(checks)} checked, no faults"


def _described_rows(check: SourceCheck) -> Iterator[str]:
    if check.unusable:
        yield f"  {len(check.unusable)} unusable rows:"
    for fault, count in check.faults.items():
        example = next(row for row in check.unusable if row.fault == fault)
        yield f"  {count:8d}  {fault}: line {example.line}: {example.reason}"
    meanings = {
        "duplicate": "duplicates of an earlier row",
        "exact": "with the prompt of a test row; a run leaves them out",
        "normalised": "with the prompt of a test row except for case, width and outer punctuation; a run keeps them",
    }
    for how, text in meanings.items():
        found = [repeat for repeat in check.repeats if repeat.how == how]
        if found:
            yield f"  {len(found):8d}  {text}: line {found[0].line} repeats {found[0].of}"


def _described_tokens(tokens: TokenCheck) -> Iterator[str]:
    effects = (f"{tokens.prompts_left_out} left out", f"{tokens.answers_cut} truncated")
    for name, lengths, effect in zip(("prompts", "answers"), (tokens.prompts, tokens.answers), effects):
        yield (
            f"  {name} in tokens: {lengths.shortest} to {lengths.longest}, median {lengths.median}, mean {lengths.mean:.1f}, "
            f"95 % up to {lengths.longest_95}; {effect}"
        )


# --- one source ---------------------------------------------------------------------------------------------------------


def _survey(source: str, split: str) -> tuple[SourceCheck, list[Record]]:
    try:
        records, report = survey_records(source, split=split)
    except DataError as error:
        return SourceCheck(source=source, test=None, rows=0, verdict=str(error), readable=False), []
    if not records and not report.rejected:
        return SourceCheck(source=report.source, test=None, rows=0, verdict="is empty", readable=False), []
    verdict = report.verdict or "none"
    check = SourceCheck(source=report.source, test=None, rows=len(records), verdict=verdict, unusable=report.rejected)
    return check, records


@dataclass(frozen=True)
class _TestPrompts:
    """The prompts of test rows, each with the first row that has it as "source:line"."""

    exact: dict[Question, str]
    normalised: dict[Question, str]

    def add(self, record: Record, source: str) -> None:
        origin = f"{source}:{line_of(record)}"
        self.exact.setdefault(question(record), origin)
        self.normalised.setdefault(loose_question(record), origin)

    def find(self, record: Record) -> Repeat | None:
        """The first test row with the prompt of `record`; prefers verbatim matches."""
        if (origin := self.exact.get(question(record))) is not None:
            return Repeat(line=line_of(record), of=origin, how="exact")
        if (origin := self.normalised.get(loose_question(record))) is not None:
            return Repeat(line=line_of(record), of=origin, how="normalised")
        return None


def _check_tests(tests: Mapping[str, str | None] | Mapping[Task, str | None]) -> tuple[list[SourceCheck], _TestPrompts]:
    checks, test_prompts = [], _TestPrompts({}, {})
    for task, path in tests.items():
        name = task if isinstance(task, str) else task.name
        try:
            records, report = load_task(task, path, max_bad_rows=sys.maxsize)
        except DataError as error:
            checks.append(SourceCheck(source=path or name, test=name, rows=0, verdict=str(error), readable=False))
            continue
        for record in records:
            test_prompts.add(record, report.source)
        checks.append(
            SourceCheck(source=report.source, test=name, rows=len(records), verdict=report.verdict, unusable=report.rejected)
        )
    return checks, test_prompts


def _measured(
    records: Sequence[Record], tokenizer: Any, tokens: TokenizeConfig | None
) -> tuple[TokenCheck | None, tuple[RejectedRow, ...]]:
    """Lengths of the rows, and the rows without a target token in this tokenizer."""
    limits = tokens or TokenizeConfig()
    unlimited = dataclasses.replace(limits, prompt_tokens=_UNLIMITED, response_tokens=_UNLIMITED)
    try:
        examples, report = tokenize_training(records, tokenizer, unlimited, seed=0)
    except DataError as error:  # no row has a target token
        return None, tuple(RejectedRow(line=line_of(r), fault="nothing to learn", reason=str(error)) for r in records)
    prompts = [len(example.prompt_ids) for example in examples]
    answers = [len(example.token_ids) - len(example.prompt_ids) for example in examples]
    unlearnable = [
        RejectedRow(line=line_of(records[found.index]), fault="nothing to learn", reason=found.reason)
        for found in report.rejected
    ]
    checked = TokenCheck(
        prompts=Lengths.of(prompts),
        answers=Lengths.of(answers),
        prompts_left_out=sum(length > limits.prompt_tokens for length in prompts),
        answers_cut=sum(length > limits.response_tokens for length in answers),
    )
    return checked, tuple(unlearnable)
