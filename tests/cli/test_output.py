"""Output of the commands: text or, with --json, exactly one document on standard output."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from redistill.cli.main import main
from redistill.cli.output import print_json
from redistill.cli.parsers import build_parser
from redistill.config.methods import METHODS
from redistill.config.run import decode_run, encode_run, load_config
from redistill.data.tasks import TASKS
from redistill.runs.run import RunResult
from redistill.runs.sweep import SweepResult
from redistill.storage import files
from tests.cli.test_help import pages
from tests.reports.fabricated import write_run, write_sweep
from tests.worlds import rows, tiny_run, write_rows

Document = Callable[..., dict[str, Any]]


@pytest.fixture
def document(capfd: pytest.CaptureFixture[str]) -> Document:
    """Run a command with --json; returns the one document that it prints."""

    def printed(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        assert main([*map(str, arguments), "--json"]) == code
        found: dict[str, Any] = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
        assert next(iter(found.items())) == ("schema", 1)
        return found

    return printed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and its models and data."""
    folder = tmp_path_factory.mktemp("output")
    run = tiny_run(folder, "sft", training={"updates": 1}, optimiser={"learning_rate": 1e-5})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(encode_run(run)), encoding="utf-8")
    return folder


def test_every_command_takes_json() -> None:
    leaves = [page for page in pages(build_parser()) if page.get_default("command") is not None]
    assert len(leaves) == 30
    assert all("--json" in page._option_string_actions for page in leaves)


# --- the commands -------------------------------------------------------------------------------------------------------


def test_methods_lists_methods_and_tasks(document: Document) -> None:
    found = document("methods")
    assert [method["name"] for method in found["methods"]] == list(METHODS)
    assert [task["name"] for task in found["tasks"]] == list(TASKS)
    assert found["methods"][0]["summary"] == METHODS["sft"].summary


def test_methods_prints_all_methods_and_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*METHODS, *TASKS))


def test_config_prints_a_recipe_of_the_same_run(
    world: Path, tmp_path: Path, document: Document, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = load_config(world / "recipe.yaml", ["training.updates=7"])
    assert main(["config", str(world / "recipe.yaml"), "training.updates=7"]) == 0
    assert decode_run(yaml.safe_load(capfd.readouterr().out), "printed") == expected
    printed = tmp_path / "printed.json"
    printed.write_text(json.dumps(document("config", world / "recipe.yaml", "training.updates=7")))
    assert load_config(printed) == expected


def test_a_run_prints_its_folders_and_scores(world: Path, tmp_path: Path, document: Document) -> None:
    out = tmp_path / "out"
    found = document("run", world / "recipe.yaml", "--out", out)
    assert found == {
        "schema": 1,
        "folder": str(out),
        "model": str(out / "model"),
        "report": str(out / "report.html"),
        "scores": files.read_json(out / "scores.json"),
    }
    assert document("train", world / "recipe.yaml", "--out", out) == {"schema": 1, "path": str(out / "model")}
    short = ["--seeds", "10", "--response-tokens", "4"]
    found = document("evaluate", out, "--data", f"toy={world / 'test.jsonl'}", "--out", tmp_path / "scores", *short)
    assert found["path"] == str(tmp_path / "scores" / "scores.json")
    assert found["scores"] == files.read_json(Path(found["path"]))


def test_a_report_prints_its_path_and_summary(tmp_path: Path, document: Document) -> None:
    folder = write_run(tmp_path / "run", "mine", text="\x1b[31m")
    found = document("report", folder)
    assert found["path"] == str(folder / "report.html") and (folder / "report.html").is_file()
    assert {row["role"] for row in found["summary"]} == {"teacher", "before", "student"}


def test_a_comparison_prints_tables_and_full_figures(tmp_path: Path, document: Document) -> None:
    folder, output = write_sweep(tmp_path / "sweep", {"sft": 0.0, "mgsr": 2.0}), tmp_path / "compare.md"
    found = document("compare", folder, "-o", output)
    assert found["files"] == [str(output)] and output.is_file()
    assert found["baseline"] == "sft" and found["tables"][0]["key"] == "scores"
    assert {record["model"] for record in found["records"]} >= {"sft", "mgsr"}
    assert found["budgets"]["unequal"] == []


def test_a_sweep_lists_its_runs(world: Path, tmp_path: Path, document: Document) -> None:
    recipe, out = tmp_path / "table.yaml", tmp_path / "out"
    tree = {key: value for key, value in encode_run(tiny_run(world, "sft")).items() if key not in ("name", "method", "out")}
    table = {"name": "table", "base": tree, "rows": {"a": {"method": "sft"}, "b": {"method": "kd"}}, "seeds": [1]}
    files.write_text(recipe, yaml.safe_dump(table))
    found = document("sweep", recipe, "--out", out, "--dry-run")
    assert (found["name"], found["folder"]) == ("table", str(out))
    runs = [{"label": name, "seed": 1, "folder": str(out / f"{name}-seed1"), "status": "waiting"} for name in "ab"]
    assert found["runs"] == runs and not out.exists()


def test_a_finished_sweep_prints_the_paths_of_its_comparisons(
    tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finished(plan: Any, *, jobs: int | None, on: str) -> SweepResult:
        print("a table")
        return SweepResult([tmp_path / "compare.html"], [])

    monkeypatch.setattr("redistill.runs.sweep.run_sweep", finished)
    recipe = Path(__file__).parents[2] / "recipes" / "table1-toy.yaml"
    assert document("sweep", recipe, "--out", tmp_path)["files"] == [str(tmp_path / "compare.html")]


def test_doctor_prints_20_checks_and_its_exit_code_tells_findings(
    world: Path, document: Document, capfd: pytest.CaptureFixture[str]
) -> None:
    found = document("doctor", world / "recipe.yaml")
    assert [check["number"] for check in found["checks"]] == list(range(1, 21))
    assert found["findings"] == 0 and {check["status"] for check in found["checks"]} <= {"passed", "not examined"}
    found = document("doctor", world / "recipe.yaml", "optimiser.warmup_updates=1", code=1)
    assert [check["number"] for check in found["checks"] if check["findings"]] == [20]
    assert main(["doctor", str(world / "recipe.yaml"), "training.save_every=9"]) == 1
    printed = capfd.readouterr()
    assert "20 found: training.save_every is longer than the run" in printed.out
    assert "doctor: loading the models" in printed.err and "doctor: 1 finding; " in printed.err.splitlines()[-1]


def test_doctor_without_a_recipe_describes_the_machine(
    tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDISTILL_CACHE", str(tmp_path / "cache"))
    found = document("doctor")
    assert found["versions"]["torch"] == torch.__version__ and found["findings"] == []
    assert set(found["disks"]) == {"hub cache", "redistill cache", "current folder"}
    assert found["matmul_flops"]["float32"] > 0 and "HF_HUB_OFFLINE" in found["hub"]
    assert list(tmp_path.iterdir()) == []


def test_doctor_with_a_row_needs_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--row", "sft"]) == 2
    assert "needs a sweep" in capsys.readouterr().err


def test_data_check_prints_the_document_also_for_faulty_data(tmp_path: Path, document: Document) -> None:
    sound = write_rows(tmp_path / "sound.jsonl", rows(3))
    assert [source["sound"] for source in document("data", "check", sound)["sources"]] == [True]
    faulty = write_rows(tmp_path / "faulty.jsonl", [*rows(3), {"x": 1}])
    assert [source["sound"] for source in document("data", "check", faulty, code=2)["sources"]] == [False]


def test_a_fetched_model_prints_its_path(tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redistill.models.fetch.fetch_smollm2", lambda target: target)
    assert document("models", "fetch", "smollm2", "--to", tmp_path) == {"schema": 1, "path": str(tmp_path)}


# --- all commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "demo"])
def test_output_of_libraries_does_not_enter_the_document(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    def noisy(*arguments: object, **options: object) -> RunResult:
        print("a library's line")
        return RunResult(folder=tmp_path, model=tmp_path / "model", scores={"datasets": {}}, report=tmp_path / "r.html")

    monkeypatch.setattr("redistill.runs.run.distill", noisy)
    monkeypatch.setattr("redistill.runs.demo.demo", noisy)
    recipe = [str(world / "recipe.yaml")] if command == "run" else []
    assert main([command, *recipe, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["scores"] == {"datasets": {}}
    assert printed.err == "a library's line\n"


def test_only_the_first_of_several_processes_prints(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("redistill.runs.run.evaluate_model", lambda *arguments, **options: {"datasets": {}})
    for ending in ([], ["--json"]):
        arguments = [str(world / "student"), "--data", "toy=x.jsonl", "--out", str(tmp_path)]
        assert main(["evaluate", *arguments, *ending]) == 0
        assert capsys.readouterr().out == ""


def test_an_error_leaves_standard_output_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none"), "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("redistill: ") and printed.err.count("\n") == 1


def test_secrets_are_masked_and_control_characters_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_json(argparse.Namespace(stdout=sys.stdout), {"a": "\x1b[31m https://me:secret@host/x"})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and json.loads(printed)["a"] == "\x1b[31m https://***@host/x"


def test_a_reader_that_has_exited_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert main(["methods", "--json"]) == 0


@pytest.fixture(autouse=True, scope="module")
def _without_gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield
