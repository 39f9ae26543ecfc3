"""Damaged data files of every format: each row is read or set aside, or the file is rejected in one line.

No row is lost without a count: the rows that are read and those that are set aside are all rows of the damaged file.
"""

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from redistill.config.sections import DataConfig
from redistill.data.check import check_data
from redistill.data.check_text import described
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig
from redistill.runs.load import load_data
from tests.faults.counts import trials
from tests.faults.noise import read_or_refused
from tests.worlds import gpt2_tokenizer

CORRUPTIONS = trials(40, 200)
LIMIT = 10**6
ROWS = [{"prompt": f'Spell the number {k}: é, 数, "{k}",\n😀', "completion": f"It is {k}.", "id": str(k)} for k in range(60)]
LINES = b"".join(json.dumps(row, ensure_ascii=bool(k % 2)).encode() + b"\n" for k, row in enumerate(ROWS))

# --- files of every format ----------------------------------------------------------------------------------------------


def as_csv() -> bytes:
    text = io.StringIO(newline="")
    out = csv.DictWriter(text, list(ROWS[0]))
    out.writeheader()
    out.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=20, compression="snappy")
    return file.getvalue()


def as_arrow(new: Callable[..., Any]) -> bytes:
    file = io.BytesIO()
    table = pa.Table.from_pylist(ROWS)
    with new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    return file.getvalue()


FILES = {
    "a.jsonl": LINES,
    "b.jsonl": LINES.replace(b"\n", b"\r\n"),
    "a.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "a.csv": as_csv(),
    "a.parquet": as_parquet(),
    "a.arrow": as_arrow(pa.ipc.new_file),
    "b.arrow": as_arrow(pa.ipc.new_stream),
    "a.jsonl.gz": gzip.compress(LINES, mtime=0),
    "a.csv.gz": gzip.compress(as_csv(), mtime=0),
}

# --- what happens to them -----------------------------------------------------------------------------------------------


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 3, 30])):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


def joined(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    for _ in range(chance.choice([1, 10])):
        if len(lines) > 1:
            at = chance.randrange(len(lines) - 1)
            lines[at : at + 2] = [lines[at] + lines[at + 1]]
    return b"\n".join(lines)


def recoded(data: bytes, chance: random.Random) -> bytes:
    encoding = chance.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1", "utf-8-sig", "gb18030"])
    return data.decode("utf-8", "replace").encode(encoding, "replace")


def with_noise(data: bytes, chance: random.Random) -> bytes:
    at, noise = chance.randrange(len(data)), chance.randbytes(chance.choice([1, 50, 3000]))
    return data[:at] + chance.choice([noise, b"\n" * 5, b'"', b"\x00" * 40, b"\r", b"["]) + data[at:]


def without_a_block(data: bytes, chance: random.Random) -> bytes:
    begin, end = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:begin] + chance.choice([b"", bytes(end - begin)]) + data[end:]


def swapped(data: bytes, chance: random.Random) -> bytes:
    begin, end = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[end:] + data[begin:end] + data[:begin]


def other_line_ends(data: bytes, chance: random.Random) -> bytes:
    return data.replace(b"\n", chance.choice([b"\r", b"\r\n", b"\n\n", b",\n", b" "]))


def doubled(data: bytes, chance: random.Random) -> bytes:
    return data + chance.choice([data, b"\xef\xbb\xbf" + data, data[: len(data) // 2], b"<html>"])


def other_file(data: bytes, chance: random.Random) -> bytes:
    return chance.choice([*FILES.values(), zlib.compress(data), json.dumps({"data": ROWS}, indent=1).encode(), b"PK\x03\x04"])


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    *(flipped, flipped, truncated, truncated, joined, recoded, with_noise, with_noise),
    *(without_a_block, swapped, other_line_ends, doubled, other_file),
]


def damaged(number: int, folder: Path) -> Path:
    """Write the damaged file of a trial; a file in gzip is damaged before or after its compression."""
    chance = random.Random(number)
    name = list(FILES)[number % len(FILES)]
    damage, data = chance.choice(DAMAGES), FILES[name]
    if name.endswith(".gz") and chance.random() < 0.5:
        data = gzip.compress(damage(gzip.decompress(data), chance), mtime=0)
    else:
        data = damage(data, chance)
    (folder / name).write_bytes(data)
    return folder / name


# --- what must hold -----------------------------------------------------------------------------------------------------


def num_rows(path: Path) -> int | None:
    """The number of rows in a file, counted without redistill; None for CSV, whose quotes may join any lines."""
    if path.suffix == ".parquet":
        return int(pq.ParquetFile(path).metadata.num_rows)
    data = path.read_bytes()
    if path.suffix == ".arrow":
        reader = pa.ipc.open_file(data) if data.startswith(b"ARROW1") else pa.ipc.open_stream(data)
        return int(reader.read_all().num_rows)
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    data = data.removeprefix(b"\xef\xbb\xbf")
    if ".csv" in path.name:
        return None
    if data.lstrip().startswith(b"["):
        try:
            return len(json.loads(data))
        except ValueError:
            pass
    return sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip() or index) for index, line in enumerate(data.split(b"\n"))
               if line.strip())  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return gpt2_tokenizer()


@pytest.mark.parametrize("number", range(CORRUPTIONS))
def test_each_row_is_read_or_set_aside_or_the_file_is_rejected(
    number: int, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = damaged(number, tmp_path)
    found = read_or_refused(lambda: read_records(path, max_bad_rows=LIMIT))
    (check,) = check_data([(str(path), "train")], {})
    assert all("\n" not in line and line.isprintable() for line in described([check]))
    tokens = TokenizeConfig(template="alpaca")  # the tokenizer has no chat template
    config = DataConfig(train=(str(path),), validation_rows=1, max_bad_rows=LIMIT, tokens=tokens)
    data = read_or_refused(lambda: load_data(config, tokenizer, 1, rejected=tmp_path / "rejected.jsonl", report=str))
    if found is None:
        assert data is None and not check.is_sound
        return
    records, report = found
    lines = [int(record.record_id.rpartition(":")[2]) for record in records]
    set_aside = [row.line for row in report.rejected]
    assert len(set(lines) | set(set_aside)) == len(lines) + len(set_aside) == report.num_rows + len(set_aside)
    assert (check.rows, len(check.unusable)) == (report.num_rows, len(set_aside))
    expected = num_rows(path)
    assert expected is None or report.num_rows + len(set_aside) == expected
    if data is not None:
        kept = data.manifest["kept"]
        assert kept["train"] + kept["dropped"] + kept["validation"] == report.num_rows


def test_the_damages_leave_files_that_are_read_in_part_and_files_that_are_rejected(tmp_path: Path) -> None:
    """Otherwise the test above would check no cases."""
    outcomes = []
    for number in range(40):
        (tmp_path / str(number)).mkdir()
        path = damaged(number, tmp_path / str(number))
        found = read_or_refused(partial(read_records, path, max_bad_rows=LIMIT))
        outcomes.append("rejected" if found is None else "in part" if found[1].rejected else "whole")
    assert all(outcomes.count(kind) >= 5 for kind in ("rejected", "in part", "whole"))
