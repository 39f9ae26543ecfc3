"""Reading of records from files, folders and data sets of the Hugging Face hub.

`sources` finds the files, `formats` reads their rows, and `forms` parses a row.  Unusable rows are rejected with their line
number and the reason. The module uses no template and no tokenizer. Text is kept verbatim. Some published files
contain "<n>" instead of line breaks; the module does not replace "<n>".
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, cast

from redistill.data.bad_rows import BadRow, Fault
from redistill.data.columns import answer_hint, mapping_hint, renamed
from redistill.data.fingerprint import CACHED_BYTES, fingerprint
from redistill.data.formats import file_format, file_rows
from redistill.data.forms import parse_row, unused_keys
from redistill.data.rejected import RejectedRow, list_rejected
from redistill.data.rows import Rows, Table, TableBuilder, collection_paused
from redistill.data.sources import Located, Source, download, hub_rows, located
from redistill.data.whole_file import single_byte_fault
from redistill.errors import DataError
from redistill.processes import signals
from redistill.records import Conversation, Json, Record
from redistill.storage import files
from redistill.storage.cache import Stored, cached
from redistill.storage.redaction import plain_line

MAX_NAMES = 1000
"""Maximum number of different unused columns that are counted by name; rows may have any number of different keys."""


@dataclass(frozen=True)
class ReadReport:
    """The result of reading a source.

    Args:
        source: The file or hub data set.
        verdict: The number of usable rows of each form (the keys of a row), such as "instruction/input/output, 899 rows".
        num_rows: Number of usable rows.
        rejected: The unusable rows.
        unused: For each column that is not used, the number of rows that have a value in it; the most frequent column first.
        prompts_alone: Number of usable rows without an answer.
        prompts: Number of usable rows by the type of their prompt, such as {"Conversation": 20}.
    """

    source: str
    verdict: str
    num_rows: int
    rejected: tuple[RejectedRow, ...]
    unused: Mapping[str, int] = field(default_factory=dict)
    prompts_alone: int = 0
    prompts: Mapping[str, int] = field(default_factory=dict)

    def noted(self) -> Iterator[str]:
        """Yield notes for a log: the unused columns, and the rows without an answer."""
        if self.unused:
            named = [f"{plain_line(name)[:60]} ({_rows(count)})" for name, count in list(self.unused.items())[:20]]
            more = f" and {len(self.unused) - 20} others" if len(self.unused) > 20 else ""
            yield f"columns not used: {', '.join(named)}{more}"
        if self.prompts_alone:
            hint = answer_hint(dict.fromkeys(self.unused), ("prompt",))
            yield f"{_rows(self.prompts_alone)} without an answer (prompts alone)" + (
                f"; to give answers, {hint}" if hint else ""
            )


def read_records(
    source: str | Path | Source,
    *,
    split: str = "train",
    hub_file: str | None = None,
    max_bad_rows: int = 0,
    require_answer: bool = True,
    why_answer: str = "",
    rejected: Path | None = None,
    cache: Callable[[str], None] | None = None,
) -> tuple[Rows, ReadReport]:
    """Read the usable rows of a data set.

    Each row is an object, whose keys determine its form:

    - `instruction`, `input` (optional), `output`; the keys `context` and `response` of Databricks' data are read as `input` and
      `output`;
    - `prompt`, `completion` (or `response`, `output`); a prompt that is a string is used verbatim, and a prompt that is a list
      is read as messages;
    - `messages` of `role` and `content`, or ShareGPT's `conversations` of `from` and `value`; the last message is the answer.

    An answer is a string, or a list of equally correct strings.  `Source.columns` maps columns with other names to these keys.
    A file may have a byte order mark, CRLF line ends and blank lines.  It may also contain one JSON array instead of lines.

    Args:
        source: A file with an ending of `formats.FORMATS`, a folder with files of a split, or a hub name `owner/name`.  A
            source that looks like a path is never requested from the hub.
        split: The split to read from a folder or hub data set, if `source` names no split.
        hub_file: A file of the hub repository to read instead of a split.
        max_bad_rows: Maximum number of unusable rows in each file, >= 0.
        require_answer: Whether a row without an answer is unusable; if False, its record has no references (correct answers).
        why_answer: The reason why answers are required, such as "policy fixed needs gold answers", for the error message.
        rejected: A JSON Lines file to which the unusable rows are written.  Its lines on other sources are kept.  If None, no
            file is written.
        cache: Function that receives warnings about the cache, for example that a file cannot be written. If it is not None,
            the rows of a large file are stored in the cache for later runs. None disables the cache.

    Returns:
        The records in the order of the source, and the report.  If a folder has several files of the split, the report
        describes all of them together.  Records are created on access; their `record_id` is "<file stem>:<line>".

    Raises:
        DataError: the source does not exist, cannot be read, has no usable row, or has more than `max_bad_rows` unusable rows.
    """
    assert max_bad_rows >= 0, max_bad_rows
    found = []
    for place in _places(source, split, hub_file):
        records, report = _survey(place, require_answer=require_answer, cache=cache)
        if rejected is not None:
            list_rejected(rejected, report.source, report.rejected)
        _check_rows(report, max_bad_rows, rejected, why_answer)
        found.append((records, report))
    return _joined(Source.of(source).name, found)


def survey_records(
    source: str | Path | Source,
    *,
    split: str = "train",
    hub_file: str | None = None,
    require_answer: bool = True,
    cache: Callable[[str], None] | None = None,
) -> tuple[Rows, ReadReport]:
    """Read the usable rows of a data set with any number of unusable rows.

    The arguments and the result are those of `read_records`.  The result may contain no record.

    Raises:
        DataError: the source does not exist or cannot be read.
    """
    places = _places(source, split, hub_file)
    found = [_survey(place, require_answer=require_answer, cache=cache) for place in places]
    return _joined(Source.of(source).name, found)


def single_sources(source: str | Path | Source, split: str, columns: Mapping[str, str] | None = None) -> list[Source]:
    """Return one source for each file of a folder.

    If the results are read one by one, every file has its own report.

    Args:
        source: A file, a folder, or a hub name.
        split: The split to read from a folder or hub data set, if `source` names no split.
        columns: The field `columns` of the results, if `source` does not set this field.

    Raises:
        DataError: the source does not exist, or the folder has no file of the split.
    """
    whole = Source.of(source, columns)
    return [
        whole if place.path is None else Source(path=str(place.path), columns=whole.columns) for place in located(whole, split)
    ]


def _places(source: str | Path | Source, split: str, hub_file: str | None) -> list[Located]:
    found = Source.of(source)
    if hub_file is None or Path(found.path).exists():
        return located(found, split)
    return [download(found, hub_file)]


def _joined(name: str, found: list[tuple[Rows, ReadReport]]) -> tuple[Rows, ReadReport]:
    """Join the rows and the reports of the files of one source.

    `name` is the name of the source.
    """
    if len(found) == 1:
        return found[0]
    reports = [report for _, report in found]
    unused, prompts = Counter[str](), Counter[str]()
    for report in reports:
        unused.update(report.unused)
        prompts.update(report.prompts)
    joined = ReadReport(
        source=name,
        verdict="; ".join(f"{Path(report.source).name}: {report.verdict or 'none'}" for report in reports),
        num_rows=sum(report.num_rows for report in reports),
        rejected=tuple(row.in_file(Path(report.source).name) for report in reports for row in report.rejected),
        unused=dict(unused.most_common()),
        prompts_alone=sum(report.prompts_alone for report in reports),
        prompts=prompts,
    )
    return Rows.joined([records for records, _ in found]), joined


def _survey(place: Located, *, require_answer: bool, cache: Callable[[str], None] | None) -> tuple[Rows, ReadReport]:
    """Read the usable rows of a file or of a split on the hub."""
    if cache is not None and place.path is not None and (digest := _digest_of_large(place.path)):
        key = fingerprint(digest, file_format(place.path), require_answer, place.source.columns)
        stored = cached(
            "rows", key, lambda: _surveyed_unchanged(place, digest, require_answer), report=cache, poll=signals.poll
        )
    else:
        stored = _surveyed(place, require_answer)
    about = cast("_About", stored.about)
    table = Table(source=place.name, stem=place.stem, **stored.arrays)
    report = ReadReport(
        source=place.name,
        verdict=about["verdict"],
        num_rows=len(table.ends),
        rejected=tuple(RejectedRow(line=line, fault=fault, reason=reason) for line, fault, reason in about["rejected"]),
        unused=about["unused"],
        prompts_alone=about["prompts_alone"],
        prompts=about["prompts"],
    )
    return Rows.of(table), report


def _surveyed_unchanged(place: Located, digest: str, require_answer: bool) -> Stored:
    """Parse the rows of a file; return the arrays and JSON values to cache.

    A DataError is raised if the hash of the file after reading differs from `digest`.
    """
    found = _surveyed(place, require_answer)
    if place.path is not None and _digest_of_large(place.path) != digest:
        raise DataError(f"{place.name}: has changed while it was read; run the command again when the file is complete")
    return found


def _digest_of_large(path: Path) -> str | None:
    """Return the hash of a file if the file is large enough for the cache.

    None is returned for a smaller file, and for a file that cannot be read.
    """
    try:
        return files.digest(path) if path.stat().st_size >= CACHED_BYTES else None
    except OSError:
        return None


class _About(TypedDict):
    """The JSON values that the cache stores in addition to the rows of a file.

    Args:
        verdict: The field `verdict` of `ReadReport`.
        rejected: Line number, fault and reason of each unusable row.
        unused, prompts_alone, prompts: The fields of `ReadReport` with these names.
    """

    verdict: str
    rejected: list[tuple[int, Fault, str]]
    unused: dict[str, int]
    prompts_alone: int
    prompts: dict[str, int]


@collection_paused()
def _surveyed(place: Located, require_answer: bool) -> Stored:
    """Parse the rows of a source; return the arrays and JSON values to cache."""
    table, columns = TableBuilder(), place.source.columns or {}
    bad: list[Json] = []
    forms, prompts, unused = Counter[str](), Counter[str](), Counter[str]()
    prompts_alone, header = 0, dict[str, object]()
    rows = hub_rows(place) if place.path is None else file_rows(place.path, place.name)
    for line, text, value in rows:
        signals.poll()
        try:
            if isinstance(value, BadRow):
                raise value
            row_text, row = text, value
            if columns and isinstance(value, dict):
                row_text, row = None, renamed(value, columns)
            parsed = parse_row(row, require_answer=require_answer)
        except BadRow as error:
            bad.append([line, error.fault, str(error)])
            header = value if isinstance(value, dict) else header
            continue
        assert isinstance(row, dict), "parse_row"
        forms[parsed.form] += 1
        prompts[type(parsed.prompt).__name__] += 1
        prompts_alone += not parsed.references
        table.add(line, row_text or _as_json(row), parsed)
        if len(row) > len(parsed.used) or isinstance(parsed.prompt, Conversation):
            for name in unused_keys(row, parsed):
                unused[name if name in unused or len(unused) < MAX_NAMES else "others"] += 1
    _check_encoding(place, bad, sum(forms.values()))
    if not forms and place.path is not None and (file_format(place.path) or "").startswith(("csv", "tsv")):
        _check_header(place, bad, header)
    verdict = "; ".join(f"{form}, {_rows(count)}" for form, count in forms.most_common())
    about: dict[str, Json] = {
        "verdict": verdict,
        "rejected": bad,
        "unused": dict(unused.most_common()),
        "prompts_alone": prompts_alone,
        "prompts": dict(prompts),
    }
    return Stored(table.arrays(), about)


def _check_encoding(place: Located, bad: list[Json], num_good: int) -> None:
    """Raise DataError if most rows are not UTF-8, which is a fault of the whole file."""
    found = [cast("tuple[int, str, str]", row) for row in bad]
    faulty = [(line, reason) for line, fault, reason in found if fault == "not UTF-8"]
    if faulty and len(faulty) > num_good + len(found) - len(faulty):
        line, reason = faulty[0]
        raise DataError(f"{place.name}:{line}: {single_byte_fault(reason)}")


def _check_header(place: Located, bad: list[Json], header: Mapping[str, object]) -> None:
    """Raise DataError if the first line of a CSV file seems to be a row.

    This is the case if all rows have unknown keys, and no cell of the first line is a known column name.  `bad` contains the
    unusable rows, as in `_About`.  The keys of `header` are the cells of the first line.
    """
    is_unknown = all(fault == "unknown keys" for _, fault, _ in cast("list[tuple[int, str, str]]", bad))
    if header and is_unknown and "prompt: COLUMN" in mapping_hint(header):
        names = plain_line(", ".join(repr(name[:40]) for name in list(header)[:6]))
        raise DataError(
            f"{place.name}: its first line has no known column name ({names}); if it is a row, put a header such as "
            "prompt,completion before it; if it is a header, set data.columns"
        )


def _rows(count: int) -> str:
    return f"{count} {'row' if count == 1 else 'rows'}"


def _as_json(value: object) -> bytes:
    """Encode a row of a JSON array or hub data set as one line of JSON.

    Columns that JSON cannot represent are left out.
    """
    assert isinstance(value, dict), "parse_row"
    kept = {}
    for name, column in value.items():
        try:
            kept[name] = json.loads(json.dumps(column))
        except (TypeError, ValueError):
            continue
    return json.dumps(kept).encode()


def line_of(record: Record) -> int:
    """Return the line number of a record in its file, from 1.

    For a JSON array or hub data set, the result is the number of the row, from 1.
    """
    return int(record.record_id.rpartition(":")[2])


def _check_rows(report: ReadReport, max_bad_rows: int, rejected: Path | None, why_answer: str) -> None:
    """Raise DataError if a file has too many unusable rows, or no usable row.

    Args:
        report: The report on the file.
        max_bad_rows: Maximum number of unusable rows.
        rejected: The file that lists the unusable rows, for the message; None if there is no such file.
        why_answer: The reason why answers are required, for the message.
    """
    num_good, bad = report.num_rows, report.rejected
    if not num_good and not bad:
        raise DataError(f"{report.source}: is empty; it must have at least one row")
    if len(bad) > max_bad_rows or not num_good:
        found = f"{len(bad)} of {num_good + len(bad)} rows are unusable" + (f" ({rejected} lists them)" if rejected else "")
        allowed = f"at most {max_bad_rows} are allowed; fix or remove them, or raise max_bad_rows"
        outcome = allowed if num_good else "no usable row remains; fix the rows"
        why = f"; {why_answer}" if why_answer and bad[0].fault == "no answer" else ""
        raise DataError(f"{report.source}:{bad[0].line}: {bad[0].reason}{why}; {found}, {outcome}")
