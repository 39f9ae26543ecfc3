"""Whatever a CSV, gzip, Parquet or Arrow file contains, and however a source is named: it is read, or refused in one line."""

import gzip
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from redistill.data.bad_rows import BadRow
from redistill.data.columns import check_columns, renamed
from redistill.data.forms import parse_row
from redistill.data.reader import read_records
from redistill.data.sources import Source
from tests.faults.noise import KEYS, TEXTS, VALUES, fuzzed, is_one_line, read_or_refused
from tests.faults.test_fuzz import LINES, ROWS

SOUND = [
    {"prompt": f"Spell {k}.", "completion": f"It is {k}.", "talk": [{"role": "user", "content": f"{k}"}]} for k in range(30)
]
EDITS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=12)), max_size=4)


def edited(data: bytes, edits: list[tuple[float, bytes]], end: float) -> bytes:
    """`data` with bytes replaced at relative positions, and truncated."""
    changed = bytearray(data)
    for position, new in edits:
        at = int(position * len(changed))
        changed[at : at + len(new)] = new
    return bytes(changed[: max(1, int(end * len(changed)))])


def read(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found = read_or_refused(lambda: read_records(path, max_bad_rows=3))
    assert found is None or len(found[0]) == found[1].num_rows > 0
    if found is not None:
        assert all(record.references for record in found[0])


ENDS = st.one_of(st.just(1.0), st.floats(0, 1))
CELLS = st.one_of(
    TEXTS,
    st.sampled_from(['"', '""', '"a\nb"', ",", ";", "\t", "\r", "\x00", "x" * 200_000, "prompt", "completion", '"a" b']),
)


@given(st.lists(st.lists(CELLS, min_size=1, max_size=4), max_size=6), st.sampled_from([",", ";", "\t"]), st.booleans())
@fuzzed("a CSV file")
def test_any_cells_as_csv(tmp_path: Path, rows: list[list[str]], separator: str, has_header: bool) -> None:
    lines = [separator.join(row) for row in ([["prompt", "completion"], *rows] if has_header else rows)]
    read(tmp_path / "rows.csv", "\n".join(lines).encode("utf-8", "surrogatepass"))


@given(st.lists(LINES, max_size=5), EDITS, ENDS)
@fuzzed("a compressed file")
def test_any_bytes_in_a_compressed_file(
    tmp_path: Path, lines: list[bytes], edits: list[tuple[float, bytes]], end: float
) -> None:
    data = gzip.compress(b"\n".join([b'{"prompt": "a", "completion": "b"}', *lines]), mtime=0)
    read(tmp_path / "rows.jsonl.gz", edited(data, edits, end))


def parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(SOUND), file, row_group_size=10)
    return file.getvalue()


def arrow(is_stream: bool) -> bytes:
    file, table = io.BytesIO(), pa.Table.from_pylist(SOUND)
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


PARQUET, ARROW = parquet(), {stream: arrow(stream) for stream in (True, False)}


@given(EDITS, ENDS)
@fuzzed("a Parquet file")
def test_a_changed_parquet_file(tmp_path: Path, edits: list[tuple[float, bytes]], end: float) -> None:
    read(tmp_path / "rows.parquet", edited(PARQUET, edits, end))


@given(EDITS, ENDS, st.booleans())
@fuzzed("an Arrow file")
def test_a_changed_arrow_file(tmp_path: Path, edits: list[tuple[float, bytes]], end: float, is_stream: bool) -> None:
    read(tmp_path / "rows.arrow", edited(ARROW[is_stream], edits, end))


@given(st.one_of(ROWS.filter(lambda row: isinstance(row, dict)), st.just(SOUND[0])), st.dictionaries(KEYS, TEXTS, max_size=3))
@fuzzed("columns")
def test_any_columns(row: dict[str, Any], columns: dict[str, str]) -> None:
    read_or_refused(lambda: check_columns(columns))
    try:
        parse_row(renamed(row, columns))
    except BadRow as error:
        assert is_one_line(error) or "\n" not in str(error)
    json.dumps(list(columns))


NAMES = st.one_of(
    TEXTS,
    VALUES.map(str),
    st.lists(st.sampled_from(["missing", "/", ".", "..", "@", ":", "[", "]", "1%", "owner", ".csv", "~", "-"]), max_size=9).map(
        "".join
    ),
)


def opened(path: str, split: str | None) -> None:
    read_records(Source(path=path, split=split))


@given(NAMES, st.one_of(st.none(), NAMES))
@fuzzed("a name of data")
def test_any_name_of_a_local_file(tmp_path: Path, name: str, split: str | None) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\na,b\n", encoding="utf-8")
    for path in (f"./{name}", str(tmp_path)):  # a local path, so that nothing is requested from the hub
        read_or_refused(partial(opened, path, split))
    read_or_refused(lambda: Source.of(name) if name.strip() else None)
