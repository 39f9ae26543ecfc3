"""Standard streams that fail: a job ends as if undisturbed, and a command that prints ends quietly."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from redistill.config.run import encode_run
from redistill.storage import files
from tests.worlds import tiny_run

REDISTILL = [sys.executable, "-P", "-m", "redistill"]
UPDATES = 5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(encode_run(tiny_run(folder, "kd", training={"updates": UPDATES, "log_every": 1}))))
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path) -> list[float]:
    """The losses of a run whose streams work."""
    assert subprocess.run([*REDISTILL, "train", recipe, "--out", recipe.parent / "whole"], capture_output=True).returncode == 0
    return losses(recipe.parent / "whole")


def losses(folder: Path) -> list[float]:
    assert files.read_json(folder / "run.json")["status"] == "trained"
    assert (folder / "model" / "model.safetensors").is_file()
    return [line["loss"] for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]


def shell(line: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "$@" is a command of redistill; the exit code is that of redistill."""
    command = ["bash", "-c", f"set -o pipefail; {line}", "bash", *REDISTILL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "line",
    [
        '"$@" 2>&1 | head -1',
        '"$@" 2>&1 | true',
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" >&- 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" > /dev/full',
        '"$@" 2> /dev/full',
        '"$@" > /dev/full 2>&1',
        '"$@" --json >&-',
    ],
)
def test_training_does_not_depend_on_its_streams(recipe: Path, undisturbed: list[float], tmp_path: Path, line: str) -> None:
    done = shell(line, "train", recipe, "--out", tmp_path / "run")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert losses(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("lines", range(1, UPDATES, 2))
def test_training_continues_when_the_reader_exits_after_some_lines(
    recipe: Path, undisturbed: list[float], tmp_path: Path, lines: int
) -> None:
    child = subprocess.Popen(
        [*REDISTILL, "train", recipe, "--out", tmp_path / "run"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert child.stderr is not None
    for number, _ in enumerate(step_lines(child.stderr), 1):
        if number == lines:
            break
    child.stderr.close()
    assert child.wait(timeout=300) == 0
    assert losses(tmp_path / "run") == undisturbed


def step_lines(stream: Iterator[str]) -> Iterator[str]:
    return (text for text in stream if text.startswith("step "))


def test_a_signal_stops_a_run_whose_streams_are_closed(recipe: Path, tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*REDISTILL, "train", recipe, "training.updates=100000", "--out", tmp_path / "run"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    next(step_lines(child.stderr))
    child.stderr.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=300) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["methods", "--matrix"], ["--help"]])
@pytest.mark.parametrize("line", ['"$@" | true', '"$@" | head -1', '"$@" >&-'])
def test_printing_to_a_closed_pipe_ends_quietly(arguments: list[str], line: str) -> None:
    done = shell(line, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"]])
def test_printing_to_a_full_disk_is_an_error_of_one_line(arguments: list[str]) -> None:
    done = shell('"$@" > /dev/full', *arguments)
    assert done.returncode == 2
    reason = "standard output: cannot be written (No space left on device); free disk space, or redirect it to another file"
    assert done.stderr.splitlines() == [f"redistill: {reason}"]


def test_an_error_keeps_its_exit_code_without_streams(tmp_path: Path) -> None:
    assert shell('"$@" >&- 2>&-', "config", tmp_path / "absent.yaml").returncode == 2


def test_files_never_get_the_number_of_a_closed_stream(recipe: Path, tmp_path: Path) -> None:
    """A file with the number of standard error would receive the log lines."""
    shell('"$@" >&- 2>&-', "train", recipe, "--out", tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.json*"):
        for text in path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text)


def test_text_for_a_terminal_is_still_text_for_a_terminal(recipe: Path) -> None:
    parent, child = os.openpty()
    done = subprocess.run([*REDISTILL, "methods"], stdout=child, stderr=child, env={**os.environ, "TERM": "xterm"})
    os.close(child)
    assert done.returncode == 0 and os.read(parent, 100_000).startswith(b"\x1b[")
    os.close(parent)
