"""The run folder: leftovers are removed, and links, locks and other runs' files are rejected in one line."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import Run, encode_run
from redistill.config.schema import SCHEMA
from redistill.evaluation.folder import RESPONSES
from redistill.runs.folder import RUN_FILE, sole_use
from redistill.runs.opened import make_accelerator
from redistill.storage import files
from redistill.storage.lock import LOCK, locked
from tests.worlds import tiny_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A recipe `recipe.yaml` and its run folder, which exists."""
    config = tiny_run(tmp_path, "sft")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    config.folder.mkdir()
    return config


def refusal(run: Run, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code of `redistill run`, and the only line that it prints."""
    code = main(["run", str(run.folder.parent / "recipe.yaml")])
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1, printed
    return code, printed.err


def test_partial_files_of_a_killed_run_are_removed(run: Run) -> None:
    answers = ["", "before", "teacher"]
    for place in (*answers, *(f"{place}/{RESPONSES}".strip("/") for place in answers), "checkpoints"):
        (run.folder / place / f"{files.TEMPORARY}step-3-abc" / "deep").mkdir(parents=True)
        (run.folder / place / f"{files.TEMPORARY}scores.json-abc").write_text("{")
    (run.folder / files.TEMPORARY / "elsewhere").mkdir(parents=True)
    (run.folder.parent / "precious").mkdir()
    (run.folder.parent / "precious" / "a.txt").write_text("mine")
    (run.folder / f"{files.TEMPORARY}link").symlink_to(run.folder.parent / "precious")
    with sole_use(run.folder, make_accelerator("fp32")):
        assert [path.name for path in run.folder.rglob("*") if path.name.startswith(files.TEMPORARY)] == []
    assert (run.folder.parent / "precious" / "a.txt").read_text() == "mine"


def test_a_run_folder_may_be_a_symbolic_link(run: Run) -> None:
    target = run.folder.rename(run.folder.with_name("scratch"))
    run.folder.symlink_to(target)
    with sole_use(run.folder, make_accelerator("fp32")):
        assert (target / LOCK).exists()
    assert run.folder.is_symlink() and list(target.iterdir()) == []


@pytest.mark.parametrize("name", ["checkpoints", "before", "teacher", RESPONSES, f"before/{RESPONSES}"])
def test_a_symbolic_link_in_the_run_folder_is_rejected_and_its_target_unchanged(
    run: Run, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    elsewhere = run.folder.parent / "elsewhere"
    (elsewhere / f"{files.TEMPORARY}step-1").mkdir(parents=True)
    (run.folder / name).parent.mkdir(exist_ok=True)
    (run.folder / name).symlink_to(elsewhere)
    if name == "checkpoints":
        (run.folder / RUN_FILE).write_text(f'{{"schema": {SCHEMA}, "config": {files.json_bytes(encode_run(run)).decode()}}}')
    code, line = refusal(run, capsys)
    assert (code, line) == (
        2,
        f"redistill: {run.folder / name}: is a symbolic link, and a run writes only inside its folder; replace it by a "
        "folder\n",
    )
    assert [path.name for path in elsewhere.iterdir()] == [f"{files.TEMPORARY}step-1"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.name)], ids=["folder", "link to itself"])
def test_a_lock_that_cannot_be_acquired_is_an_error_of_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    make(run.folder / LOCK)
    code, line = refusal(run, capsys)
    assert code == 2 and line.startswith(f"redistill: {run.folder / LOCK}: could not be written")


def test_a_held_lock_that_cannot_be_read_is_an_error_of_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(run.folder):
        (run.folder / LOCK).write_bytes(b"\xff")
        code, line = refusal(run, capsys)
    assert code == 75 and line.startswith(f"redistill: {run.folder}: is in use by another process")


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_an_invalid_run_file_is_an_error_of_one_line(run: Run, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (run.folder / RUN_FILE).write_text(text)
    code, line = refusal(run, capsys)
    assert code == 2 and line.startswith(f"redistill: {run.folder / RUN_FILE}: ")


def test_a_file_at_the_path_of_the_folder_is_an_error_of_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.folder.rmdir()
    run.folder.write_text("mine")
    code, line = refusal(run, capsys)
    assert code == 2 and str(run.folder) in line and run.folder.read_text() == "mine"


def test_lines_are_not_appended_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(files.OutputError, match=r"metrics\.jsonl: 12 bytes could not be written .*; remove the link"):
        files.append_line(tmp_path / "metrics.jsonl", {"step": 1})
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(("option", "umask"), [("--private", 0o022), (None, 0o027), (None, 0o022)])
def test_the_modes_of_files_follow_the_umask_and_the_option(
    run: Run, capsys: pytest.CaptureFixture[str], option: str | None, umask: int
) -> None:
    """The bits in `umask` are never set; with --private none of those of group and others."""
    old = os.umask(umask)
    run.folder.rmdir()
    try:
        assert main(["run", str(run.folder.parent / "recipe.yaml"), *([option] if option else [])]) == 0
    finally:
        os.umask(old)
    forbidden = 0o077 if option else umask
    modes = {path: path.stat().st_mode & 0o777 for path in (run.folder, *run.folder.rglob("*"))}
    assert len(modes) > 10 and {path: oct(mode) for path, mode in modes.items() if mode & forbidden} == {}
    if not option:
        assert (run.folder / RUN_FILE).stat().st_mode & 0o777 == 0o666 & ~umask
