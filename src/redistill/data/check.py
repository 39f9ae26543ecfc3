"""What is in data before a run: rows that cannot be used, repeats, what a test set asks too, and lengths in tokens.

It reads and judges, writes nothing, and needs no model.
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

_UNLIMITED = 1 << 40  # tokens; all lengths are wanted, also those that a run would cut


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A row that says what another one says: its line, and that one's place as "source:line".

    `how`: "duplicate" has the same prompt and answers to the letter; "exact" asks what a test row asks, white space aside, so a
    run leaves it out; "normalised" differs from a test row in case, width and outer punctuation alone, and a run keeps it.
    """

    line: int
    of: str
    how: Literal["duplicate", "exact", "normalised"]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of some texts in tokens; `longest_95` is what 95 of 100 do not exceed."""

    shortest: int
    median: int
    mean: float
    longest_95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        """Of at least one text.

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
    """Lengths of prompts and of answers with their end token, and how many a run leaves out or cuts."""

    prompts: Lengths
    answers: Lengths
    prompts_left_out: int
    answers_cut: int


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """What was found in one source.

    Args:
        source: The file or hub data set.
        test: The test set that it is; None for data to train or validate on.
        rows: How many can be used.
        verdict: Their forms, or why the source cannot be read at all.
        readable: Whether it could be read, and held a row.
        unusable: The rows that cannot be used.
        repeats: Duplicates of earlier rows, of this source or one before it, and rows that a test set asks too.
        tokens: Lengths, where there is a tokenizer.
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
        """How many rows cannot be used, by kind of fault, the most frequent first."""
        return dict(Counter(row.fault for row in self.unusable).most_common())

    @property
    def leaks(self) -> tuple[Repeat, ...]:
        """The rows that a test set asks too."""
        return tuple(repeat for repeat in self.repeats if repeat.how != "duplicate")

    @property
    def is_sound(self) -> bool:
        """Whether every row can be used and none is asked in a test set; duplicates are allowed."""
        return self.readable and not self.unusable and not self.leaks

    def as_json(self) -> dict[str, Any]:
        """As plain values; each list of rows has at most `LISTED_ROWS`, the counts are of all."""
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
    """What is in data to learn from, and in test sets that it is held against.

    Args:
        sources: (file, folder or hub name; split of a folder or hub data set), as a run reads them.
        tests: Test sets, or their names -> file, or None for the place of a known one on the hub.
        tokenizer: For lengths in tokens, and rows that have nothing to learn with it; None leaves both out.
        tokens: Template and limits of lengths; None takes the defaults.

    Returns:
        One check for each source, in their order, then one for each test set.

    Raises:
        ConfigError: a test set without a file that is none of the known ones; or chat and a tokenizer without a chat template.
        ModelError: the tokenizer has no end token.
    """
    checked_tests, asked = _check_tests(tests)
    surveys = [_survey(source, split) for source, split in sources]
    places = [f"{check.source}:{line_of(record)}" for check, records in surveys for record in records]
    first = first_of_each([record for _, records in surveys for record in records])
    checks = []
    start = 0
    for check, records in surveys:
        numbered = list(enumerate(records, start))
        start += len(records)
        repeats = [
            Repeat(line=line_of(record), of=places[first[place]], how="duplicate")
            for place, record in numbered
            if first[place] != place
        ]
        repeats += [repeat for record in records if (repeat := asked.by(record)) is not None]
        lengths, mute = (None, ()) if tokenizer is None or not records else _measured(records, tokenizer, tokens)
        unusable = tuple(sorted((*check.unusable, *mute), key=lambda row: row.line))
        usable = check.rows - len(mute)
        checks.append(dataclasses.replace(check, rows=usable, unusable=unusable, repeats=tuple(repeats), tokens=lengths))
    return [*checks, *checked_tests]


def described(checks: Sequence[SourceCheck]) -> Iterator[str]:
    """Lines for a terminal: what each source holds, its faults with the first row of each kind, repeats, lengths."""
    for check in checks:
        yield plain(f"{check.source}{f' (test set {check.test})' if check.test else ''}")
        yield plain(f"  {check.rows} rows can be used: {check.verdict}" if check.readable else f"  {check.verdict}")
        yield from map(plain, _described_rows(check))
        if check.tokens is not None:
            yield from _described_tokens(check.tokens)
    unsound = sum(not check.is_sound for check in checks)
    yield f"{len(checks)} checked, {unsound} with faults" if unsound else f"{len(checks)} checked, no faults"


def _described_rows(check: SourceCheck) -> Iterator[str]:
    if check.unusable:
        yield f"  {len(check.unusable)} rows cannot be used:"
    for fault, count in check.faults.items():
        example = next(row for row in check.unusable if row.fault == fault)
        yield f"  {count:8d}  {fault}: line {example.line}: {example.reason}"
    words = {
        "duplicate": "repeat an earlier row to the letter",
        "exact": "are asked in a test set; a run leaves them out",
        "normalised": "are asked in a test set but for case, width and outer marks; a run keeps them",
    }
    for how, text in words.items():
        found = [repeat for repeat in check.repeats if repeat.how == how]
        if found:
            yield f"  {len(found):8d}  {text}: line {found[0].line} is {found[0].of}"


def _described_tokens(tokens: TokenCheck) -> Iterator[str]:
    fates = (f"{tokens.prompts_left_out} are left out", f"{tokens.answers_cut} are cut")
    for name, lengths, fate in zip(("prompts", "answers"), (tokens.prompts, tokens.answers), fates):
        yield (
            f"  {name} in tokens: {lengths.shortest} to {lengths.longest}, median {lengths.median}, mean {lengths.mean:.1f}, "
            f"95 % up to {lengths.longest_95}; {fate}"
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
class _Asked:
    """What test rows ask, and the place of the first that does."""

    exactly: dict[Question, str]
    loosely: dict[Question, str]

    def add(self, record: Record, source: str) -> None:
        place = f"{source}:{line_of(record)}"
        self.exactly.setdefault(question(record), place)
        self.loosely.setdefault(loose_question(record), place)

    def by(self, record: Record) -> Repeat | None:
        """The test row that asks what `record` asks."""
        if (place := self.exactly.get(question(record))) is not None:
            return Repeat(line=line_of(record), of=place, how="exact")
        if (place := self.loosely.get(loose_question(record))) is not None:
            return Repeat(line=line_of(record), of=place, how="normalised")
        return None


def _check_tests(tests: Mapping[str, str | None] | Mapping[Task, str | None]) -> tuple[list[SourceCheck], _Asked]:
    checks, asked = [], _Asked({}, {})
    for task, path in tests.items():
        name = task if isinstance(task, str) else task.name
        try:
            records, report = load_task(task, path, max_bad_rows=sys.maxsize)
        except DataError as error:
            checks.append(SourceCheck(source=path or name, test=name, rows=0, verdict=str(error), readable=False))
            continue
        for record in records:
            asked.add(record, report.source)
        checks.append(
            SourceCheck(source=report.source, test=name, rows=len(records), verdict=report.verdict, unusable=report.rejected)
        )
    return checks, asked


def _measured(
    records: Sequence[Record], tokenizer: Any, tokens: TokenizeConfig | None
) -> tuple[TokenCheck | None, tuple[RejectedRow, ...]]:
    """Lengths of the rows, and those that have nothing to learn with this tokenizer."""
    limits = tokens or TokenizeConfig()
    unlimited = dataclasses.replace(limits, prompt_tokens=_UNLIMITED, response_tokens=_UNLIMITED)
    try:
        examples, report = tokenize_training(records, tokenizer, unlimited, seed=0)
    except DataError as error:  # not one of them has
        return None, tuple(RejectedRow(line=line_of(r), fault="nothing to learn", reason=str(error)) for r in records)
    prompts = [len(example.prompt_ids) for example in examples]
    answers = [len(example.token_ids) - len(example.prompt_ids) for example in examples]
    mute = [
        RejectedRow(line=line_of(records[found.place]), fault="nothing to learn", reason=found.reason)
        for found in report.rejected
    ]
    checked = TokenCheck(
        prompts=Lengths.of(prompts),
        answers=Lengths.of(answers),
        prompts_left_out=sum(length > limits.prompt_tokens for length in prompts),
        answers_cut=sum(length > limits.response_tokens for length in answers),
    )
    return checked, tuple(mute)
