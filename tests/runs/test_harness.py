"""`redistill evaluate --harness`: tasks of lm-evaluation-harness, without a download."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from redistill.cli.main import main
from tests.worlds import LLAMA, write_model, write_rows

has_harness = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the package lm_eval")
TASK = """
task: toy_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: ["yes", "no"]
metric_list:
  - metric: acc
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task file whose data is a local file, beside a model."""
    write_model(tmp_path / "model", LLAMA, 1)
    data = write_rows(tmp_path / "rows.jsonl", [{"question": f"Is {n} even?", "answer": n % 2} for n in range(6)])
    path = tmp_path / "toy.yaml"
    path.write_text(TASK.format(data=data), encoding="utf-8")
    return path


def evaluate(task: Path | str, folder: Path, *options: str) -> int:
    allowed = ["--allow-code", str(task)] if isinstance(task, Path) else []
    return main(["evaluate", str(folder / "model"), "--harness", str(task), "--out", str(folder / "out"), *options, *allowed])


@has_harness
def test_a_task_file_is_scored(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    assert evaluate(task, tmp_path) == 0
    assert "toy_choice" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "harness.json").read_text(encoding="utf-8"))
    own = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "model"), "dtype": "float32", "device": "cpu"},
        tasks=["toy_choice"],
        task_manager=TaskManager(include_path=str(tmp_path)),
    )
    assert found["results"]["toy_choice"]["acc,none"] == own["results"]["toy_choice"]["acc,none"]
    assert found["num_examples"] == {"toy_choice": 6}


@has_harness
def test_the_number_of_examples_is_limited(task: Path, tmp_path: Path) -> None:
    assert evaluate(task, tmp_path, "--limit", "2") == 0
    assert json.loads((tmp_path / "out" / "harness.json").read_text())["num_examples"] == {"toy_choice": 2}


@has_harness
def test_an_unknown_task_is_named(tmp_path: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("arc_hard", tmp_path) == 2
    assert capsys.readouterr().err == "redistill: --harness: no task arc_hard; list the tasks with lm_eval ls tasks\n"


@has_harness
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("task: [", "cannot be read as YAML"),
        ("dataset_path: json", "has no field `task`"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_named(
    tmp_path: Path, task: Path, capsys: pytest.CaptureFixture[str], text: str, fault: str
) -> None:
    task.write_text(text, encoding="utf-8")
    assert evaluate(task, tmp_path) == 2
    error = capsys.readouterr().err
    assert fault in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@has_harness
def test_a_task_file_is_used_only_if_it_is_allowed(tmp_path: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It can execute code: here a function beside it, and any template."""
    task.write_text("task: x\ndoc_to_text: !function own.text", encoding="utf-8")
    (tmp_path / "own.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    assert evaluate(str(task), tmp_path) == 2
    assert f"a task file can execute code, through its templates and functions; if you trust it, add --allow-code {task}" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@has_harness
def test_data_that_is_missing_is_an_error_of_one_line(tmp_path: Path, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").unlink()
    assert evaluate(task, tmp_path) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("redistill: --harness ")


def test_a_missing_package_is_named(
    tmp_path: Path, task: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lm_eval", "lm_eval.tasks"):  # an earlier test may have imported both
        monkeypatch.setitem(sys.modules, name, None)
    assert evaluate(task, tmp_path) == 2
    assert "needs the package lm_eval, which is not installed; run pip install 'redistill[eval]'" in capsys.readouterr().err


def test_something_to_evaluate_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "model", "--out", str(tmp_path / "out")]) == 2
    assert "needs --data TASK[=PATH], --harness TASK, or both" in capsys.readouterr().err
