"""Reading of records from a file, a folder or a data set of the Hugging Face hub.

Unusable rows are rejected with their line number and the reason.  The module uses no template and no tokenizer.  Text is kept
verbatim: "<n>", which stands for a line break in some published files, remains three characters.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict, cast

from redistill.data.bad_rows import BadRow, Fault
from redistill.data.fingerprint import CACHED_BYTES, fingerprint
from redistill.data.forms import parse_row
from redistill.data.rejected import RejectedRow, list_rejected
from redistill.data.rows import Rows, Table, TableBuilder, collection_paused
from redistill.errors import DataError, first_line
from redistill.processes import signals
from redistill.records import Json, Record
from redistill.storage import files
from redistill.storage.cache import Stored, cached
from redistill.storage.hub import HUB_NAME, is_local, unreachable
from redistill.storage.json_text import JsonError, parse_json, parse_json_at
from redistill.storage.paths import unusable
from redistill.storage.redaction import plain_line

_BOM = b"\xef\xbb\xbf"
_SUFFIXES = (".jsonl", ".json")
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class ReadReport:
    """The result of reading a source.

    Args:
        source: The file or hub data set.
        verdict: The number of usable rows of each form, such as "instruction/input/output, 899 rows".
        num_rows: Number of usable rows.
        rejected: The unusable rows.
        prompts: Number of usable rows by the type of their prompt, such as {"Conversation": 20}.
    """

    source: str
    verdict: str
    num_rows: int
    rejected: tuple[RejectedRow, ...]
    prompts: Mapping[str, int] = field(default_factory=dict)


def read_records(
    source: str | Path,
    *,
    split: str = "train",
    hub_file: str | None = None,
    max_bad_rows: int = 0,
    require_answer: bool = True,
    rejected: Path | None = None,
    cache: Callable[[str], None] | None = None,
) -> tuple[Rows, ReadReport]:
    """Read the usable rows of a data set.

    Each row is a JSON object, whose keys determine its form:

    - `instruction`, `input` (optional), `output`; the keys `context` and `response` of Databricks' data are read as `input` and
      `output`;
    - `prompt`, `completion` (or `response`, `output`): a string prompt is used verbatim, a list is read as messages;
    - `messages` of `role` and `content`, or ShareGPT's `conversations` of `from` and `value`; the last message is the answer.

    An answer is a string, or a list of equally correct strings.  A byte order mark, CRLF line ends, blank lines, and a single
    JSON array instead of lines are accepted.

    Args:
        source: A .jsonl or .json file, a folder with `<split>.jsonl` or `<split>.json`, or a hub name `owner/name`.  A source
            that looks like a path is never requested from the hub.
        split: The split of a folder or of a hub data set.
        hub_file: A file of the hub repository to read instead of a split.
        max_bad_rows: Maximum number of unusable rows, >= 0.
        require_answer: Whether a row without an answer is unusable; if False, its record has no references (correct answers).
        rejected: A JSON Lines file to write the unusable rows to; rows of other sources in this file are kept.  If None, no
            file is written.
        cache: Receives one-line warnings about the cache, for example that it cannot be written.  Passing it enables the cache:
            the rows of a large file are stored for later runs.  None disables the cache.

    Returns:
        The records in the order of the source, and the report.  Records are created on access; their `record_id` is "<file
        stem>:<line>".

    Raises:
        DataError: the source does not exist, cannot be read, has no usable row, or has more than `max_bad_rows` unusable rows.
    """
    assert max_bad_rows >= 0, max_bad_rows
    records, report = survey_records(source, split=split, hub_file=hub_file, require_answer=require_answer, cache=cache)
    if rejected is not None:
        list_rejected(rejected, report.source, report.rejected)
    _check_rows(report, max_bad_rows, rejected)
    return records, report


def survey_records(
    source: str | Path,
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
    opened = _open(source, split, hub_file)
    if cache is not None and opened.path is not None and (digest := _digest_of_large(opened.path)):
        key = fingerprint(digest, opened.path.suffix, require_answer)
        stored = cached(
            "rows", key, lambda: _surveyed_unchanged(opened, digest, require_answer), report=cache, poll=signals.poll
        )
    else:
        stored = _surveyed(opened, require_answer)
    about = cast("_About", stored.about)
    table = Table(source=opened.name, stem=opened.stem, **stored.arrays)
    bad = tuple(RejectedRow(line=line, fault=fault, reason=reason) for line, fault, reason in about["rejected"])
    return Rows.of(table), ReadReport(opened.name, about["verdict"], len(table.ends), bad, about["prompts"])


def _surveyed_unchanged(opened: "_Opened", digest: str, require_answer: bool) -> Stored:
    """Parse the rows of a file; return the arrays and JSON values to cache.

    A DataError is raised if the file has changed: its hash must equal `digest` after it was read.
    """
    found = _surveyed(opened, require_answer)
    if opened.path is not None and _digest_of_large(opened.path) != digest:
        raise DataError(f"{opened.name}: has changed while it was read; run the command again when it is complete")
    return found


def _digest_of_large(path: Path) -> str | None:
    """Return the hash of a file if the file is large enough for the cache.

    None is returned for a smaller file, and for a file whose hash cannot be computed.  In the second case the error is reported
    later, when the file is read.
    """
    try:
        return files.digest(path) if path.stat().st_size >= CACHED_BYTES else None
    except OSError:
        return None


class _About(TypedDict):
    """Fields of `ReadReport` that the cache stores beside the rows; a rejected row is its line number, fault and reason."""

    prompts: dict[str, int]
    verdict: str
    rejected: list[tuple[int, Fault, str]]


@collection_paused()
def _surveyed(opened: "_Opened", require_answer: bool) -> Stored:
    """Parse the rows of a source; return the arrays and JSON values to cache."""
    table = TableBuilder()
    bad: list[Json] = []
    forms, prompts = Counter[str](), Counter[str]()
    for line, text, value in opened.values:
        signals.poll()
        try:
            if isinstance(value, BadRow):
                raise value
            row = parse_row(value, require_answer=require_answer)
        except BadRow as error:
            bad.append([line, error.fault, str(error)])
        else:
            forms[row.form] += 1
            prompts[type(row.prompt).__name__] += 1
            table.add(line, text or _as_json(value), row)
    verdict = "; ".join(f"{form}, {count} {'row' if count == 1 else 'rows'}" for form, count in forms.most_common())
    return Stored(table.arrays(), {"verdict": verdict, "rejected": bad, "prompts": dict(prompts)})


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

    For a JSON array or hub data set, the result is the position of the record, from 1.
    """
    return int(record.record_id.rpartition(":")[2])


def _check_rows(report: ReadReport, max_bad_rows: int, rejected: Path | None) -> None:
    """Raise DataError if a data set has no usable row, or more than `max_bad_rows` unusable rows.

    `rejected` is the file that lists the unusable rows, for the message; None if there is no such file.
    """
    num_good, bad = report.num_rows, report.rejected
    if not num_good and not bad:
        raise DataError(f"{report.source}: is empty; it must have one JSON object per line")
    if len(bad) > max_bad_rows or not num_good:
        found = f"{len(bad)} of {num_good + len(bad)} rows are unusable" + (f" ({rejected} lists them)" if rejected else "")
        allowed = f"at most {max_bad_rows} are allowed; fix or remove them, or raise max_bad_rows"
        outcome = allowed if num_good else "no row remains; fix them"
        raise DataError(f"{report.source}:{bad[0].line}: {bad[0].reason}; {found}, {outcome}")


# --- where the rows are -------------------------------------------------------------------------------------------------


class _Opened(NamedTuple):
    """A source whose rows can be read.

    Args:
        name: Name of the source in messages.
        stem: The first part of record ids.
        path: The file of the source; None for a split of a hub data set.
        values: Yields a tuple for each row: its line number or position from 1, its bytes, and its value.  The bytes are None
            if the row is not a line of JSON.  The value is a `BadRow` if the line cannot be decoded.
    """

    name: str
    stem: str
    path: Path | None
    values: Iterator[tuple[int, bytes | None, object]]


def _open(source: str | Path, split: str, hub_file: str | None) -> _Opened:
    if (fault := unusable(str(source))) is not None:
        raise DataError(f"{plain_line(str(source))[:100]}: {fault}")
    path = Path(source).expanduser()
    if path.is_dir():
        path = _file_of_split(path, split)
    if path.exists():
        return _opened_file(path, str(path), path.stem)
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source) or path.suffix in _SUFFIXES or is_local(source):
        raise DataError(f"{source}: no such file or folder; give a .jsonl or .json file, a folder, or a hub name 'owner/name'")
    if hub_file is not None:
        return _opened_file(_download(source, hub_file), f"{source}/{hub_file}", path.name)
    return _Opened(source, path.name, None, _values_of_hub(source, split))


def _opened_file(path: Path, name: str, stem: str) -> _Opened:
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{name}: is not a .jsonl or .json file; convert it to one JSON object per line")
    return _Opened(name, stem, path, _values_of_file(path, name))


def _file_of_split(folder: Path, split: str) -> Path:
    for suffix in _SUFFIXES:
        if (folder / f"{split}{suffix}").is_file():
            return folder / f"{split}{suffix}"
    found = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)) or "no such file"
    raise DataError(f"{folder}: has no {split}.jsonl or {split}.json (found: {found}); name the file itself or another split")


def _values_of_hub(name: str, split: str) -> Iterator[tuple[int, None, object]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    unreachable()  # before the look-up, which would be repeated for minutes
    try:
        rows = load_dataset(name, split=split)
    except (DatasetsError, OSError, RuntimeError, ValueError) as error:
        raise hub_failed(f"{name}, split {split}", error) from error
    yield from ((number, None, row) for number, row in enumerate(rows, 1))


def _download(name: str, hub_file: str) -> Path:
    """Download one file of a hub data set.

    `datasets.load_dataset` is not used, because it infers one format for the whole repository, and fails on a bad row.
    """
    from huggingface_hub import hf_hub_download

    unreachable()
    try:
        return Path(hf_hub_download(name, hub_file, repo_type="dataset"))
    except (OSError, RuntimeError, ValueError) as error:
        raise hub_failed(f"{name}, file {hub_file}", error) from error


def hub_failed(what: str, error: Exception, instead: str = ".jsonl") -> DataError:
    """Return an error for data that cannot be read from the hub.

    Args:
        what: The data set, with its split or file.
        error: The exception that the library raised.
        instead: Suffixes of the local files that the message suggests as a replacement.
    """
    reason = unreachable() or first_line(error)
    return DataError(f"{what}: cannot be read from the hub ({reason}); check name and network, or give a local {instead} file")


# --- from bytes to values -----------------------------------------------------------------------------------------------


def _values_of_file(path: Path, name: str) -> Iterator[tuple[int, bytes | None, object]]:
    try:
        with path.open("rb") as file:
            is_array = _is_array(file)
            values = _array(file, path, name) if is_array else None
            if values is not None:
                yield from ((number, None, value) for number, value in enumerate(values, 1))
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                text = line.removeprefix(_BOM) if number == 1 else line
                if text.strip():
                    yield number, text, _value_of_line(text.removesuffix(b"\n"))
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _is_array(file: BinaryIO) -> bool:
    """Return whether a file begins with a JSON array, after a byte order mark and white space."""
    start = file.read(len(_BOM))
    rest = start.removeprefix(_BOM).lstrip()
    while not rest and (block := file.read(4096)):
        rest = block.lstrip()
    return rest[:1] == b"["


def _array(file: BinaryIO, path: Path, name: str) -> Iterable[object] | None:
    """Return the values of a file that is a JSON array.

    None is returned if a .jsonl file begins with a bracket but is not a JSON array.  The caller then reads the file by lines.
    """
    file.seek(0)
    try:
        text = file.read().removeprefix(_BOM).decode("utf-8")
        if path.suffix == ".json":
            return _items(text, name)
        values = cast("list[object]", parse_json(text, any_number=True))
    except ValueError as error:
        if path.suffix != ".json":  # in a .jsonl file, the errors of its lines are more specific
            return None
        raise _no_array(name, error) from error
    return values


def _items(text: str, name: str) -> Iterator[object]:
    """Yield the values of a JSON array, which are decoded one at a time.

    A decoded value takes many times the memory of its text, so the values are not kept in memory.
    """
    try:
        end = _after_space(text, 0) + 1
        separator = "" if text[_after_space(text, end)] == "]" else ","
        while separator == ",":
            value, end = parse_json_at(text, _after_space(text, end))
            yield value
            end = _after_space(text, end)
            separator, end = text[end], end + 1
        if separator not in ("", "]") or (separator and text[end:].strip()):
            raise ValueError
    except (ValueError, IndexError):
        try:
            parse_json(text, any_number=True)  # raises the error whose message is reported
        except JsonError as error:
            raise _no_array(name, error) from error
        raise


def _after_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()


def _no_array(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: is not a complete JSON array ({error}); fix it, or write one JSON object per line (.jsonl)")


def _value_of_line(line: bytes) -> object:
    """Return the JSON value of a line, or a `BadRow` if the line cannot be decoded."""
    if line.startswith(_BOM):
        return BadRow("byte order mark", "begins with a byte order mark, as in concatenated files; remove it")
    try:
        return parse_json(line.decode("utf-8"), any_number=True)
    except UnicodeDecodeError as error:
        return BadRow("not UTF-8", f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1})")
    except JsonError as error:
        return BadRow("not JSON", f"not JSON ({error})")
