"""The commands of every page run in the order of the page: two pages in every change, all of them with REDISTILL_PAGES=whole."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from redistill.cli.main import main
from tests import page_commands
from tests.page_commands import DOCS, EXAMPLE_RUN, NOT_EXECUTED, lines, pages, prepare, reason_not_executed, replaced, shortened
from tests.servers.fake import serving

SAMPLE = [DOCS / "adding.md", DOCS / "data.md"]
CHOSEN = pages() if os.environ.get("REDISTILL_PAGES") == "whole" else SAMPLE
FINDINGS = {"doctor"}
"""Commands that return 1 if they find something."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "prepared"
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def example(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("example") / "prepared"
    shutil.copytree(prepared, folder)
    with contextlib.chdir(folder):
        assert main(EXAMPLE_RUN) == 0
    return folder / "example"


def execute(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run one line of a page; returns what it prints."""
    before, _, last = line.rpartition(" | ")
    words = shlex.split(last, comments=True)
    if words[0] != "redistill":
        return subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True).stdout
    text = "Name a river.\n"
    if before:
        text = subprocess.run(["bash", "-c", before], check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    arguments = shortened(words[1:])
    code = main(arguments)
    printed = capsys.readouterr()
    assert code in ({0, 1} if words[1] in FINDINGS else {0}), (arguments, code, printed.err[-2000:])
    return printed.out + printed.err


@pytest.mark.parametrize("page", CHOSEN, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_command_of_a_page_runs(
    page: Path,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    executed = [line for line in lines(page) if not reason_not_executed(line)]
    if needed := page_commands.runs_that_exist_before(executed):
        page_commands.copy_runs(request.getfixturevalue("example"), folder, needed)
    monkeypatch.chdir(folder)
    script = page_commands.script_of(page, folder)
    with contextlib.nullcontext() if script is None else serving(script) as server:
        for line in executed:
            execute(replaced(line, server.url if server else page_commands.ADDRESS), capsys, monkeypatch)


def test_each_command_that_is_not_executed_is_on_a_page() -> None:
    found = {reason_not_executed(line) for page in pages() for line in lines(page)}
    assert set(NOT_EXECUTED) - found == set()
    assert all(NOT_EXECUTED.values())
