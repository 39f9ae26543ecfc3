"""Export of scores: the same comparison as from the original folders, and no texts."""

import json
from pathlib import Path

import pytest

from redistill.cli.main import main
from redistill.deploy.scores import export_scores
from redistill.errors import CheckpointError, OutputError
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report
from tests.reports.fabricated import write_json, write_run, write_sweep

TEXT = "a-text-of-the-test-set"


def sweep_of(folder: Path) -> Path:
    return write_sweep(folder, {"sft": 0.0, "kd": 4.0, "mgsr": 1.0}, prompts=15)


def tables(folder: Path, out: Path) -> list[str]:
    """Return the comparison as CSV, Markdown and LaTeX."""
    outputs = [out / f"compare.{suffix}" for suffix in ("csv", "md", "tex")]
    build_comparison([folder], outputs, baseline="sft")
    return [path.read_text(encoding="utf-8") for path in outputs]


def test_a_sweep_is_compared_as_from_its_own_folder(tmp_path):
    sweep = sweep_of(tmp_path / "sweep")
    exported = export_scores(sweep, tmp_path / "scores")
    assert exported.command == f"redistill compare {tmp_path / 'scores'}"
    assert tables(exported.folder, tmp_path / "new") == tables(sweep, tmp_path / "old")


def test_an_export_of_an_export_is_the_same(tmp_path):
    first = export_scores(sweep_of(tmp_path / "sweep"), tmp_path / "first").folder
    second = export_scores(first, tmp_path / "second").folder
    assert {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()} == {
        path.relative_to(second): path.read_bytes() for path in second.rglob("*") if path.is_file()
    }


def test_no_text_of_a_test_set_is_exported_and_each_prompt_has_its_scores(tmp_path):
    run = write_run(tmp_path / "run", "mine", text=TEXT)
    assert all(TEXT in path.read_text() for path in run.rglob("responses/*.jsonl"))
    folder = export_scores(run).folder
    assert folder == run / "export" / "scores"
    assert not any(TEXT in path.read_text() for path in folder.rglob("responses/*.jsonl"))
    for path in folder.rglob("responses/*.jsonl"):
        original = [json.loads(line) for line in (run / path.relative_to(folder)).read_text().splitlines()]
        exported = [json.loads(line) for line in path.read_text().splitlines()]
        assert [(line["id"], line["rouge_l"]) for line in exported] == [(line["id"], line["rouge_l"]) for line in original]
        assert not {"prompt", "response", "references"} & set().union(*exported)
    assert export_scores(run).files == export_scores(run).files  # an earlier export is replaced


def test_a_report_of_exported_scores_is_built(tmp_path):
    folder = export_scores(write_run(tmp_path / "run", "mine"), tmp_path / "scores").folder
    page = build_report(folder, out=tmp_path / "report.html")
    assert "ROUGE-L" in page.read_text(encoding="utf-8")


def test_unfinished_runs_of_a_sweep_are_left_out(tmp_path):
    sweep = sweep_of(tmp_path / "sweep")
    lost = next(sweep.glob("kd*"))
    (lost / "scores.json").unlink()
    folder = export_scores(sweep, tmp_path / "scores").folder
    assert not (folder / lost.name).exists() and (folder / "sweep.json").is_file()


@pytest.mark.parametrize("kind", ["nothing", "unfinished", "outside"])
def test_a_folder_without_scores_is_one_line(kind, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    if kind == "unfinished":
        write_json(folder / "run.json", {"schema": 2})
    elif kind == "outside":
        write_run(tmp_path / "elsewhere", "mine")
        write_json(folder / "sweep.json", {"runs": [{"label": "mine", "seed": 1, "folder": "../elsewhere"}]})
    with pytest.raises((CheckpointError, OutputError)):
        export_scores(folder, tmp_path / "scores")
    assert main(["export", str(folder), "--to", "scores"]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "scores").exists()


@pytest.mark.parametrize("option", [["--dtype", "f16"], ["--push", "me/mine"]])
def test_options_for_weights_are_rejected(option, tmp_path, capsys):
    run = write_run(tmp_path / "run", "mine")
    assert main(["export", str(run), "--to", "scores", *option]) == 2
    assert option[0] in capsys.readouterr().err and not (run / "export").exists()


def test_a_used_output_folder_is_not_overwritten(tmp_path):
    run = write_run(tmp_path / "run", "mine")
    with pytest.raises(OutputError, match="must be a new or an empty folder"):
        export_scores(run, run)
