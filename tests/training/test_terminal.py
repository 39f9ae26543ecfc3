"""A terminal of 80 columns: the bar names the phase and the time left, and library output is printed above it."""

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

SCRIPT = """
import logging, sys, time, warnings
from redistill.processes import streams
from redistill.training.progress import AnswerProgress, Progress

with streams.tolerant_streams(), streams.plain_messages():
    library = logging.getLogger("library")
    library.addHandler(logging.StreamHandler())  # keeps the stream of now, as the handler of transformers does
    ticks = iter(range(0, 1000, 2))
    with Progress(log_every=1, clock=lambda: float(next(ticks))) as progress:
        with progress.phase("loading models", in_log=True):
            library.warning("a warning of a library: \\x1b[31mred\\x1b[0m")
        progress.expect(400)
        with progress.phase("training"):
            for step in (1, 2, 3):
                with progress.phase("generating"):
                    print("a print to stdout")
                progress.update(step, {"loss": 2.5, "sft": 1.5, "divergence": 0.5, "span": 0.1, "tokens_per_s": 12345.0})
            with progress.phase("validating"):
                warnings.warn("deprecated, use another", FutureWarning)
                sys.stderr.write("begun")
                sys.stderr.write(", ended\\n")
        progress.note("a note " + "long " * 30)
        sys.stderr.write("no end of line")
    print(file=sys.stderr)
    with Progress() as bar:
        answers = AnswerProgress("evaluating student", bar.note, clock=lambda: float(next(ticks)), bar=bar)
        for done in range(4):
            answers(done, 40, 10 * done)
    print("after the bar", file=sys.stderr)
"""
TEXTS = (
    "a warning of a library: red",
    "a print to stdout",
    "FutureWarning: deprecated, use another",
    "begun, ended",
    "no end of line",
    "after the bar",
)
_ESCAPE = re.compile(r"\x1b\[(\??\d*)([A-Za-z])")


def on_a_terminal(tmp_path: Path, columns: int = 80) -> str:
    """The bytes that the script writes to a terminal of that width."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], stdout=child, stderr=child, env=environment, close_fds=True
    )
    os.close(child)
    written = b""
    while True:
        try:
            part = os.read(parent, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        written += part
    os.close(parent)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def screen(written: str) -> tuple[list[str], list[str]]:
    """What a terminal shows in the end, and each line that it ever showed when the cursor left it.

    Only the sequences are known that rich writes: to move up, to erase a line, and to style.
    """
    lines, row, column, shown = [""], 0, 0, list[str]()
    position = 0
    while position < len(written):
        if match := _ESCAPE.match(written, position):
            number, command = match.groups()
            position = match.end()
            if command == "A":
                row -= int(number or 1)
            elif command == "K":
                lines[row] = ""
            continue
        letter = written[position]
        position += 1
        if letter in "\r\n":
            shown.append(lines[row])
            row, column = (row, 0) if letter == "\r" else (row + 1, column)
            lines += [""] * (row + 1 - len(lines))
            continue
        lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
        column += 1
    return lines, [*shown, *lines]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    return screen(on_a_terminal(tmp_path_factory.mktemp("terminal")))


@pytest.mark.parametrize("text", TEXTS)
def test_the_output_of_libraries_has_lines_of_its_own_above_the_bar(shown: tuple[list[str], list[str]], text: str) -> None:
    final, _ = shown
    (*_, line) = [line for line in final if text in line]
    assert "━" not in line and "training" not in line
    assert line.endswith(text) and (line == text or "script.py" in line)


def test_the_bar_names_the_phase_and_the_time_left_within_80_columns(shown: tuple[list[str], list[str]]) -> None:
    _, lines = shown
    bars = [line.rstrip() for line in lines if "━" in line]
    for phase in ("loading models", "training", "generating", "validating", "evaluating student"):
        assert any(f" {phase}" in line for line in bars), (phase, bars)
    assert any(re.search(r"validating  step 3/400  \d+:\d\d left  loss 2.5", line) for line in bars), bars
    assert any(re.search(r"evaluating student: 3/40 answers .*left", line) for line in bars), bars
    assert max(map(len, bars)) <= 80


def test_a_narrow_terminal_has_no_line_that_is_wrapped(tmp_path: Path) -> None:
    _, lines = screen(on_a_terminal(tmp_path, columns=40))
    assert max(len(line.rstrip()) for line in lines if "━" in line) <= 40


def test_a_pipe_has_the_lines_without_escapes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in done.stdout + done.stderr and "━" not in done.stderr
    lines = done.stderr.splitlines()
    assert "loading models" in lines and "a warning of a library: red" in lines
    assert "step 3/400  loss 2.5  sft 1.5  divergence 0.5  span 0.1  12,345 tokens/s  13:14 left" in lines
