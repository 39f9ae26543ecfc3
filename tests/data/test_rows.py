"""Rows and examples as arrays: the same records, examples and hashes as from objects."""

import hashlib
import json
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.data import reader
from redistill.data.forms import ParsedRow
from redistill.data.reader import read_records
from redistill.data.repeats import first_of_each
from redistill.data.rows import Rows, asks_one_of, content_digest, first_of_digests, question, question_digest
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import DataError
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from tests.worlds import gpt2_tokenizer, rows, write_rows

PROMPTS = (
    *(Instruction("a", "b"), Instruction("ab"), Instruction("a b"), RawPrompt("ab"), RawPrompt("a")),
    *(Conversation((Turn("user", "ab"),)), Conversation((Turn("system", "ab"),)), Conversation((Turn("user", "a"),))),
    Conversation((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))),
)
records = st.builds(
    lambda prompt, references: Record(record_id="", prompt=prompt, references=tuple(references)),
    st.sampled_from(PROMPTS),
    st.lists(st.sampled_from(["", "a", "b", "ab"]), max_size=2),
)


@given(found=st.lists(records, max_size=20))
def test_the_first_of_equal_records_is_that_of_a_dictionary(found):
    first: dict[object, int] = {}
    expected = [first.setdefault((record.prompt, record.references), index) for index, record in enumerate(found)]
    assert first_of_each(found) == expected


@given(one=records, other=records)
def test_hashes_are_equal_for_equal_contents_and_prompts_only(one, other):
    assert (content_digest(one) == content_digest(other)) == ((one.prompt, one.references) == (other.prompt, other.references))
    assert (question_digest(one) == question_digest(other)) == (question(one) == question(other))


@given(numbers=st.lists(st.integers(0, 3), max_size=30))
def test_the_first_of_equal_hashes_is_the_lowest_index(numbers):
    digests = np.array([[number % 2, number] for number in numbers], dtype=np.int64).reshape(-1, 2)
    assert first_of_digests(digests).tolist() == [numbers.index(number) for number in numbers]


@pytest.fixture
def found(tmp_path):
    first, _ = read_records(write_rows(tmp_path / "a.jsonl", rows(5)))
    second, _ = read_records(write_rows(tmp_path / "b.jsonl", rows(4, 20)))
    return first, second


def test_rows_are_a_sequence_of_records(found):
    first, second = found
    joined = Rows.joined([first, second])
    expected = [*first, *second]
    assert list(joined) == expected and len(joined) == 9 and expected[6] in joined
    assert [joined[n] for n in range(9)] == expected and joined[-1] == expected[-1]
    for index in (slice(2, 7), slice(None, None, 3), slice(-3, None), slice(5, 2)):
        assert list(joined[index]) == expected[index]
    with pytest.raises(IndexError):
        joined[9]
    assert [joined.where(n)[1] for n in range(9)] == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    assert [joined.record_id(n) for n in (0, 8)] == ["a:1", "b:4"] == [expected[0].record_id, expected[8].record_id]
    mask = asks_one_of(joined, {question_digest(expected[7]), b"\0" * 16})
    assert mask.tolist() == [n == 7 for n in range(9)]
    assert not asks_one_of(joined, set()).any() and not len(asks_one_of(Rows.joined([]), {b"\0" * 16}))


def test_a_record_does_not_change_with_its_file(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", rows(3))
    found, _ = read_records(path)
    before = list(found)
    write_rows(tmp_path / "a.jsonl", rows(3, 50))
    assert list(found) == before


@pytest.mark.parametrize("text", ["[]", "[ ]", ' [{"prompt": "a", "completion": "b"} , {"prompt": "c", "completion": "]"}]\n'])
def test_an_array_is_read_item_by_item(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + text, encoding="utf-8")
    values = json.loads(text)
    if values:
        found, _ = read_records(path)
        assert [record.prompt.text for record in found] == [value["prompt"] for value in values]


def test_examples_are_a_sequence_and_have_the_hash_of_their_tokens(found):
    joined = Rows.joined(found)
    examples, _ = tokenize_training(joined, gpt2_tokenizer(), TokenizeConfig(response_tokens=9), seed=1)
    expected = list(examples)
    assert [e.sample for e in expected] == list(range(9)) and [e.record for e in expected] == list(joined)
    assert examples[-1] == expected[-1] and examples[1::4] == expected[1::4]
    assert examples.lengths == [len(e.token_ids) for e in expected]
    assert examples.prompt_lengths == [len(e.prompt_ids) for e in expected]
    assert all(type(token) is int for token in expected[0].token_ids) and all(type(m) is bool for m in expected[0].supervised)
    digest = hashlib.sha256()
    for e in expected:
        digest.update(array("q", [e.sample, *e.token_ids]).tobytes() + bytes(e.supervised))
    assert examples.digest() == digest.hexdigest()
    with pytest.raises(IndexError):
        examples[9]


def test_a_file_that_changes_while_it_is_read_is_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows would be found later under the hash of the older content."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "Add.", "output": "4"}\n' * 9_000, encoding="utf-8")
    parse = reader.parse_row

    def changed(row: object, **options: bool) -> ParsedRow:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")
        return parse(row, **options)

    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "parse_row", changed)
    with pytest.raises(DataError, match="has changed while it was read"):
        read_records(path, cache=lambda line: None)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
