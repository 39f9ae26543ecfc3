"""Text on standard streams and in messages of libraries: no terminal escapes, no invisible characters, no secrets."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text

from redistill.processes import streams
from redistill.storage.redaction import MASK, plain
from tests.faults.hostile import HOSTILE, hidden

SECRET = "hf_" + "Q7w8E9r0T1y2U3i4O5p6A7s8"


@contextlib.contextmanager
def redirected(path: Path) -> Iterator[Path]:
    """Context in which both standard streams are written to a file, which has the content after the context."""
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield path


@pytest.mark.parametrize("text", [*HOSTILE, SECRET], ids=range(len(HOSTILE) + 1))
def test_what_libraries_print_cannot_control_the_terminal(tmp_path: Path, text: str) -> None:
    with redirected(tmp_path / "printed") as printed, streams.tolerant_streams():
        print(text)
        print(text, file=sys.stderr)
        sys.stdout.writelines([text, "\n"])
    found = printed.read_text(encoding="utf-8")
    assert found.count("\n") >= 3
    assert "\x1b" not in found and "\r" not in found and hidden(found) == set() and SECRET not in found


def test_the_console_prints_styles_and_plain_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with redirected(tmp_path / "printed") as printed, streams.tolerant_streams():
        streams.console().print(Text(plain("\x1b[2Jred"), style="red"))
        streams.console("stderr", quiet=True).print("nothing")
    assert printed.read_text(encoding="utf-8") == "\x1b[31mred\x1b[0m\n"


def test_a_closed_pipe_is_still_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with streams.tolerant_streams():
            print("x")
            sys.stdout.flush()
            assert isinstance(sys.stdout, streams.TolerantStream) and sys.stdout.is_closed_pipe
            streams.console().print("y")
        with pytest.raises(BrokenPipeError):
            pipe.write("z")
            pipe.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


@pytest.mark.parametrize("text", [*HOSTILE, SECRET], ids=range(len(HOSTILE) + 1))
def test_messages_of_all_loggers_are_plain(text: str) -> None:
    out = io.StringIO()
    logger = logging.getLogger("some.library.of.a.stranger")
    handler = logging.StreamHandler(out)
    logger.addHandler(handler)
    try:
        with streams.plain_messages():
            logger.warning("tensor %s is missing in %s", text, Path("a"))
            logger.warning(text)
            logger.error({"name": text})
    finally:
        logger.removeHandler(handler)
    found = out.getvalue()
    assert "\x1b" not in found and "\r" not in found and hidden(found) == set() and SECRET not in found
    assert " ".join(plain(f"tensor {text} is missing in a").split()) in " ".join(found.split())


def test_a_message_whose_arguments_do_not_fit_is_no_error() -> None:
    with streams.plain_messages():
        record = logging.getLogRecordFactory()("a", logging.INFO, "f", 1, "%d of %d", ("x",), None)
    assert record.msg == "%d of %d"


@pytest.mark.parametrize("text", [*HOSTILE, SECRET], ids=range(len(HOSTILE) + 1))
def test_warnings_are_plain(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with streams.plain_messages():
        found = warnings.formatwarning(text, UserWarning, "file.py", 1)
    assert "\x1b" not in found and "\r" not in found and hidden(found) == set() and SECRET not in found


def test_loggers_and_warnings_are_restored() -> None:
    before = logging.getLogRecordFactory(), warnings.formatwarning
    with streams.plain_messages():
        assert (logging.getLogRecordFactory(), warnings.formatwarning) != before
    assert (logging.getLogRecordFactory(), warnings.formatwarning) == before


def test_a_mask_is_shown(tmp_path: Path) -> None:
    with redirected(tmp_path / "printed") as printed, streams.tolerant_streams():
        print(f"a {SECRET} b")
    assert printed.read_text(encoding="utf-8") == f"a {MASK} b\n"
