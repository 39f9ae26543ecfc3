"""Progress: log lines, a bar on a terminal, and no control characters of generated text."""

import io
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from redistill.storage.redaction import plain
from redistill.training.progress import AnswerProgress, Progress, duration


def log_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system="truecolor")


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def ticks(seconds: float) -> Iterator[float]:
    now = 0.0
    while True:
        yield now
        now += seconds


# --- progress -----------------------------------------------------------------------------------------------------------


def test_a_log_has_a_line_every_log_every_updates_and_at_the_end() -> None:
    console = log_console()
    with Progress(25, log_every=10, console=console) as progress:
        for step in range(1, 26):
            progress.update(step, {"loss": 1.0})
    assert [line.split()[1] for line in written(console).splitlines()] == ["10/25", "20/25", "25/25"]


def test_a_line_has_terms_speed_and_remaining_time() -> None:
    console, clock = log_console(), ticks(60.0)
    with Progress(110, log_every=10, console=console, clock=lambda: next(clock)) as progress:
        progress.update(51, {"loss": 3.0})
        progress.update(60, {"loss": 2.34567, "sft": 1.5, "divergence": None, "grad_norm": 9.0, "tokens_per_s": 12345.6})
    # a minute for the 9 updates since the first, 50 to go; the line is longer than the console is wide
    assert written(console) == "step 60/110  loss 2.346  sft 1.5  12,346 tokens/s  5:33 left\n"


@pytest.mark.parametrize("terminal", ["1", ""])
def test_a_process_that_is_not_the_main_one_prints_nothing(
    terminal: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", terminal)  # rich takes the output for a terminal then
    with Progress(2, log_every=1, enabled=False) as progress:
        progress.update(1, {"loss": 1.0})
        progress.note("hello")
    assert capsys.readouterr() == ("", "")


def test_a_loss_that_is_not_a_number_is_shown_as_such() -> None:
    console = log_console()
    with Progress(1, console=console) as progress:
        progress.update(1, {"loss": float("nan")})
    assert "loss nan" in written(console)


def test_on_a_terminal_notes_are_printed_above_the_bar() -> None:
    console = terminal()
    with Progress(20, log_every=10, console=console) as progress:
        progress.update(7, {"loss": 2.5})
        progress.note("step 7: saved")
    assert "step 7/20  loss 2.5" in written(console) and "━" in written(console)
    assert "step 7: saved\n" in written(console).replace("\x1b[K", "")


def test_generated_text_is_printed_on_one_line_without_control_characters() -> None:
    console = log_console()
    with Progress(5, console=console) as progress:
        progress.note("[bold red]not markup[/] :smile: \x1b[31mred\x1b[0m \x07\r\x9b2J \u202egnorw \ud800 " + "long " * 20)
    assert written(console) == "[bold red]not markup[/] :smile: red gnorw \ufffd" + " long" * 20 + "\n"


@given(st.text(st.characters()))
def test_plain_is_printable_and_idempotent(text: str) -> None:
    shown = plain(text)
    shown.encode("utf-8")
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)
    assert plain(shown) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0:00"), (59.4, "0:59"), (60, "1:00"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_durations_have_hours_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


# --- answers ------------------------------------------------------------------------------------------------------------


def test_an_evaluation_reports_each_tenth_with_speed_and_remaining_time() -> None:
    lines: list[str] = []
    now = iter(range(100))
    progress = AnswerProgress("teacher", lines.append, clock=lambda: float(next(now)))
    progress(0, 40, 0)
    for done in range(2, 41, 2):
        progress(done, 40, 10 * done)
    assert len(lines) == 10
    assert lines[4].startswith("teacher: 20/40 answers") and lines[-1].endswith("0:00 left")
    assert all("tokens/s" in line for line in lines)


def test_a_finished_evaluation_reports_nothing() -> None:
    lines: list[str] = []
    AnswerProgress("teacher", lines.append)(40, 40, 0)
    assert lines == []
