"""The commands of a page run in the order of the page.

Two pages are executed in every change, and all of them with REDISTILL_PAGES=whole (`make pages`).
"""

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
from tests.page_commands import (
    DOCS,
    EXAMPLE_RUN,
    NOT_EXECUTED,
    TUTORIAL,
    lines,
    masked,
    pages,
    prepare,
    reason_not_executed,
    replaced,
    shortened,
    shown_output,
)
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


def execute(line: str, page: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, bool]:
    """Run one line of a page; returns what it prints, and whether it succeeds."""
    before, _, last = line.rpartition(" | ")
    words = shlex.split(last, comments=True)
    if words[0] != "redistill":
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        return done.stdout + done.stderr, done.returncode == 0
    text = "Name a river.\n"
    if before:
        text = subprocess.run(["bash", "-c", before], check=True, capture_output=True, text=True).stdout
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code = main(shortened(words[1:], page))
    printed = capsys.readouterr()
    return printed.out + printed.err, code == 0 or (words[1] in FINDINGS and code == 1)


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
    if any(" model.gguf" in line for line in executed):
        assert main(["export", str(prepared / "models/small"), "--to", "gguf", "--out", str(folder / "gguf")]) == 0
        (folder / "gguf/model.gguf").rename(folder / "model.gguf")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "160")
    script = page_commands.script_of(page, folder)
    failed, printed = {}, []
    with contextlib.nullcontext() if script is None else serving(script) as server:
        for line in executed:
            if recipe := page_commands.created(line):
                Path(recipe).unlink(missing_ok=True)
            line = replaced(line, server.url if server else page_commands.ADDRESS)
            text, succeeds = execute(line, page, capsys, monkeypatch)
            printed += text.splitlines()
            failed |= {} if succeeds else {line: text[-600:]}
    assert not failed, "\n".join(f"{line}\n{text}" for line, text in failed.items())
    if page == TUTORIAL:
        assert shown_output(page) - set(map(masked, printed)) == set()


def test_the_error_of_the_tutorial_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```text\n(redistill: .*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)
    assert main(["config", "smollm2-sample", "training.update=100"]) == 2
    assert capsys.readouterr().err == block


def test_each_command_that_is_not_executed_is_on_a_page() -> None:
    found = {reason_not_executed(line) for page in pages() for line in lines(page)}
    assert set(NOT_EXECUTED) - found == set()
    assert all(NOT_EXECUTED.values())


def test_the_numbers_and_the_lines_of_tables_of_an_output_are_masked() -> None:
    assert masked("│ weights            │   578 MB │") == masked("│ weights │ 1.2 kB │") == "weights # B"
    assert masked("span 1.523e-05  2 tokens/s") == masked("span 0.0051  31 tokens/s")
    assert masked("step 6: ROUGE-L 7.85") != masked("step 6: ROUGE-L")
