"""A fault of a whole file is one error with a remedy, and no fault of single rows is taken for it."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from redistill.data.reader import read_records
from redistill.data.sources import Source
from redistill.errors import DataError

ROWS = [{"instruction": f"Name the colour {k} of the café, ça va?", "output": f"Röd, {k} été."} for k in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)
CSV = "prompt,completion\n" + "".join(f"question {k},réponse {k}\n" for k in range(30))


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", LINES.encode("utf-16"), "is encoded in UTF-16; convert it to UTF-8"),
        ("a.jsonl", LINES.encode("utf-16-le"), "is encoded in UTF-16LE without a byte order mark"),
        ("a.jsonl", LINES.encode("utf-16-be"), "is encoded in UTF-16BE without a byte order mark"),
        ("a.jsonl", LINES.encode("utf-32"), "is encoded in UTF-32"),
        ("a.csv", CSV.encode("utf-16"), "is encoded in UTF-16"),
        ("a.jsonl", LINES.encode("cp1252"), "may be Windows-1252 or Latin-1"),
        ("a.csv", CSV.encode("cp1252"), "may be Windows-1252 or Latin-1"),
        ("a.json", json.dumps(ROWS, ensure_ascii=False).encode("cp1252"), "is not a complete JSON array"),
        ("a.jsonl", PRETTY.encode(), "its JSON objects span several lines"),
        ("a.jsonl", json.dumps(ROWS[0], indent=2).encode(), "its JSON objects span several lines"),
        ("a.json", PRETTY.encode(), "its JSON objects span several lines"),
        ("a.jsonl", json.dumps({"instruction": "x" * 70_000, "output": "y"}, indent=2).encode(), "span several lines"),
        ("a.json", json.dumps({"version": 1, "data": ROWS}).encode(), "its rows are a list under 'data'"),
        ("a.json", json.dumps({"data": ROWS}, indent=1).encode(), "its rows are a list under 'data'"),
        ("a.json", json.dumps({"data": ROWS * 300}, indent=1).encode(), "span several lines|a list under 'data'"),
        ("a.jsonl", LINES.replace("\n", ",\n").encode(), "has a comma after its rows"),
        ("a.jsonl", LINES.replace("\n", "\r").encode(), "has lines that end with CR only"),
        ("a.csv", CSV.replace("\n", "\r").encode(), "has lines that end with CR only"),
        ("a.jsonl", zipped(), "is a zip archive"),
        ("a.csv", zipped(), "is a zip archive"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "is compressed with gzip; give it a name that ends in .gz"),
        ("a.jsonl", b"PAR1" + bytes(60), "is a Parquet file"),
        ("a.jsonl", bytes(range(256)) * 4 + bytes(800), "is a binary file"),
        ("a.json", b'{"prompt": ["1", "2"], "completion": ["3", "4"]}', "a list for each column; write a JSON array"),
        ("a.jsonl.gz", LINES.encode(), "is not compressed with gzip; remove .gz from its name"),
        ("a.jsonl.gz", gzip.compress(LINES.encode("utf-16"), mtime=0), "is encoded in UTF-16"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "is a pointer of git-lfs"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "is a pointer of git-lfs"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page or XML"),
        ("a.parquet", b"<html>404</html>", "is a web page or XML"),
        ("a.parquet", LINES.encode(), "is not a complete Parquet file"),
        ("a.arrow", b"", "is not a complete Arrow file"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt,completion\n", "is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.jsonl.gz", b"", "is empty|not a complete gzip file"),
    ],
)
def test_a_fault_of_the_whole_file_is_one_error(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        read_records(path, max_bad_rows=10**6)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "first",
    [
        b"{nope",
        b'{"instruction": "a",\n"output": "b"}',
        b'{"instruction": "caf\xe9", "output": "b"}',
        b'{"instruction": "a\x00", "output": "b"}',
        b'{"instruction": "a", "output": "b"},',
        b"{",
        b"PK",
        b'{"dialog": [{"a": 1}]}',
    ],
)
def test_a_fault_of_one_row_sets_only_this_row_aside(tmp_path: Path, first: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(first + b"\n" + LINES.encode())
    records, report = read_records(path, max_bad_rows=3)
    assert len(records) == len(ROWS) and 1 <= len(report.rejected) <= 2


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("columns", [None, {"prompt": "question"}])
def test_a_csv_file_without_a_header_is_one_error(tmp_path: Path, name: str, columns: dict[str, str] | None) -> None:
    separator = "\t" if name == "a.tsv" else ","
    data = "".join(f"Name the colour {k}.{separator}Red {k}.\n" for k in range(9)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    with pytest.raises(DataError) as caught:
        read_records(Source(path=str(path), columns=columns), max_bad_rows=10**6)
    names = "'Name the colour 0.', 'Red 0.'"
    assert str(caught.value).startswith(f"{path}: its first line has no known column name ({names}); if it is a row, put")


def test_a_csv_file_whose_columns_can_be_mapped_suggests_the_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n2 + 2?,4\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"set data.columns: {prompt: question, completion: answer}"):
        read_records(tmp_path / "a.csv")
