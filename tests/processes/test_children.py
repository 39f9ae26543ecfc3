"""Child processes import nothing from the current folder, whose files may be a stranger's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import redistill
from redistill.models import fetch
from redistill.processes.children import child_environment, python_module
from redistill.runs.executors.local import Local
from redistill.runs.jobs import Job

SHADOWED = ["mpmath", "numbers", "random", "typing_extensions", "torch", "yaml", "pip", "sitecustomize", "usercustomize"]
"""Modules that Python, torch, pip or redistill imports."""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: every module in it leaves a mark."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'mark')!r}).touch()\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's import path; it imports modules that also exist in the current folder, itself and in a child."""
    (tmp_path / "trusted").mkdir()
    imports = "import numbers, random"
    text = f"{imports}, subprocess, sys\nsubprocess.run([sys.executable, '-c', '{imports}'], check=True)\n"
    (tmp_path / "trusted" / "program.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "trusted"))
    return "program"


def test_a_module_in_the_current_folder_would_run_without_the_option(foreign: Path, program: str, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([sys.executable, "-m", program], env=clean, check=True, capture_output=True)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("entries", ["{}", ":{}", "{}:", "::{}", "/nowhere::{}"])
def test_children_and_their_children_import_nothing_from_the_current_folder(
    foreign: Path, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", entries.format(os.environ["PYTHONPATH"]))
    done = subprocess.run(python_module(program), env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mark").exists()


def test_a_relative_entry_of_the_import_path_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", "", "/other"]))
    assert child_environment()["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "mine"), "/other"])


def test_variables_of_this_process_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (
        child_environment({"OMP_NUM_THREADS": "1", "ONE_MORE": "1"}).items()
        >= {"OMP_NUM_THREADS": "3", "ONE_MORE": "1"}.items()
    )


def test_the_runs_of_a_sweep_import_nothing_from_the_current_folder(foreign: Path, tmp_path: Path) -> None:
    job = Job(name="a", command=python_module("redistill", "methods", "--json"), log=tmp_path / "log.txt")
    outcome = Local(limit=1).execute([job], lock=(), on_start=lambda job: None, on_end=lambda *ended: None)
    assert outcome.codes == {"a": 0}, job.log.read_text()
    assert not (tmp_path / "mark").exists()


def test_pip_is_not_imported_from_the_current_folder(foreign: Path, tmp_path: Path) -> None:
    command = [*fetch._pip(tmp_path), "--version"]
    subprocess.run(command, env=child_environment(), check=True, capture_output=True)
    assert not (tmp_path / "mark").exists()


def test_python_m_redistill_imports_no_library_from_the_current_folder(foreign: Path, tmp_path: Path) -> None:
    """Modules that Python itself imports before redistill starts are not protected; SECURITY.md names -P for these."""
    for name in ("numbers", "random"):
        (foreign / f"{name}.py").unlink()
    source = str(Path(redistill.__file__).parents[1])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-m", "redistill", "methods"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mark").exists()
