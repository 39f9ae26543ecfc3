"""Every form of row is read verbatim; a broken row is rejected with line and reason; paths are never requested from the hub."""

import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.data.bad_rows import BadRow
from redistill.data.forms import MAX_ROW_BYTES, parse_row
from redistill.data.reader import read_records
from redistill.data.rejected import LISTED_ROWS, list_unlearned
from redistill.errors import DataError
from redistill.records import Conversation, Instruction, RawPrompt, Turn
from redistill.storage.files import read_lines

GOOD = {"instruction": "Name a colour.", "input": "", "output": "Red."}
LINE = json.dumps(GOOD).encode()


def write(folder, data, name="mine.jsonl"):
    path = folder / name
    path.write_bytes(data)
    return path


USER, ANSWER = Turn("user", "Hi?"), {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize(
    ("row", "form", "prompt", "references"),
    [
        (GOOD, "instruction/input/output", Instruction("Name a colour."), ("Red.",)),
        ({"instruction": "Add.", "input": " 1 2\n", "output": ["3", " three"]}, "instruction/input/output",
         Instruction("Add.", " 1 2\n"), ("3", " three")),
        ({"instruction": "Add.", "context": "1 2", "response": "3", "category": "open_qa"}, "instruction/input/output",
         Instruction("Add.", "1 2"), ("3",)),
        ({"instruction": "Add.", "input": None, "output": "3", "prompt": "long<n>form"}, "instruction/input/output",
         Instruction("Add."), ("3",)),
        ({"prompt": "2 +<n> 2 = ", "completion": " 4\n"}, "prompt/completion", RawPrompt("2 +<n> 2 = "), (" 4\n",)),
        ({"prompt": "2 + 2", "output": ["4", "four"]}, "prompt/completion", RawPrompt("2 + 2"), ("4", "four")),
        ({"prompt": [{"role": "user", "content": "Hi?"}], "completion": [ANSWER]}, "prompt/completion",
         Conversation((USER,)), ("Hello.",)),
        ({"prompt": [{"role": "user", "content": "Hi?"}], "completion": "Hello."}, "prompt/completion",
         Conversation((USER,)), ("Hello.",)),
        ({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"}, ANSWER]}, "messages",
         Conversation((Turn("system", "Be kind."), USER)), ("Hello.",)),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}, "conversations",
         Conversation((USER,)), ("Hello.",)),
        ({"messages": [{"role": "user", "content": "Hi?"}, ANSWER, {"role": "user", "content": "Bye."}, ANSWER]}, "messages",
         Conversation((USER, Turn("assistant", "Hello."), Turn("user", "Bye."))), ("Hello.",)),
    ],
)  # fmt: skip
def test_each_form_is_read_verbatim(row, form, prompt, references):
    parsed = parse_row(row)
    assert (parsed.form, parsed.prompt, parsed.references) == (form, prompt, references)


@pytest.mark.parametrize(
    ("value", "category"), [("open_qa", "open_qa"), (" qa ", "qa"), (61 * "a", ""), ("", ""), (7, ""), (["qa"], "")]
)
def test_a_short_text_in_the_column_category_is_the_category_of_the_record(value, category):
    assert parse_row({**GOOD, "category": value}).record("a:1").category == category


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["a", "list"], "is a list"),
        ("text", "is a string"),
        ({}, "keys are none"),
        ({"question": "?", "reply": "!"}, "keys are 'question', 'reply'"),
        ({"instruction": "Add."}, "'output' is missing"),
        ({"instruction": "Add.", "output": None}, "'output' is missing"),
        ({"instruction": "Add.", "output": " \n"}, "'output' is missing"),
        ({"instruction": "Add.", "output": []}, "'output' is missing"),
        ({"instruction": "Add.", "output": ["3", ""]}, "item 2 is empty"),
        ({"instruction": "Add.", "output": 3}, "'output' is a number"),
        ({"instruction": "Add.", "output": {"text": "3"}}, "'output' is an object"),
        ({"instruction": " ", "output": "3"}, "'instruction' is empty"),
        ({"instruction": "Add.", "input": ["1"], "output": "3"}, "'input' is a list"),
        ({"instruction": "A\x00", "output": "3"}, "NUL"),
        ({"instruction": "Add.", "output": "\ud83d"}, "surrogate"),
        ({"prompt": "", "completion": "4"}, "'prompt' is empty"),
        ({"prompt": "2 + 2"}, "'completion' is missing"),
        ({"prompt": [{"role": "user", "content": "Hi?"}, ANSWER], "completion": "Hello."}, "message 3 has role assistant"),
        ({"prompt": [{"role": "user", "content": "Hi?"}], "completion": [ANSWER, ANSWER]}, "one assistant message"),
        ({"messages": "Hi"}, "'messages' is a string"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": ["Hi"]}, "message 1 is a string"),
        ({"messages": [{"role": "user", "content": "Hi?"}]}, "no assistant answer"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "no user message"),
        ({"messages": [ANSWER]}, "message 1 has role assistant"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, ANSWER]}, "message 2 has role user"),
        ({"messages": [{"role": "narrator", "content": "a"}, ANSWER]}, "role 'narrator'"),
        ({"messages": [{"role": "tool", "content": "a"}, ANSWER]}, "message 1 has role tool"),
        ({"messages": [{"role": "user"}, ANSWER]}, "content is missing"),
        ({"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": ""}]}, "content is empty"),
        ({"conversations": [{"from": "human", "value": "Hi?"}]}, "no assistant answer"),
    ],
)  # fmt: skip
def test_each_kind_of_broken_row_is_rejected_with_its_reason(row, reason):
    with pytest.raises(BadRow, match=reason):
        parse_row(row)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["instruction", "input", "output", "prompt", "completion", "messages", "role", "content", "from"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(json_values)
def test_any_json_value_is_either_parsed_or_rejected(value):
    try:
        parsed = parse_row(value)
    except BadRow as error:
        assert str(error)
    else:
        assert parsed.references and all(text.strip() for text in parsed.references)


def test_rows_without_answer_are_read_only_if_requested():
    row = {"instruction": "Add."}
    assert parse_row(row, require_answer=False).references == ()
    assert parse_row({"messages": [{"role": "user", "content": "Hi?"}]}, require_answer=False).prompt == Conversation((USER,))


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"\n" + LINE,
        b"\xef\xbb\xbf" + LINE + b"\r\n" + LINE + b"\r\n",
        LINE + b"\n\n  \n" + LINE + b"\n",
    ],
    ids=["plain", "byte order mark and CRLF", "blank lines"],
)
def test_any_line_ends_and_blank_lines_are_accepted(tmp_path, data):
    records, report = read_records(write(tmp_path, data))
    assert [record.prompt for record in records] == [Instruction("Name a colour.")] * 2
    assert report.verdict == "instruction/input/output, 2 rows" and report.rejected == ()


def test_record_ids_are_the_file_stem_and_the_line(tmp_path):
    records, _ = read_records(write(tmp_path, LINE + b"\n\n" + LINE))
    assert [record.record_id for record in records] == ["mine:1", "mine:3"]


def test_a_json_array_file_and_a_folder_with_the_split_are_read(tmp_path):
    write(tmp_path, json.dumps([GOOD, GOOD], indent=1).encode(), "valid.json")
    assert len(read_records(tmp_path, split="valid")[0]) == 2
    with pytest.raises(DataError, match=r"no train\.jsonl or train\.json \(found: valid\.json\)"):
        read_records(tmp_path)


def test_a_truncated_json_array_is_an_error(tmp_path):
    with pytest.raises(DataError, match="not a complete JSON array"):
        read_records(write(tmp_path, b"[" + LINE, "mine.json"), max_bad_rows=9)


BROKEN = b"\n".join([LINE, b"{nope", b'{"instruction": "\xff", "output": "a"}', b"[" * 100_000, b"12", LINE])


def test_bad_rows_are_rejected_with_line_and_reason(tmp_path):
    listed = tmp_path / "out" / "rejected.jsonl"
    records, report = read_records(write(tmp_path, BROKEN), max_bad_rows=4, rejected=listed)
    assert [record.record_id for record in records] == ["mine:1", "mine:6"]
    assert [row.line for row in report.rejected] == [2, 3, 4, 5]
    assert [row["line"] for row in read_lines(listed)] == [2, 3, 4, 5]
    assert "column" in report.rejected[0].reason and "0xff" in report.rejected[1].reason


def test_more_bad_rows_than_allowed_is_an_error_that_names_the_first(tmp_path):
    listed = tmp_path / "rejected.jsonl"
    with pytest.raises(DataError, match=r"mine\.jsonl:2: not JSON .*; 4 of 6 rows are unusable .*at most 3") as caught:
        read_records(write(tmp_path, BROKEN), max_bad_rows=3, rejected=listed)
    assert str(listed) in str(caught.value) and len(read_lines(listed)) == 4


def test_reading_a_source_again_replaces_only_its_own_rows_in_the_list(tmp_path):
    listed = tmp_path / "rejected.jsonl"
    read_records(write(tmp_path, BROKEN), max_bad_rows=4, rejected=listed)
    other = write(tmp_path, LINE + b"\n{}", "other.jsonl")
    read_records(other, max_bad_rows=1, rejected=listed)
    read_records(write(tmp_path, LINE), rejected=listed)
    assert [(row["source"], row["line"]) for row in read_lines(listed)] == [(str(other), 2)]


def test_the_list_of_rejected_rows_is_limited_and_counts_the_rest(tmp_path):
    listed, num_bad = tmp_path / "rejected.jsonl", LISTED_ROWS + 5
    _, report = read_records(write(tmp_path, LINE + b"\n{}" * num_bad), max_bad_rows=num_bad, rejected=listed)
    *rows, last = read_lines(listed)
    assert len(report.rejected) == num_bad and [row["line"] for row in rows] == list(range(2, LISTED_ROWS + 2))
    assert last["line"] == LISTED_ROWS + 2 and "this row and 4 after it are not listed" in last["reason"]
    list_unlearned(listed, [("other.jsonl", line, "why " * 1000) for line in range(num_bad)])
    assert len(read_lines(listed)) == 2 * (LISTED_ROWS + 1) and listed.stat().st_size < 1_000 * LISTED_ROWS


@pytest.mark.parametrize(
    "row",
    [{"x" * 10**6: 1}, {"messages": [{"role": "y" * 10**6, "content": "z"}]}, {"messages": [{"role": ["y"] * 10**6}]}],
)
def test_reasons_are_short_for_large_rows(row):
    with pytest.raises(BadRow) as caught:
        parse_row(row)
    assert len(str(caught.value)) < 200


def test_the_size_of_a_row_is_limited():
    answer = "é" * (MAX_ROW_BYTES // 2 - 4)  # two bytes each
    assert parse_row({"prompt": "12345678", "completion": answer}).references == (answer,)
    with pytest.raises(BadRow, match=f"has {MAX_ROW_BYTES + 1} bytes of text; a row may have at most {MAX_ROW_BYTES}"):
        parse_row({"prompt": "123456789", "completion": answer})


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b" \n\n"])
def test_an_empty_file_is_an_error(tmp_path, data):
    with pytest.raises(DataError, match="is empty"):
        read_records(write(tmp_path, data))


def test_a_file_without_a_usable_row_is_an_error_for_any_limit(tmp_path):
    with pytest.raises(DataError, match="no usable row remains"):
        read_records(write(tmp_path, b"{}\n"), max_bad_rows=100)


def test_mixed_forms_are_counted_in_the_verdict(tmp_path):
    other = json.dumps({"prompt": "2 + 2 =", "completion": " 4"}).encode()
    assert read_records(write(tmp_path, b"\n".join([LINE, other, LINE])))[1].verdict == (
        "instruction/input/output, 2 rows; prompt/completion, 1 row"
    )


class FakeHub(SimpleNamespace):
    """Replaces `datasets` and records the requests."""

    def __init__(self, rows):
        self.requests = []
        self.exceptions = SimpleNamespace(DatasetsError=RuntimeError)
        self.load_dataset = lambda name, split: self.requests.append((name, split)) or rows


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub([GOOD, {"instruction": "Add.", "output": None}])
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setitem(sys.modules, "datasets.exceptions", fake.exceptions)
    return fake


def test_a_hub_name_is_requested_from_the_hub(hub):
    records, report = read_records("someone/things", split="test", max_bad_rows=1)
    assert hub.requests == [("someone/things", "test")]
    assert records[0].record_id == "things:1" and report.rejected[0].line == 2


@pytest.mark.parametrize(
    "kind", ["data/mine.jsonl", "./data/mine", "/data/mine", "~/mine", "mine.json", "mine", "a/b/c", "here/mine"]
)
def test_a_source_that_looks_like_a_path_is_never_requested_from_the_hub(hub, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(DataError, match="no such file or folder"):
        read_records(kind)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["mine.txt", "mine.xlsx", "mine.py", "mine"])
def test_a_file_with_another_ending_is_rejected(tmp_path, name):
    with pytest.raises(DataError, match=r"is not a \.jsonl, .* or \.arrow file|never read by running code"):
        read_records(write(tmp_path, b"a,b\n1,2\n", name))


@pytest.mark.parametrize(("name", "is_lines"), [("mine.jsonl", True), ("mine.json", False), ("array.jsonl", False)])
def test_a_row_with_two_equal_keys_is_set_aside(tmp_path, name, is_lines):
    twice = LINE.replace(b'"input": ""', b'"output": "Blue."')
    data = [b"[" + LINE + b", " + twice + b", " + LINE + b"]", LINE + b"\n" + twice + b"\n" + LINE][is_lines]
    records, report = read_records(write(tmp_path, data, name), max_bad_rows=1)
    assert len(records) == 2 and [(row.line, row.fault) for row in report.rejected] == [(2, "not JSON")]
    assert "an object has two equal keys" in report.rejected[0].reason
