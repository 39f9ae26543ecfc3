"""Known test sets come from their own hub file, any of them from a local file, and other names need one."""

import json

import pytest

from redistill.data import reader
from redistill.data.tasks import TASKS, load_task
from redistill.errors import ConfigError, DataError
from redistill.records import Instruction
from redistill.storage.files import read_lines

ROWS = [{"instruction": f"Say {k} words.", "output": ["word " * k, "word"]} for k in (3, 11, 12)]


@pytest.fixture
def local(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def hub(monkeypatch, local):
    """Answers each download with the local file, and says what was asked for."""
    asked = []
    monkeypatch.setattr(reader, "_download", lambda name, file: asked.append((name, file)) or local)
    return asked


@pytest.mark.parametrize("name", TASKS)
def test_a_known_task_is_read_from_its_own_file_on_the_hub(name, hub):
    assert len(load_task(name)[0]) == 3
    assert hub == [(TASKS[name].hub_name, TASKS[name].hub_file)]


def test_only_the_rows_that_the_papers_evaluate_are_taken_from_the_hub(monkeypatch, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_text((json.dumps(ROWS[0]) + "\n") * 10_005, encoding="utf-8")
    monkeypatch.setattr(reader, "_download", lambda name, file: many)
    assert len(load_task("unnatural")[0]) == 10_000
    assert len(load_task("unnatural", many)[0]) == 10_005


@pytest.mark.parametrize("name", TASKS)
def test_the_hub_files_sign_of_a_line_break_becomes_one_and_your_own_is_kept(name, hub, local):
    row = {"instruction": "Sum up.<n>Be brief.", "input": "One.<n>Two.", "output": "1<n>2"}
    local.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = load_task(name)[0]
    assert record.prompt == Instruction("Sum up.\nBe brief.", "One.\nTwo.") and record.references == ("1<n>2",)
    assert load_task(name, local)[0][0].prompt == Instruction(row["instruction"], row["input"])


@pytest.mark.parametrize("name", ["dolly", "mine"])
def test_bad_rows_are_put_up_with_and_listed(name, local, tmp_path):
    local.write_text(local.read_text() + "{}\n", encoding="utf-8")
    records, report = load_task(name, local, max_bad_rows=1, rejected=tmp_path / "rejected.jsonl")
    assert len(records) == 3 and [row.line for row in report.rejected] == [4]
    assert [row["line"] for row in read_lines(tmp_path / "rejected.jsonl")] == [4]
    with pytest.raises(DataError, match=r"test\.jsonl:4"):
        load_task(name, local)


@pytest.mark.parametrize("name", ["dolly", "a set of my own"])
def test_a_path_takes_the_place_of_the_hub(name, local, hub):
    assert len(load_task(name, local)[0]) == len(load_task(name, local.parent)[0]) == 3 and hub == []


def test_an_unknown_task_without_a_path_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no task 'dollie'; did you mean 'dolly'"):
        load_task("dollie")


def test_short_references_are_kept_unless_asked_and_the_limit_comes_after(local):
    assert len(load_task("unnatural", local)[0]) == 3
    assert [r.record_id for r in load_task("unnatural", local, min_reference_words=11)[0]] == ["test:2", "test:3"]
    assert [r.record_id for r in load_task("unnatural", local, 1, min_reference_words=11)[0]] == ["test:2"]
    with pytest.raises(DataError, match="none of 3 rows has a reference of 99 words"):
        load_task("unnatural", local, min_reference_words=99)


def test_every_task_describes_itself_and_shows_a_row():
    for name, task in TASKS.items():
        assert task.name == name and task.description
        module = __import__(f"redistill.data.tasks.{name}", fromlist=["TASK"])
        assert module.TASK is task and '"instruction"' in module.__doc__ and '"output"' in module.__doc__
