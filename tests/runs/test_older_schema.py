"""Run folders of an older schema: reported and compared, evaluated if trained, never resumed.

The folder was written by commit 98f02f3: MGSR in the world of tests/worlds.py, 3 updates, 2 test sets, 2 seeds of evaluation.
Tensors, the student and the page are left out.
"""

import shutil
from pathlib import Path

import pytest

from redistill import __version__
from redistill.cli.main import main
from redistill.config.run import Run, load_config
from redistill.config.schema import SCHEMA
from redistill.errors import CheckpointError, ConfigError
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report, summary_table
from redistill.runs import sweep
from redistill.runs.folder import RUN_FILE, check_owner
from redistill.storage import files
from redistill.training import checkpoint

OLDER = Path(__file__).parents[1] / "reports" / "data" / "run-98f02f3"
COMMIT = "98f02f3c12e22235276ed55d024710a3f972cb41"


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy of the folder."""
    return Path(shutil.copytree(OLDER, tmp_path / "older"))


def with_entries(folder: Path, **entries: object) -> Path:
    """The folder, with entries of its run.json replaced."""
    files.write_json(folder / RUN_FILE, {**files.read_json(folder / RUN_FILE), **entries})
    return folder


def config_of(folder: Path) -> Run:
    return load_config(folder / RUN_FILE, [f"out={folder}"])


def test_the_folder_has_schema_1(older: Path) -> None:
    held = files.read_json(older / RUN_FILE)
    assert (held["schema"], held["commit"], held["status"]) == (1, COMMIT, "finished")
    assert SCHEMA > 1


def test_report_supports_schema_1(older: Path) -> None:
    page = build_report(older).read_text(encoding="utf-8")
    assert "Reproduce this run" in page and COMMIT[:7] in page
    scores = {(row["model"], row["dataset"]): row["rouge_l"] for row in summary_table(older)}
    assert scores["tiny", "toy"] == pytest.approx((0.0 + 25 / 3) / 2)
    assert {model for model, _ in scores} == {"tiny", "teacher", "before training"}


def test_compare_supports_it_beside_a_run_of_the_current_schema(older: Path, tmp_path: Path) -> None:
    current = with_entries(Path(shutil.copytree(older, tmp_path / "current")), schema=SCHEMA, method="other", name="other")
    output = tmp_path / "compare.md"
    build_comparison([older, current], [output])
    table = output.read_text(encoding="utf-8")
    assert "mgsr" in table and "other" in table


@pytest.mark.parametrize("status", ["running", "trained", "finished"])
def test_without_a_trained_student_it_is_not_resumed(older: Path, status: str, capsys: pytest.CaptureFixture[str]) -> None:
    with_entries(older, status=status)
    before = {path: path.read_bytes() for path in older.rglob("*") if path.is_file()}
    for command in ("run", "train"):
        assert main([command, str(older / RUN_FILE), "--out", str(older)]) == 2
    lines = capsys.readouterr().err.splitlines()
    what = "a run without its model" if status == "finished" else "an unfinished run"
    limit = f"contains {what} of schema 1; redistill {__version__} resumes schema {SCHEMA} only"
    remedy = f"finish the run with the version that wrote it (redistill '0.1.0', commit '{COMMIT}'), or choose another `out`"
    assert lines == [f"redistill: {older}: {limit}; {remedy}"] * 2
    assert {path: path.read_bytes() for path in older.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("entry", [None, [], "0.1.0", {"redistill": 1}])
def test_a_folder_without_a_recorded_version_is_rejected(older: Path, entry: object) -> None:
    with pytest.raises(ConfigError, match=r"finish the run with the version that wrote it \(not recorded\)"):
        check_owner(config_of(with_entries(older, versions=entry, commit=None)))


def test_a_sweep_does_not_resume_it_either(older: Path) -> None:
    assert sweep._status(config_of(older)) == "finished"
    with pytest.raises(ConfigError, match="contains an unfinished run of schema 1"):
        sweep._status(config_of(with_entries(older, status="running")))


def test_with_a_trained_student_it_belongs_to_its_run(older: Path) -> None:
    files.write_json(files.make_folder(older / "model") / "config.json", {})
    assert check_owner(config_of(older))
    with pytest.raises(ConfigError, match=r"contains another run \(seed is 3 there and 4 here\)"):
        check_owner(load_config(older / RUN_FILE, [f"out={older}", "seed=4"]))


def test_a_folder_of_a_newer_schema_is_rejected_even_if_trained(older: Path) -> None:
    config = config_of(older)
    files.write_json(files.make_folder(older / "model") / "config.json", {})
    with_entries(older, schema=SCHEMA + 1, versions={"redistill": "9.1.0"})
    with pytest.raises(ConfigError, match=rf"run.json: schema = {SCHEMA + 1}: .*; install redistill '9.1.0', which wrote it"):
        check_owner(config)


def test_its_checkpoints_are_not_loaded(older: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-3: has schema 1; .*; finish the run with the version that wrote it"):
        checkpoint.load(older / "checkpoints")
