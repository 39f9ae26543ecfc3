"""Checks of data before a run.

The checks report unusable rows, duplicates, rows whose prompt is also in a test set, and the lengths of prompts and answers in
tokens.  They write no file and need no model.
"""

import dataclasses
import itertools
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Self, TypeVar

from redistill.data.reader import ReadReport, line_of, single_sources, survey_records
from redistill.data.rejected import LISTED_ROWS, RejectedRow
from redistill.data.repeats import first_of_each, loose_question
from redistill.data.rows import Question, Rows, question
from redistill.data.sources import Source
from redistill.data.special import SpecialTokenCounts, SpecialTokens
from redistill.data.tasks import Task, load_task
from redistill.data.templates import checked_renderings
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import DataError
from redistill.interfaces import Tokenizer
from redistill.records import Json, Record

Records = TypeVar("Records", bound=Sequence[Record])
How = Literal["duplicate", "exact", "normalised"]

_PROMPT_KEYS: Mapping[How, Callable[[Record], Question]] = {"exact": question, "normalised": loose_question}
_UNLIMITED = 1 << 40  # tokens; no text reaches this limit, so long texts are measured in full


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A row that repeats an earlier row or the prompt of a test row.

    Args:
        line: Line number of the row in its file, or number of the row in a JSON array or hub data set; the first is 1.
        of: The earlier row or the test row, as "SOURCE:LINE". SOURCE is the file or hub data set of that row.
        how: "duplicate" means that an earlier row has the same prompt and answers.  "exact" means that a test row has the same
            prompt, up to white space; a run does not train on the repeating row.  "normalised" means that a test row has the
            same prompt up to white space, case, outer punctuation and character width (full-width or half-width letters); a
            run trains on the repeating row.
    """

    line: int
    of: str
    how: How


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Statistics of the lengths of texts, in tokens.

    `longest_95` is the 95th percentile: at least 95 % of the texts are not longer.  For an even number of texts, `median` is
    the smaller of the two middle lengths.
    """

    shortest: int
    median: int
    mean: float
    longest_95: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Self:
        """Compute the statistics of `lengths`; at least one length is required.

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

    @property
    def described(self) -> str:
        """The statistics as one line of text."""
        return f"{self.shortest} to {self.longest}, median {self.median}, mean {self.mean:.1f}, 95 % up to {self.longest_95}"


@dataclass(frozen=True, kw_only=True)
class TokenCheck:
    """Lengths, in tokens, of the prompts and answers in one file or hub data set.

    Args:
        prompts: Lengths of the prompts.
        answers: Lengths of the answers before truncation, including the end token.
        prompts_left_out: Number of rows that a run leaves out because their prompt is too long.
        answers_cut: Number of answers that a run truncates.
    """

    prompts: Lengths
    answers: Lengths
    prompts_left_out: int
    answers_cut: int


@dataclass(frozen=True, kw_only=True)
class SourceCheck:
    """The result of checking one source, which is a file or a hub data set.

    Args:
        source: Path of the file, or name of the hub data set.
        test: Name of the test set; None for training and validation data.
        rows: Number of usable rows.
        verdict: A text with the number of usable rows of each form (the keys of a row), such as "prompt/completion, 20 rows".
            It is "none" if every row is unusable. It is the reason if the source cannot be read or has no rows.
        readable: Whether the source could be read and has at least one row.
        unusable: The unusable rows.
        unused: For each column that is not used, the number of rows that have a value in it.
        prompts_alone: Number of usable rows without an answer.
        repeats: Rows that duplicate an earlier row of this or another source, and rows whose prompt is also in a test set.
        tokens: Lengths in tokens; None for a test set, without a tokenizer, or if no row has a target (a token that the student
            is trained to predict).
        special_tokens: Counts of special tokens in the text of the rows; all counts are zero without a tokenizer.
        templates: Number of rows by their template, "chat", "alpaca" or "verbatim"; empty without a tokenizer.
    """

    source: str
    test: str | None
    rows: int
    verdict: str
    readable: bool = True
    unusable: tuple[RejectedRow, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)
    prompts_alone: int = 0
    repeats: tuple[Repeat, ...] = ()
    tokens: TokenCheck | None = None
    special_tokens: SpecialTokenCounts = field(default_factory=SpecialTokenCounts)
    templates: Mapping[str, int] = field(default_factory=dict)

    @property
    def faults(self) -> Mapping[str, int]:
        """Number of unusable rows by kind of fault, most frequent first."""
        return dict(Counter(row.fault for row in self.unusable).most_common())

    @property
    def is_sound(self) -> bool:
        """Whether the source is readable and has no faulty rows.

        A row is faulty if it is unusable, or if its prompt is also in a test set ("exact" or "normalised" in `Repeat.how`).
        A duplicate of an earlier row is not a fault.
        """
        return self.readable and not self.unusable and all(repeat.how == "duplicate" for repeat in self.repeats)

    def as_json(self) -> dict[str, Json]:
        """Return the check as JSON values.

        The counts include all rows.  The lists under the keys "unusable" and "repeated" have at most `LISTED_ROWS` rows each.
        """
        return {
            "source": self.source,
            "test": self.test,
            "sound": self.is_sound,
            "rows": self.rows,
            "verdict": self.verdict,
            "faults": dict(self.faults),
            "unused_columns": dict(self.unused),
            "prompts_alone": self.prompts_alone,
            "repeats": dict(Counter(repeat.how for repeat in self.repeats)),
            "unusable": [dataclasses.asdict(row) for row in self.unusable[:LISTED_ROWS]],
            "repeated": [dataclasses.asdict(repeat) for repeat in self.repeats[:LISTED_ROWS]],
            "tokens": None if self.tokens is None else dataclasses.asdict(self.tokens),
            "special_tokens": self.special_tokens.as_json(),
            "templates": dict(self.templates),
        }


def check_data(
    sources: Sequence[tuple[str | Source, str]],
    tests: Mapping[str, str | Source | None] | Mapping[Task, str | Source | None],
    *,
    require_answer: bool | None = None,
    tokenizer: Tokenizer | None = None,
    tokens: TokenizeConfig | None = None,
) -> list[SourceCheck]:
    """Check data sets before a run, and find test prompts in the training data.

    A row of the training or validation data is reported if its prompt is also in a test set.

    Args:
        sources: Pairs (source, split).  A source is a file, a folder or a hub name; the split, such as "train", is the part
            that is read from a folder or hub data set.
        tests: Maps each test set (a `Task` or its name) to a file.  If the file is None, the test set is read from the hub.
        require_answer: Whether a row without an answer is unusable.  If None, a file may consist of prompts alone, for methods
            that train on generated text; in any other file, a row without an answer is unusable.
        tokenizer: Tokenizer for the checks of lengths, special tokens and targets (tokens that the student is trained to
            predict). If None, these checks are skipped.
        tokens: Template and length limits; if None, the default settings are used.

    Returns:
        One check per source, in order, then one per test set; a folder with several files has one check per file.

    Raises:
        ConfigError: a test set has neither a file nor a hub data set; or a row needs a chat template, but the tokenizer has
            none.
        ModelError: the tokenizer has no end token.
    """
    limits = tokens or TokenizeConfig()
    test_checks, test_origins = _check_tests(tests, tokenizer, limits)
    surveys = [
        _survey(file.name, None, partial(_training_rows, file, split, require_answer), Rows.joined([]))
        for source, split in sources
        for file in _single(source, split)
    ]
    together = Rows.joined([records for _, records in surveys])
    first = first_of_each(together)
    earlier = (":".join(map(str, together.where(k))) if k != index else None for index, k in enumerate(first))
    checks = []
    for plain_check, records in surveys:
        check = dataclasses.replace(plain_check, templates=_rendered(plain_check, records, tokenizer, limits))
        of_rows = enumerate(itertools.islice(earlier, len(records)))  # takes the items of this source
        repeats = [Repeat(line=records.where(k)[1], of=of, how="duplicate") for k, of in of_rows if of]
        repeats += filter(None, (_leak(record, test_origins) for record in (records if test_origins else ())))
        has_answers = len(records) > check.prompts_alone
        measured = _Measured() if tokenizer is None or not has_answers else _measured(records, tokenizer, limits)
        unusable = tuple(sorted((*check.unusable, *measured.unlearnable), key=lambda row: row.line))
        usable = check.rows - len(measured.unlearnable)
        check = dataclasses.replace(check, rows=usable, unusable=unusable, repeats=tuple(repeats))
        checks.append(dataclasses.replace(check, tokens=measured.tokens, special_tokens=measured.special_tokens))
    return [*checks, *test_checks]


def _check_tests(
    tests: Mapping[str, str | Source | None] | Mapping[Task, str | Source | None],
    tokenizer: Tokenizer | None,
    limits: TokenizeConfig,
) -> tuple[list[SourceCheck], dict[tuple[How, Question], str]]:
    """Check each test set; return the checks and the row of each test prompt.

    The second result maps test prompts to rows, as described in `_leak`.
    """
    test_checks: list[SourceCheck] = []
    test_origins: dict[tuple[How, Question], str] = {}
    for task, path in tests.items():
        name = task if isinstance(task, str) else task.name
        none: Sequence[Record] = ()
        shown = name if path is None else Source.of(path).name
        check, found = _survey(shown, name, partial(load_task, task, path, max_bad_rows=sys.maxsize), none)
        for record, (how, key) in itertools.product(found, _PROMPT_KEYS.items()):
            test_origins.setdefault((how, key(record)), f"{check.source}:{line_of(record)}")
        test_checks.append(_with_counts(check, found, tokenizer, limits))
    return test_checks, test_origins


# --- one source ---------------------------------------------------------------------------------------------------------


def _survey(
    source: str, test: str | None, read: Callable[[], tuple[Records, ReadReport]], none: Records
) -> tuple[SourceCheck, Records]:
    """Read one source with `read`; return its check and its records.

    Repeats and lengths are not checked. `test` is the name of the test set, or None for other data. `none` is an empty
    sequence, which is returned as the records if the source cannot be read.
    """
    try:
        records, report = read()
    except DataError as error:
        return SourceCheck(source=source, test=test, rows=0, verdict=str(error), readable=False), none
    bad, verdict = report.rejected, report.verdict or ("none" if report.rejected else "is empty")
    check = SourceCheck(
        source=report.source,
        test=test,
        rows=len(records),
        verdict=verdict,
        readable=bool(records or bad),
        unusable=bad,
        unused=report.unused,
        prompts_alone=report.prompts_alone,
    )
    return check, records


def _single(source: str | Source, split: str) -> Sequence[Source]:
    """Return one source for each file of a folder.

    If the source has no file, `source` itself is returned. `_survey` then reports the error.
    """
    try:
        return single_sources(source, split)
    except DataError:
        return [Source.of(source)]


def _training_rows(source: Source, split: str, require_answer: bool | None) -> tuple[Rows, ReadReport]:
    """Read the rows of a source; `check_data` describes `require_answer`."""
    records, report = survey_records(source, split=split, require_answer=require_answer is not False)
    has_prompts_alone = report.rejected and not records and all(row.fault == "no answer" for row in report.rejected)
    if require_answer is None and has_prompts_alone:
        return survey_records(source, split=split, require_answer=False)
    return records, report


def _with_counts(
    check: SourceCheck, records: Sequence[Record], tokenizer: Tokenizer | None, limits: TokenizeConfig
) -> SourceCheck:
    """Return the check of a test set with two counts added.

    The counts are the number of special tokens in the prompts, and the number of rows by template.
    """
    if tokenizer is None:
        return check
    special, counts = SpecialTokens(tokenizer), SpecialTokenCounts()
    for record in records:
        counts.add(record, None, special, limits.template)
    return dataclasses.replace(check, special_tokens=counts, templates=_rendered(check, records, tokenizer, limits))


def _rendered(
    check: SourceCheck, records: Sequence[Record], tokenizer: Tokenizer | None, limits: TokenizeConfig
) -> dict[str, int]:
    """Count the rows of a source by the template that renders them.

    The result is {} without a tokenizer. A ConfigError is raised if a row needs a chat template and the tokenizer has none.
    """
    if tokenizer is None:
        return {}
    prompts = Counter(type(record.prompt).__name__ for record in records)
    return checked_renderings(prompts, limits.template, tokenizer, check.source)


def _leak(record: Record, origins: Mapping[tuple[How, Question], str]) -> Repeat | None:
    """Find a test row with the prompt of `record`; return None if there is none.

    An "exact" match takes precedence over a "normalised" match.

    `origins` maps test prompts to test rows. A key is a pair: the kind of comparison ("exact" or "normalised"), and the result
    of the function in `_PROMPT_KEYS` for the prompt. A value is the first test row with this prompt, as "SOURCE:LINE".
    """
    for how, key in _PROMPT_KEYS.items():
        if (origin := origins.get((how, key(record)))) is not None:
            return Repeat(line=line_of(record), of=origin, how=how)
    return None


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The results of tokenizing one source.

    Args:
        tokens: Lengths in tokens; None if no row has a target (a token that the student is trained to predict).
        unlearnable: The rows without a target.
        special_tokens: Counts of special tokens in the text.
    """

    tokens: TokenCheck | None = None
    unlearnable: tuple[RejectedRow, ...] = ()
    special_tokens: SpecialTokenCounts = field(default_factory=SpecialTokenCounts)


def _measured(records: Rows, tokenizer: Tokenizer, limits: TokenizeConfig) -> _Measured:
    unlimited = dataclasses.replace(limits, prompt_tokens=_UNLIMITED, response_tokens=_UNLIMITED)
    try:
        examples, report = tokenize_training(records, tokenizer, unlimited, seed=0)
    except DataError as error:  # no row has a target token
        lines = [records.where(index)[1] for index in range(len(records))]
        return _Measured(
            unlearnable=tuple(RejectedRow(line=line, fault="nothing to learn", reason=str(error)) for line in lines)
        )
    prompts, lengths = examples.prompt_lengths, examples.lengths
    answers = [length - prompt for length, prompt in zip(lengths, prompts)]
    lost = [(records.where(found.index)[1], found.reason) for found in report.rejected]
    checked = TokenCheck(
        prompts=Lengths.of(prompts),
        answers=Lengths.of(answers),
        prompts_left_out=sum(length > limits.prompt_tokens for length in prompts),
        answers_cut=sum(length > limits.response_tokens for length in answers),
    )
    unlearnable = tuple(RejectedRow(line=line, fault="nothing to learn", reason=reason) for line, reason in lost)
    return _Measured(tokens=checked, unlearnable=unlearnable, special_tokens=report.special_tokens)
