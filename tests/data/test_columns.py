"""Columns with other names are mapped, columns that are not used are counted, and an error shows the mapping to set."""

import json
from pathlib import Path
from typing import Any

import pytest

from redistill.data.bad_rows import BadRow
from redistill.data.check import check_data
from redistill.data.check_text import described
from redistill.data.columns import renamed
from redistill.data.forms import parse_row
from redistill.data.reader import read_records
from redistill.data.sources import Source
from redistill.records import Conversation

TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]

TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]
CALLING = [
    TALK[0],
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "clock", "arguments": "{}"}}]},
    {"role": "tool", "content": "noon", "name": "clock", "tool_call_id": "1"},
]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "a.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"question": "2+2?", "answer": "4"}, "{prompt: question, completion: answer}"),
        ({"query": "2+2?", "response": "4"}, "{prompt: query, completion: response}"),
        ({"problem": "p", "solution": "s"}, "{prompt: problem, completion: solution}"),
        ({"input": "p", "output": "s"}, "{prompt: input, completion: output}"),
        ({"Question": "p", "Answer": "s"}, "{prompt: Question, completion: Answer}"),
        ({"question": "p", "a: b": "s"}, "{prompt: question, completion: COLUMN}"),
        ({"a": "p", "b": "s"}, "{prompt: COLUMN, completion: COLUMN}"),
        ({"text": "plain"}, "{prompt: text}"),
        ({"dialog": TALK}, "{messages: dialog}"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "{completion: chosen}"),
        ({"prompt": "a", "chosen": TALK}, "{messages: chosen}"),
        ({"instruction": "a", "answer": "b"}, "{output: answer}"),
    ],
)
def test_the_error_of_an_unknown_form_shows_the_setting_that_reads_the_row(row: dict[str, Any], mapping: str) -> None:
    with pytest.raises(BadRow, match=r"data\.columns: ") as caught:
        parse_row(row)
    assert f"data.columns: {mapping}" in str(caught.value)
    if "COLUMN" not in mapping and mapping != "{prompt: text}":
        columns = dict(pair.split(": ") for pair in mapping.strip("{}").split(", "))
        assert parse_row(renamed(row, columns)).references


def test_columns_are_mapped_and_other_rows_are_read_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"question": "1?", "answer": "1", "id": 1},
        {"instruction": "Add.", "output": "2"},
        {"question": "3?", "answer": "3", "instruction": "ignored", "id": None},
    ]
    source = Source(path=write(tmp_path, rows), columns={"prompt": "question", "completion": "answer"})
    records, report = read_records(source)
    assert [record.references for record in records] == [("1",), ("2",), ("3",)]
    assert report.verdict == "prompt/completion, 2 rows; instruction/input/output, 1 row"
    assert report.unused == {"id": 1}


def test_the_column_of_tools_is_mapped() -> None:
    columns = {"messages": "dialog", "tools": "functions_json"}
    row = renamed({"dialog": [*CALLING, TALK[1]], "functions_json": json.dumps(TOOLS)}, columns)
    prompt = parse_row(row).prompt
    assert isinstance(prompt, Conversation) and [json.loads(tool) for tool in prompt.tools] == TOOLS


def test_one_row_that_begins_with_tools_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"tools": TOOLS, "messages": [*CALLING, TALK[1]]}))
    assert read_records(path)[1].verdict == "messages, 1 row"


def test_two_keys_may_have_one_column_and_a_column_may_have_the_name_of_a_key() -> None:
    assert renamed({"output": "a"}, {"prompt": "output", "completion": "output"}) == {"prompt": "a", "completion": "a"}
    assert renamed({"prompt": "a", "completion": "b"}, {"prompt": "completion", "completion": "prompt"}) == {
        "prompt": "b",
        "completion": "a",
    }


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        ({"instruction": "a", "input": "b", "context": "c", "output": "d", "category": "e"}, {"context": 1}),
        ({"instruction": "a", "output": "d", "category": 61 * "e"}, {"category": 1}),
        ({"prompt": "a", "completion": "b", "response": "c", "x": None, "y": "", "z": []}, {"response": 1}),
        ({"prompt": "a", "completion": "b", "score": 0, "ok": False}, {"score": 1, "ok": 1}),
        ({"messages": TALK, "conversations": TALK}, {"conversations": 1}),
        ({"messages": [{**TALK[0], "weight": 0}, {**TALK[1], "weight": 1, "name": None}]}, {"messages[].weight": 2}),
        ({"messages": [*CALLING, TALK[1]], "tools": TOOLS, "functions": TOOLS, "system": "s"}, {"functions": 1}),
        (
            {"prompt": CALLING, "completion": [{**TALK[1], "thinking": "t", "name": "n"}], "tools": TOOLS},
            {"completion[].name": 1},
        ),
        ({"prompt": "a", "completion": "b", "tools": TOOLS, "system": "s"}, {"tools": 1, "system": 1}),
        (
            {"messages": [{**TALK[0], "name": "n", "tool_calls": [1]}, TALK[1]]},
            {"messages[].name": 1, "messages[].tool_calls": 1},
        ),
        (
            {"instruction": "a", "output": "b", "system": "s", "system_prompt": "t", "history": [["c", "d"]]},
            {"system_prompt": 1},
        ),
        (
            {"conversations": [{"from": "human", "value": "q", "id": 1}, {"from": "gpt", "value": "x"}]},
            {"conversations[].id": 1},
        ),
    ],
)
def test_columns_that_are_not_used_are_counted(tmp_path: Path, row: dict[str, Any], unused: dict[str, int]) -> None:
    _, report = read_records(write(tmp_path, [row, {"prompt": "a", "completion": "b"}]))
    assert report.unused == unused


def test_the_check_reports_unused_columns_once_and_finds_no_fault(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k}", "completion": "b", "a\x1b[31m": k, "topic": "t"} for k in range(1, 4)]
    (check,) = check_data([(write(tmp_path, rows), "train")], {})
    lines = list(described([check]))
    assert check.is_sound and check.as_json()["unused_columns"] == {"a\x1b[31m": 3, "topic": 3}
    assert sum("columns not used: " in line and "topic (3 rows)" in line for line in lines) == 1
    assert all(line.isprintable() for line in lines)


def test_the_number_of_names_is_limited(tmp_path: Path) -> None:
    rows = [{"prompt": f"{k}", "completion": "b", f"key {k}": 1} for k in range(1500)]
    _, report = read_records(write(tmp_path, rows))
    assert len(report.unused) == 1001 and report.unused["others"] == 500
    assert len(next(report.noted())) < 2000
