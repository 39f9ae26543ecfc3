"""Faults of a whole file, which are reported once and not for every row.

Such a fault is found in the first bytes of a file. Examples are another format, another encoding, other line ends, and rows
that span several lines.
"""

import re
from collections.abc import Mapping
from typing import cast

from redistill.data.columns import COLUMNS
from redistill.storage.json_text import JsonError, parse_json, parse_json_at

HEAD_BYTES = 65_536
"""Number of bytes at the start of a file that are searched for faults of the whole file."""

_LFS = b"version https://git-lfs.github.com/spec/"
_KNOWN = {
    b"PK\x03\x04": "is a zip archive or an Excel file; extract it, or export it as .csv",
    b"\x1f\x8b": "is compressed with gzip; give it a name that ends in .gz, such as rows.jsonl.gz",
    b"BZh": "is compressed with bzip2; decompress it",
    b"\xfd7zXZ\x00": "is compressed with xz; decompress it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; decompress it",
    b"PAR1": "is a Parquet file; give it a name that ends in .parquet",
    b"ARROW1": "is an Arrow file; give it a name that ends in .arrow",
    b"SQLite format 3": "is an SQLite database; export its rows as .csv",
    b"%PDF": "is a PDF file; give a file of rows, such as .jsonl",
}
_OWN = {"gz": b"\x1f\x8b", "parquet": b"PAR1", "arrow": b"ARROW1"}
_UTF8 = "convert it to UTF-8, for example with iconv -f {} -t UTF-8 OLD > NEW"
_WRAPPED = re.compile(r'\{\s*"([^"\\]{1,60})"\s*:\s*\[\s*\{')


def fault_of_file(head: bytes, kind: str) -> str | None:
    """Return the fault of a whole file with its remedy, or None.

    Args:
        head: The first bytes of the file; the whole file if it is not longer than `HEAD_BYTES`.
        kind: The format that `head` should have: an ending such as "jsonl", or "gz" for compressed bytes. Decompressed bytes of
            a .gz file have the ending before ".gz".

    Example:
        >>> fault_of_file(b"PK" + bytes([3, 4]) + b"...", "jsonl")
        'is a zip archive or an Excel file; extract it, or export it as .csv'
    """
    if head.startswith(_LFS):
        return "is a pointer of git-lfs, not the data; run git lfs pull in its repository, or download the file itself"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if re.match(rb"<(!doctype|html|\?xml)", start[:20], re.IGNORECASE):
        return "is a web page or XML, perhaps an error page of a download; download the file itself"
    if kind in _OWN:
        return None  # its own reader finds other faults
    for magic, known in _KNOWN.items():
        if head.startswith(magic):
            return known
    if (fault := _encoding(head, start)) is not None:
        return fault
    if b"\n" not in head and _has_cr_lines(start, kind):
        return "has lines that end with CR only, as in old Mac files; convert them, for example with tr '\\r' '\\n' < OLD > NEW"
    return _json_layout(start, len(head) < HEAD_BYTES, kind) if kind in ("jsonl", "json") and start.startswith(b"{") else None


def single_byte_fault(first: str) -> str:
    """Return the fault of a file in a single-byte encoding.

    `first` is the reason why the first faulty row is rejected, such as "not UTF-8 (byte 0xe9 at position 3)".
    """
    return f"is {first}, like most rows; the file may be Windows-1252 or Latin-1: {_UTF8.format('WINDOWS-1252')}"


def _encoding(head: bytes, start: bytes) -> str | None:
    """Return the fault of a file in UTF-16 or UTF-32, or of a binary file."""
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")) or start.startswith((b"{\0\0\0", b"\0\0\0{", b"[\0\0\0")):
        return f"is encoded in UTF-32; {_UTF8.format('UTF-32')}"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return f"is encoded in UTF-16; {_UTF8.format('UTF-16')}"
    zeros = [head[parity::2].count(0) for parity in (0, 1)]
    if sum(zeros) * 20 <= len(head):
        return None
    if max(zeros) > 10 * min(zeros):
        name = "UTF-16BE" if zeros[0] > zeros[1] else "UTF-16LE"
        return f"is encoded in {name} without a byte order mark; {_UTF8.format(name)}"
    return "is a binary file; give a file of rows, such as .jsonl or .csv"


def _has_cr_lines(start: bytes, kind: str) -> bool:
    lines = [line.strip() for line in start.split(b"\r") if line.strip()]
    if len(lines) < 2:
        return False
    return kind in ("csv", "tsv") or (lines[0].startswith(b"{") and lines[0].endswith(b"}"))


def _json_layout(start: bytes, is_whole: bool, kind: str) -> str | None:
    """Return the fault of a file whose JSON objects are not one per line.

    The objects may span several lines, be wrapped in one object, or be followed by commas.
    """
    text = start.decode("utf-8", "replace")
    first, _, rest = text.partition("\n")
    if first.rstrip().endswith(",") and _is_object(first.rstrip()[:-1]):
        second, _, others = rest.lstrip().partition("\n")
        is_last = not others.strip() and is_whole
        if (is_last and not second.strip()) or (
            _is_object(second.rstrip(", \r")) and (is_last or second.rstrip().endswith(","))
        ):
            return "has a comma after its rows, as in a JSON array; remove the commas, or put the rows into [ ] in a .json file"
        return None
    try:
        value, end = parse_json_at(text, 0)
    except JsonError:
        if is_whole or first.strip() != "{":
            return None
        return _wrapped(text, None) or _PRETTY
    remainder = text[end:].strip()
    if is_whole and not remainder and (kind == "json" or "\n" in text[:end]) and (fault := _wrapped(text, value)) is not None:
        return fault
    spans_lines = "\n" in text[:end].strip() and not _is_object(remainder.partition("\n")[0].strip())
    return _PRETTY if spans_lines else None


_PRETTY = (
    "its JSON objects span several lines; write one object per line, for example with jq -c . OLD > NEW, or a JSON array in a "
    ".json file"
)


def _wrapped(text: str, value: object) -> str | None:
    """Return the fault of a file that is a single JSON object with all rows in it.

    The rows are a list under one key of the object, or each column is a list. The result is None for any other file.
    """
    if value is None:
        match = _WRAPPED.match(text)
        key = None if match is None else match[1]
    else:
        lists = cast("dict[str, object]", value).items()
        if _is_table(dict(lists)):
            return "is one JSON object with a list for each column; write a JSON array with one object per row"
        key = next((name for name, rows in lists if isinstance(rows, list) and rows and _is_row(rows[0])), None)
    if key is None or key in COLUMNS:
        return None
    return f"is one JSON object, and its rows are a list under {key[:60]!r}; write the list alone, as a JSON array"


def _is_table(columns: Mapping[str, object]) -> bool:
    """Return whether an object has at least two columns of equal length.

    A column is a list of texts.
    """
    lists = [value for value in columns.values() if isinstance(value, list) and value]
    lengths = [len(texts) for texts in lists if all(isinstance(text, str) for text in texts)]
    return len(lengths) > 1 and len(set(lengths)) == 1


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and not {"role", "from"} & value.keys()


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line, any_number=True), dict)
    except JsonError:
        return False
