"""Files of every format are read as the same rows; folders, hub names and their parts are found; other names are refused."""

import csv
import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redistill.data import sources
from redistill.data.formats import MAX_LINE_BYTES
from redistill.data.reader import read_records, single_sources
from redistill.data.sources import Source
from redistill.errors import ConfigError, DataError

ROWS = [
    {"instruction": f"Add {k}, please.", "input": "" if k % 2 else f'"{k}"; {k},\n{k}', "output": f"{k + 1} — é 数"}
    for k in range(5)
]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write rows in the format of the ending of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lower()
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "arrow":
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_stream if "stream" in name else pa.ipc.new_file
        with path.open("wb") as file, new(file, table.schema) as writer:
            writer.write_table(table)
    else:
        data = json.dumps(rows).encode() if kind == "json" else jsonl(rows)
        if kind in ("csv", "tsv"):
            with path.open("w", newline="", encoding="utf-8") as file:
                out = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
                out.writeheader()
                out.writerows(rows)
            data = path.read_bytes()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


NAMES = [
    *("a.jsonl", "A.JSONL", "a.json", "a.csv", "a.TSV", "a.parquet", "a.arrow", "a-stream.arrow"),
    *("a.jsonl.gz", "a.json.gz", "a.Csv.GZ", "my.data.jsonl"),
]


@pytest.mark.parametrize("name", NAMES)
def test_each_format_is_read_as_the_same_rows(tmp_path: Path, name: str) -> None:
    records, report = read_records(write(tmp_path / name))
    expected, _ = read_records(write(tmp_path / "expected.jsonl"))
    assert [record.prompt for record in records] == [record.prompt for record in expected]
    assert [record.references for record in records] == [record.references for record in expected]
    assert report.verdict == "instruction/input/output, 5 rows" and not report.rejected and not report.unused
    assert records[0].record_id.startswith("my.data:" if name.startswith("my") else ("A:", "a:", "a-stream:"))


def test_numbers_in_csv_are_text_and_a_semicolon_separates_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt;completion\r\n2 + 2;4\r\n\r\n007;1e3\r\n")
    records, _ = read_records(path)
    assert [(record.prompt.text, record.references) for record in records] == [("2 + 2", ("4",)), ("007", ("1e3",))]
    assert [record.record_id for record in records] == ["a:2", "a:4"]


def test_faulty_rows_of_csv_are_set_aside_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,completion\na,b\nc\nd,e,f\n"g" x,h\ni,\xff\nk,"l\nm"\nn,"o\n')
    records, report = read_records(path, max_bad_rows=9)
    assert [record.record_id for record in records] == ["a:2", "a:7"]
    assert [(row.line, row.fault) for row in report.rejected] == [
        (3, "not CSV"), (4, "not CSV"), (5, "not CSV"), (6, "not UTF-8"), (9, "not CSV")
    ]  # fmt: skip


@pytest.mark.parametrize("header", [b"prompt,prompt\n", b'"prompt\n', b"\xffprompt,b\n"])
def test_an_invalid_header_is_an_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(header + b"a,b\n")
    with pytest.raises(DataError, match=r"a\.csv: has no valid header"):
        read_records(path)


def test_a_compressed_line_that_does_not_fit_into_memory_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": "' + b"x" * MAX_LINE_BYTES, 1))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz:1: the line has more than"):
        read_records(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet", "a.arrow", "a-stream.arrow"])
def test_a_truncated_file_is_an_error(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, ROWS * 400)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"is not a complete (gzip|Parquet|Arrow) file") as caught:
        read_records(path, max_bad_rows=10**6)
    assert "\n" not in str(caught.value)


# --- folders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["train.csv", "test.jsonl"], "train", ["train.csv"]),
        (["train.json", "train.jsonl"], "train", ["train.jsonl"]),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"], "train",
         ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
        (["data/train-0.jsonl", "data/valid-0.jsonl"], "validation", ["data/valid-0.jsonl"]),
        (["train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"], "test", ["test/data-00000-of-00001.arrow"]),
        (["part-1.jsonl", "part-2.csv.gz"], "train", ["part-1.jsonl", "part-2.csv.gz"]),
        (["VAL.JSONL", "train.jsonl"], "validation", ["VAL.JSONL"]),
    ],
)  # fmt: skip
def test_the_files_of_a_split_are_found_in_a_folder(tmp_path: Path, names: list[str], split: str, expected: list[str]) -> None:
    for name in names:
        write(tmp_path / name)
    found = single_sources(str(tmp_path), split, {"prompt": "question"})
    assert [Path(source.path).relative_to(tmp_path).as_posix() for source in found] == expected
    assert all(source.columns == {"prompt": "question"} for source in found)
    assert len(read_records(tmp_path, split=split)[0]) == 5 * len(expected)


def test_the_report_of_several_files_names_the_file_of_a_faulty_row(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl")
    (tmp_path / "two.jsonl").write_bytes(jsonl(ROWS[:1]) + b"{nope\n")
    records, report = read_records(tmp_path, max_bad_rows=1)
    assert (len(records), report.num_rows, report.source) == (6, 6, str(tmp_path))
    assert [(row.line, row.reason.partition(":")[0]) for row in report.rejected] == [(2, "two.jsonl")]


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "source", "split"),
    [
        ("owner/name", Source(path="owner/name"), "train"),
        ("owner/name:main", Source(path="owner/name", config="main"), "train"),
        ("owner/name@refs/pr/1", Source(path="owner/name", revision="refs/pr/1"), "train"),
        ("owner/name[:1%]", Source(path="owner/name", split=":1%"), "train[:1%]"),
        ("owner/name[-100:]", Source(path="owner/name", split="-100:"), "train[-100:]"),
        ("owner/name[train_sft]", Source(path="owner/name", split="train_sft"), "train_sft"),
        ("owner/n.a-me:a@b[test[:10]]", Source(path="owner/n.a-me", config="a", revision="b", split="test[:10]"), "test[:10]"),
        ("./owner/name@b", Source(path="./owner/name@b"), "train"),
        ("mine.jsonl", Source(path="mine.jsonl"), "train"),
    ],
)
def test_a_name_has_configuration_revision_and_split(text: str, source: Source, split: str) -> None:
    assert Source.of(text) == source and source.named_split("train") == split


def test_the_settings_of_a_section_take_precedence_over_its_name_and_over_the_columns_of_the_recipe() -> None:
    given = Source(path="owner/name:a@b", config="c", columns={"prompt": "q"})
    assert Source.of(given, {"prompt": "x"}) == Source(path="owner/name", config="c", revision="b", columns={"prompt": "q"})
    assert Source.of("owner/name", {"prompt": "x"}).columns == {"prompt": "x"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces `datasets` by a data set of two rows; the list of requests."""
    requests: list[Any] = []
    errors = SimpleNamespace(DatasetsError=RuntimeError)

    def load_dataset(path: str, **options: Any) -> list[dict[str, str]]:
        requests.append((path, options))
        return ROWS[:2]

    monkeypatch.setattr(sources, "unreachable", str)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, exceptions=errors))
    monkeypatch.setitem(sys.modules, "datasets.exceptions", errors)
    return requests


def test_a_hub_data_set_is_requested_with_its_configuration_revision_and_split(hub: list[Any]) -> None:
    records, report = read_records("owner/name:main@abc[:1%]", split="validation")
    assert hub == [("owner/name", {"name": "main", "revision": "abc", "split": "validation[:1%]"})]
    assert records[0].record_id == "name:1" and report.source == "owner/name:main@abc"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (Source(path="a.jsonl", config="main"), r"a\.jsonl: config = 'main': applies to hub data sets only"),
        (Source(path="a.jsonl", revision="v1"), "revision = 'v1': applies to hub"),
        (Source(path="a.jsonl", split="train"), "a file has no splits; remove split; data.max_train_rows limits"),
        (Source(path="folder", split="train[:1%]"), "a part of a split can be read from hub data sets only"),
        ("owner/name@", "no such file or folder; give a .jsonl.*owner/name:CONFIG, owner/name@REVISION, owner/name.SPLIT"),
        ("owner/na me", "no such file or folder"),
        (
            "folder/name@main",
            "no such file or folder in the folder folder; to read the hub data set of this name, run from",
        ),
        ("folder/name[:1%]", "no such file or folder in the folder folder; to read the hub data set"),
        ("folder/more.jsonl", "no such file or folder; give"),
        ("x" * 300, "a part of the path has 300 bytes"),
    ],
)
def test_what_does_not_apply_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[Any], source: Any, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl")
    write(tmp_path / "folder/train.jsonl")
    with pytest.raises(DataError, match=reason) as caught:
        read_records(source)
    assert hub == [] and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"path": " "}, "path = ''"),
        (
            {"path": "a", "columns": {"completions": "b"}},
            "columns.completions: no such key of a row; did you mean 'completion'",
        ),
        ({"path": "a", "columns": {"prompt": ""}}, "columns.prompt = '': must be the name of a column"),
    ],
)
def test_a_source_is_checked_when_the_recipe_is_read(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Source(**fields)
