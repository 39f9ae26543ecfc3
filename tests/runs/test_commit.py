"""The git commit of a checkout: its hash and its dirty mark; no program that the checkout names runs."""

import os
import subprocess
from pathlib import Path

import pytest

import redistill
from redistill.runs.commit import commit_of, own_commit


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init")
    (folder / "a.txt").write_text("1")
    (folder / ".gitattributes").write_text("*.txt filter=mine diff=mine\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_folder_without_a_commit_has_none(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git(tmp_path, "init")
    assert commit_of(tmp_path) is None


def test_the_commit_of_a_checkout_and_its_dirty_mark(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    (checkout / "untracked.txt").write_text("")
    os.utime(checkout / "a.txt")
    assert commit_of(checkout) == first
    (checkout / "a.txt").write_text("2")
    assert commit_of(checkout) == f"{first}-dirty"
    git(checkout, "add", "a.txt")
    assert commit_of(checkout) == f"{first}-dirty"


def test_packed_detached_and_linked_checkouts(checkout: Path, tmp_path: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    git(checkout, "pack-refs", "--all")
    assert commit_of(checkout) == first
    git(checkout, "worktree", "add", "-b", "other", str(tmp_path / "linked"))
    assert commit_of(tmp_path / "linked") == first
    (tmp_path / "linked" / "a.txt").write_text("2")
    assert (commit_of(tmp_path / "linked"), commit_of(checkout)) == (f"{first}-dirty", first)
    git(checkout, "checkout", "--detach")
    assert commit_of(checkout) == first


def test_the_index_is_not_written(checkout: Path) -> None:
    os.utime(checkout / "a.txt")
    before = (checkout / ".git" / "index").read_bytes()
    assert commit_of(checkout)
    assert (checkout / ".git" / "index").read_bytes() == before


@pytest.mark.parametrize(
    "setting",
    [
        "core.fsmonitor",
        "diff.external",
        "diff.mine.command",
        "diff.mine.textconv",
        "filter.mine.clean",
        "filter.mine.process",
        "core.pager",
        "core.sshCommand",
        "credential.helper",
        "core.alternateRefsCommand",
        "core.editor",
        "alias.diff",
    ],
)
def test_no_program_that_the_configuration_names_is_run(checkout: Path, tmp_path: Path, setting: str) -> None:
    mark, program = tmp_path / "mark", tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\ncat\n")
    program.chmod(0o755)
    first = git(checkout, "rev-parse", "HEAD")
    (checkout / ".git" / "config").open("a").write(f"[include]\n\tpath = {tmp_path / 'included'}\n")
    (tmp_path / "included").write_text("")
    git(
        checkout, "config", "--file", str(tmp_path / "included"), setting, f"!{program}" if "alias" in setting else str(program)
    )
    (checkout / "a.txt").write_text("2")
    assert commit_of(checkout) == f"{first}-dirty"
    assert not mark.exists()


@pytest.mark.parametrize("setting", ["core.fsmonitor", "diff.external", "filter.mine.clean"])
def test_git_itself_runs_programs_of_the_configuration(checkout: Path, tmp_path: Path, setting: str) -> None:
    program = tmp_path / "program.sh"
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'mark'}'\ncat /dev/null\n")
    program.chmod(0o755)
    git(checkout, "config", setting, str(program))
    (checkout / "a.txt").write_text("2")
    git(checkout, "diff")
    assert (tmp_path / "mark").exists()


def test_no_hook_is_run(checkout: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("post-index-change", "fsmonitor-watchman", "reference-transaction", "post-checkout"):
        hook = checkout / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
        hook.chmod(0o755)
    os.utime(checkout / "a.txt")
    assert commit_of(checkout)
    assert not mark.exists()


def test_only_a_checkout_of_redistill_is_read(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / "venv" / "site-packages" / "redistill" / "__init__.py"
    own = checkout / "src" / "redistill" / "__init__.py"
    for path in (installed, own):
        path.parent.mkdir(parents=True)
        path.write_text("")
    monkeypatch.setattr(redistill, "__file__", str(installed))
    assert own_commit() is None
    monkeypatch.setattr(redistill, "__file__", str(own))
    assert own_commit() == git(checkout, "rev-parse", "HEAD")


def test_without_git_there_is_no_commit(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(checkout) is None
