"""Known test sets are read from their hub file or a local file; other names need a local file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redistill.data import sources
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


def replace_downloads(monkeypatch, path_of):
    """Replaces downloads of the hub by the file that `path_of` returns."""
    monkeypatch.setattr(sources, "unreachable", str)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, **options: str(path_of(name, file)))


@pytest.fixture
def hub(monkeypatch, local):
    """Replaces downloads by the local file; the list of requests."""
    requests = []
    replace_downloads(monkeypatch, lambda name, file: requests.append((name, file)) or local)
    return requests


@pytest.mark.parametrize("name", TASKS)
def test_a_known_task_is_read_from_its_own_file_on_the_hub(name, hub):
    assert len(load_task(name)[0]) == 3
    assert hub == [(TASKS[name].hub_name, TASKS[name].hub_file)]


def test_only_the_rows_that_the_papers_evaluate_are_taken_from_the_hub(monkeypatch, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_text((json.dumps(ROWS[0]) + "\n") * 10_005, encoding="utf-8")
    replace_downloads(monkeypatch, lambda name, file: many)
    assert len(load_task("unnatural")[0]) == 10_000
    assert len(load_task("unnatural", many)[0]) == 10_005


@pytest.mark.parametrize("name", TASKS)
def test_line_break_marks_are_replaced_in_hub_files_and_kept_in_local_files(name, hub, local):
    row = {"instruction": "Sum up.<n>Be brief.", "input": "One.<n>Two.", "output": "1<n>2"}
    local.write_text(json.dumps(row) + "\n", encoding="utf-8")
    (record,) = load_task(name)[0]
    assert record.prompt == Instruction("Sum up.\nBe brief.", "One.\nTwo.") and record.references == ("1<n>2",)
    assert load_task(name, local)[0][0].prompt == Instruction(row["instruction"], row["input"])


@pytest.mark.parametrize("name", ["dolly", "mine"])
def test_bad_rows_within_the_limit_are_listed(name, local, tmp_path):
    local.write_text(local.read_text() + "{}\n", encoding="utf-8")
    records, report = load_task(name, local, max_bad_rows=1, rejected=tmp_path / "rejected.jsonl")
    assert len(records) == 3 and [row.line for row in report.rejected] == [4]
    assert [row["line"] for row in read_lines(tmp_path / "rejected.jsonl")] == [4]
    with pytest.raises(DataError, match=r"test\.jsonl:4"):
        load_task(name, local)


@pytest.mark.parametrize("name", ["dolly", "any other name"])
def test_a_path_replaces_the_hub_file(name, local, hub):
    assert len(load_task(name, local)[0]) == len(load_task(name, local.parent)[0]) == 3 and hub == []


def test_an_unknown_task_without_a_path_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match="no test set 'dollie'; use 'dolly'"):
        load_task("dollie")


def test_min_reference_words_is_optional_and_applied_before_the_limit(local):
    assert len(load_task("unnatural", local)[0]) == 3
    assert [r.record_id for r in load_task("unnatural", local, min_reference_words=11)[0]] == ["test:2", "test:3"]
    assert [r.record_id for r in load_task("unnatural", local, 1, min_reference_words=11)[0]] == ["test:2"]
    with pytest.raises(DataError, match="none of 3 rows has a reference of 99 words"):
        load_task("unnatural", local, min_reference_words=99)


def test_every_task_has_a_description_and_an_example_row():
    for name, task in TASKS.items():
        assert task.name == name and task.description
        module = __import__(f"redistill.data.tasks.{name}", fromlist=["TASK"])
        columns = dict(task.columns)
        assert module.TASK is task
        assert all(f'"{columns.get(key, key)}"' in module.__doc__ for key in ("instruction", "output"))


def test_gsm8k_is_read_with_its_own_columns_from_the_hub_and_from_a_file(monkeypatch, tmp_path):
    path = tmp_path / "test.parquet"
    answer = "3 * 12 = <<3*12=36>>36\n#### 36"
    pq.write_table(pa.table({"question": ["3 * 12?"], "answer": [answer]}), path)
    replace_downloads(monkeypatch, lambda name, file: path)
    for (record,) in (load_task("gsm8k")[0], load_task("gsm8k", path)[0]):
        assert record.prompt == Instruction("3 * 12?") and record.references == (answer,)
