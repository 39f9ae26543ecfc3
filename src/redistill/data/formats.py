"""Reading of the rows of a file: JSON lines, a JSON array, CSV, Parquet and Arrow.

Rows are yielded one at a time, so that the memory does not depend on the size of the file. Only a JSON array is read into
memory as a whole. An error of a library becomes a `DataError`, or a `BadRow` if it concerns only one row. Values of CSV files
are always text and are never converted to numbers.
"""

import contextlib
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from redistill.data.bad_rows import BadRow
from redistill.data.forms import MAX_ROW_BYTES
from redistill.data.whole_file import HEAD_BYTES, fault_of_file
from redistill.errors import DataError, first_line
from redistill.storage.json_text import JsonError, parse_json, parse_json_at
from redistill.storage.redaction import plain_line

if TYPE_CHECKING:
    import pyarrow

FORMATS = ("jsonl", "json", "csv", "tsv", "jsonl.gz", "json.gz", "csv.gz", "tsv.gz", "parquet", "arrow")
"""The endings of files that can be read."""

MAX_LINE_BYTES = 64 * MAX_ROW_BYTES
"""Maximum length of a line in a compressed file, in bytes; a longer line may not fit into memory, even if the file is small."""

MAX_ARRAY_BYTES = 4_000_000_000
"""Maximum length of a compressed JSON array, in bytes after decompression."""

ROWS_AT_ONCE = 1024
"""Number of rows of a Parquet or Arrow file that are converted to Python objects at once."""

BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")

FileRow = tuple[int, bytes | None, object]
"""A row of a file: its line number (or position) from 1, its bytes, and its value.

The bytes are None if the row is not a line of JSON.  The value is a `BadRow` if the row cannot be decoded.
"""


def file_format(path: Path) -> str | None:
    """Return the ending of a file, if it is one of `FORMATS`, otherwise None.

    Endings are compared without case.

    Example:
        >>> file_format(Path("A.JSONL")), file_format(Path("a.csv.gz")), file_format(Path("a.txt"))
        ('jsonl', 'csv.gz', None)
    """
    name = path.name.lower()
    return next((ending for ending in FORMATS if name.endswith(f".{ending}")), None)


def file_rows(path: Path, name: str) -> Iterator[FileRow]:
    """Yield the rows of a file; blank lines are skipped.

    Args:
        path: The file.
        name: Name of the file in messages.

    Raises:
        DataError: the file cannot be read; or the whole file has a fault, such as another format, another encoding or a
            truncated archive.
    """
    ending = file_format(path) or "jsonl"
    kind = ending.removesuffix(".gz")
    with _errors_of_files(name, ending):
        with path.open("rb") as file:
            if (fault := fault_of_file(file.read(HEAD_BYTES), "gz" if ending != kind else kind)) is not None:
                raise DataError(f"{name}: {fault}")
        if kind in ("parquet", "arrow"):
            yield from _table_rows(path, name, kind)
            return
        with _opened(path, ending) as file:
            if ending != kind and (fault := fault_of_file(file.read(HEAD_BYTES), kind)) is not None:
                raise DataError(f"{name}: {fault}")
            file.seek(0)
            if kind in ("csv", "tsv"):
                yield from _csv_rows(_lines(file, ending, name), name)
            else:
                yield from _json_rows(file, ending, name)


def _opened(path: Path, ending: str) -> BinaryIO:
    if ending.endswith(".gz"):
        return cast("BinaryIO", io.BufferedReader(gzip.open(path, "rb")))
    return path.open("rb")


@contextlib.contextmanager
def _errors_of_files(name: str, ending: str) -> Iterator[None]:
    """Convert errors of the operating system and of gzip to a DataError."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if ending.endswith(".gz") and first_line(error).startswith("Not a gzipped file"):
            raise DataError(f"{name}: is not compressed with gzip; remove .gz from its name") from error
        remedy = "copy or download the file again" + ("" if ending.endswith(".gz") else ", or correct its ending")
        raise DataError(f"{name}: is not a complete gzip file ({first_line(error)}); {remedy}") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise DataError(f"{name}: cannot be read ({reason}); check the path and its permissions") from error


def _lines(file: BinaryIO, ending: str, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line, with its line end.

    Raises:
        DataError: a line of a compressed file is longer than `MAX_LINE_BYTES`.
    """
    if not ending.endswith(".gz"):
        yield from enumerate(file, 1)
        return
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), 1):
        if len(line) == MAX_LINE_BYTES:
            raise DataError(f"{name}:{number}: the line has more than {MAX_LINE_BYTES} bytes; write one row per line")
        yield number, line


# --- JSON ---------------------------------------------------------------------------------------------------------------


def _json_rows(file: BinaryIO, ending: str, name: str) -> Iterator[FileRow]:
    values = _array(file, ending, name) if _is_array(file) else None
    if values is not None:
        yield from ((number, None, value) for number, value in enumerate(values, 1))
        return
    file.seek(0)
    for number, line in _lines(file, ending, name):
        text = line.removeprefix(BOM) if number == 1 else line
        if text.strip():
            yield number, text, _value_of_line(text.removesuffix(b"\n"))


def _is_array(file: BinaryIO) -> bool:
    """Return whether a file begins with a JSON array.

    A byte order mark and white space before the array are ignored.
    """
    start = file.read(len(BOM))
    rest = start.removeprefix(BOM).lstrip()
    while not rest and (block := file.read(4096)):
        rest = block.lstrip()
    return rest[:1] == b"["


def _array(file: BinaryIO, ending: str, name: str) -> Iterable[object] | None:
    """Return the values of a file that is a JSON array.

    None is returned for a .jsonl file that begins with a bracket but is not a JSON array. The caller then reads the file line
    by line.
    """
    file.seek(0)
    is_json = ending.startswith("json") and not ending.startswith("jsonl")
    try:
        data = file.read(MAX_ARRAY_BYTES if ending.endswith(".gz") else -1)
        if ending.endswith(".gz") and len(data) == MAX_ARRAY_BYTES:
            raise DataError(
                f"{name}: has more than {MAX_ARRAY_BYTES} bytes of JSON; write one JSON object per line (.jsonl.gz)"
            )
        text = data.removeprefix(BOM).decode("utf-8")
        if is_json:
            return _items(text, name)
        parse_json(text, any_number=True, unique_keys=False)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        if not is_json:  # in a .jsonl file, the errors of its lines are more specific
            return None
        raise _no_array(name, error) from error
    return _items(text, name)


def _items(text: str, name: str) -> Iterator[object]:
    """Yield the values of a JSON array, which are decoded one at a time.

    A decoded value takes many times the memory of its text, so the values are not kept in memory.
    """
    try:
        end = _after_space(text, 0) + 1
        separator = "" if text[_after_space(text, end)] == "]" else ","
        while separator == ",":
            value, end = _item(text, _after_space(text, end))
            yield value
            end = _after_space(text, end)
            separator, end = text[end], end + 1
        if separator not in ("", "]") or (separator and text[end:].strip()):
            raise ValueError
    except (ValueError, IndexError):
        try:
            parse_json(text, any_number=True, unique_keys=False)  # raises the error whose message is reported
        except JsonError as error:
            raise _no_array(name, error) from error
        raise


def _item(text: str, start: int) -> tuple[object, int]:
    """Decode the value of a JSON array that begins at index `start`.

    The second result is the index after the value.  If an object has duplicate keys, the first result is a `BadRow`.
    """
    try:
        return parse_json_at(text, start)
    except JsonError as error:
        _, end = parse_json_at(text, start, unique_keys=False)  # raises any other error again
        return BadRow("not JSON", f"not JSON ({error})"), end


def _after_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()


def _no_array(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: is not a complete JSON array ({error}); fix it, or write one JSON object per line (.jsonl)")


def _value_of_line(line: bytes) -> object:
    """Return the JSON value of a line, or a `BadRow` if the line cannot be decoded."""
    if line.startswith(BOM):
        return BadRow("byte order mark", "begins with a byte order mark, as in concatenated files; remove it")
    try:
        return parse_json(line.decode("utf-8"), any_number=True)
    except UnicodeDecodeError as error:
        return _not_utf8(error)
    except JsonError as error:
        return BadRow("not JSON", f"not JSON ({error})")


def _not_utf8(error: UnicodeDecodeError) -> BadRow:
    return BadRow("not UTF-8", f"not UTF-8 (byte 0x{error.object[error.start]:02x} at position {error.start + 1})")


# --- CSV ----------------------------------------------------------------------------------------------------------------


class _TextLines(Iterator[str]):
    """Decodes the lines of a CSV file.

    The attribute `fault` is set if a line of the current row is not UTF-8.
    """

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self._lines = lines
        self.number = 0
        self.fault: BadRow | None = None

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        try:
            return line.removeprefix(BOM).decode("utf-8") if self.number == 1 else line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.fault = _not_utf8(error)
            return line.decode("utf-8", "replace")


def _csv_rows(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[FileRow]:
    """Yield the rows of a CSV file as mappings from column to text.

    The first line has the names of the columns.  The separator is the comma, semicolon or tab, whichever is most frequent in
    this line.
    """
    if csv.field_size_limit() < MAX_ROW_BYTES:
        csv.field_size_limit(MAX_ROW_BYTES)  # characters; a longer text is too large for a row
    texts = _TextLines(lines)
    first = next((text for text in texts if text.strip()), "")
    separator = max(",;\t", key=first.count)
    try:
        header = next(csv.reader([first], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise _no_header(name, first_line(error)) from error
    header = [column.strip() for column in header]
    if len(set(header)) < len(header):
        raise _no_header(name, "two columns have the same name")
    if texts.fault is not None:
        raise _no_header(name, str(texts.fault))
    rows = csv.reader(texts, delimiter=separator, strict=True)
    while True:
        start = texts.number + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, None, BadRow("not CSV", f"not CSV ({first_line(error)[:100]}); put quotes around each text")
        else:
            if any(cell.strip() for cell in cells):
                yield start, None, texts.fault or _cells(cells, header)
        texts.fault = None


def _cells(cells: list[str], header: list[str]) -> object:
    if len(cells) != len(header):
        return BadRow("not CSV", f"has {len(cells)} cells, but the header has {len(header)}; put quotes around each text")
    return dict(zip(header, cells))


def _no_header(name: str, reason: str) -> DataError:
    return DataError(f"{name}: has no valid header ({reason}); the first line must have the names of the columns, in UTF-8")


# --- Parquet and Arrow --------------------------------------------------------------------------------------------------


def _table_rows(path: Path, name: str, kind: str) -> Iterator[FileRow]:
    """Yield the rows of a Parquet or Arrow file as dicts.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa

    number = 0
    batches = _parquet_batches(path) if kind == "parquet" else _arrow_batches(path)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            batch.validate(full=True)  # a damaged file may have offsets outside of its texts
            rows = [
                row for start in range(0, batch.num_rows, ROWS_AT_ONCE) for row in batch.slice(start, ROWS_AT_ONCE).to_pylist()
            ]
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            what = {"parquet": "Parquet", "arrow": "Arrow"}[kind]
            reason = plain_line(first_line(error))[:150]  # it may quote bytes of the file
            raise DataError(
                f"{name}: is not a complete {what} file (after row {number}: {reason}); copy or download it again"
            ) from error
        for row in rows:
            number += 1
            yield number, None, row


def _parquet_batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow.parquet as pq

    with path.open("rb") as file, pq.ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=ROWS_AT_ONCE)


def _arrow_batches(path: Path) -> Iterator["pyarrow.RecordBatch"]:
    """Yield the batches of an Arrow file or of an Arrow stream.

    `Dataset.save_to_disk` writes Arrow streams.
    """
    import pyarrow as pa

    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            with pa.ipc.open_file(file) as reader:
                yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            with pa.ipc.open_stream(file) as stream:
                yield from stream
