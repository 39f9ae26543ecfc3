"""10,000 rows with 300 planted faults of 15 kinds: each is reported with line and reason, and all other rows are kept."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redistill.config.sections import DataConfig
from redistill.data.check import check_data
from redistill.data.check_text import described
from redistill.data.forms import MAX_ROW_BYTES
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig
from redistill.runs.load import load_data
from redistill.storage.files import read_lines

ROWS, EACH, FIRST = 10_000, 20, 25  # the first rows are clean, so that a duplicate has an earlier row to repeat


def clean(k: int) -> dict[str, Any]:
    """A row in one of the forms that are read; no two are alike."""
    asked, answer = f"Write {k} in words.", f"That would be {k}, spelled out: é, 数, 😀."
    forms: list[dict[str, Any]] = [
        {"instruction": asked, "input": "", "output": answer},
        {"instruction": asked, "context": "Numbers.", "response": [answer, "No."]},
        {"prompt": asked, "completion": answer},
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]},
    ]
    return forms[k % len(forms)]


def line(**changes: Any) -> bytes:
    return json.dumps({"instruction": "Name a river.", "output": "The Rhine.", **changes}).encode()


# Each kind: what stands in the line of number k, and what the reason must say.
FAULTS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "empty": (lambda k: line(instruction=""), "'instruction' is empty"),
    "white space": (lambda k: line(output=" \t\n"), "'output' is missing"),
    "not UTF-8": (lambda k: line(output="caf?").replace(b"?", b"\xe9"), "not UTF-8 (byte 0xe9 at position"),
    "lone surrogate": (lambda k: line(output="\ud83d"), "has a lone surrogate"),
    "NUL": (lambda k: line(instruction=f"{k}\x00"), "'instruction' has a NUL character"),
    "missing key": (lambda k: json.dumps({"output": f"{k}"}).encode(), "its keys are 'output'; rows need instruction"),
    "wrong type": (lambda k: line(output=k), "'output' is a number; it must be a string"),
    "1 MB row": (lambda k: line(output="x" * MAX_ROW_BYTES), f"a row may have at most {MAX_ROW_BYTES}"),
    "all masked": (lambda k: line(instruction=f"{k}?", output="\u200b"), "returns no tokens for the prompt or the answer"),
    "duplicate": (lambda k: json.dumps(clean(k % FIRST)).encode(), "exact duplicate of "),
    "BOM": (lambda k: b"\xef\xbb\xbf" + line(output=f"{k}"), "begins with a byte order mark"),
    "CR in a string": (lambda k: line(output="a?b").replace(b"?", b"\r"), "not JSON (Invalid control character"),
    "array": (lambda k: b"[" + line() + b"]", "is a list; a row must be a JSON object"),
    "trailing comma": (lambda k: line() + b",", "not JSON (Extra data"),
    "mixed roles": (
        lambda k: json.dumps({"messages": [{"role": r, "content": f"{k}"} for r in ("user", "user", "assistant")]}).encode(),
        "message 2 has role user",
    ),
}  # fmt: skip


ALPACA = TokenizeConfig(template="alpaca")


class Words:
    """A tokenizer of words that has none for a zero-width space."""

    eos_token_id, bos_token_id = 1, None

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [2 + len(word) for word in text.replace("\u200b", "").split()]}


@dataclass(frozen=True)
class Corpus:
    path: Path
    planted: dict[int, str]
    """The kind of fault by line."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The file: a byte order mark at its very start and CRLF line ends, which are no faults."""
    places = random.Random(5).sample(range(FIRST, ROWS), EACH * len(FAULTS))
    planted = dict(zip(places, [kind for kind in FAULTS for _ in range(EACH)]))
    lines = [FAULTS[planted[k]][0](k) if k in planted else json.dumps(clean(k)).encode() for k in range(ROWS)]
    path = tmp_path_factory.mktemp("dirty") / "train.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    return Corpus(path, {place + 1: kind for place, kind in planted.items()})


def test_every_fault_is_listed_with_its_reason_every_other_row_is_kept_and_duplicates_are_counted(
    corpus: Corpus, tmp_path: Path
) -> None:
    rejected, said = tmp_path / "rejected.jsonl", list[str]()
    config = DataConfig(train=(str(corpus.path),), max_bad_rows=300, tokens=ALPACA)
    found = load_data(config, Words(), 1, rejected=rejected, report=said.append)
    listed = {row["line"]: row["reason"] for row in read_lines(rejected)}
    faults = {number: kind for number, kind in corpus.planted.items() if kind != "duplicate"}
    wrong = {number: (kind, listed.get(number)) for number, kind in faults.items()
             if FAULTS[kind][1] not in listed.get(number, "")}  # fmt: skip
    assert not wrong and listed.keys() == faults.keys()
    assert len(found.train) + len(found.validation) == 9_720 and found.manifest["kept"]["duplicates kept"] == EACH
    assert f"train: {EACH} exact duplicates of earlier rows are kept" in said


def test_the_check_counts_every_kind_and_prints_no_control_character(corpus: Corpus) -> None:
    (check,) = check_data([(str(corpus.path), "train")], {}, tokenizer=Words(), tokens=ALPACA)
    assert (check.rows, sum(check.faults.values()), len(check.repeats)) == (9_720, 280, EACH)
    assert {row.line for row in check.unusable} | {row.line for row in check.repeats} == corpus.planted.keys()
    assert check.faults["nothing to learn"] == check.faults["too large"] == check.faults["byte order mark"] == EACH
    assert not check.is_sound
    assert all(text.isprintable() for text in described([check]))


@pytest.mark.parametrize("name", ["array.json", "array.jsonl", "marked.jsonl", "blank.jsonl"])
def test_what_is_tolerated_loses_no_row(tmp_path: Path, name: str) -> None:
    rows = [json.dumps(clean(k)).encode() for k in range(8)]
    written = {
        "array.json": b"\xef\xbb\xbf[" + b",\r\n".join(rows) + b"]",
        "array.jsonl": b"[\n" + b",\n".join(rows) + b"\n]\n",
        "marked.jsonl": b"\xef\xbb\xbf" + b"\r\n".join(rows),
        "blank.jsonl": b"\n\n".join(rows) + b"\n \t\n",
    }
    (tmp_path / name).write_bytes(written[name])
    records, report = read_records(tmp_path / name)
    assert len(records) == 8 and report.rejected == ()
