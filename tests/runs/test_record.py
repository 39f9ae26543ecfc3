"""The environment of a run, for run.json."""

import subprocess
from pathlib import Path

import pytest

import redistill
from redistill.runs.record import commit, machine, versions
from redistill.storage import files


def test_the_machine_is_described_in_json(tmp_path: Path) -> None:
    described = machine()
    files.write_json(tmp_path / "machine.json", described)
    assert described["cpu"] and described["cores"] >= 1 and described["memory_bytes"] > 2**28
    assert {"python", "platform", "torch_threads", "accelerators"} <= described.keys()


def test_versions_list_redistill_and_installed_packages() -> None:
    found = versions()
    assert found["redistill"] == redistill.__version__ and "torch" in found and "transformers" in found


def test_the_commit_of_a_checkout_and_its_dirty_mark(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert commit(tmp_path) is None
    git("init")
    assert commit(tmp_path) is None  # no commit yet
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-m", "first")
    (tmp_path / "untracked.txt").write_text("")
    assert commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "a.txt").write_text("2")
    assert commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
