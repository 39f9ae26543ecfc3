"""Standard streams that tolerate write errors and print plain text only.

A write to standard output fails if the pipe is closed, the disk is full, or the calling process has closed the stream. A run
must not lose its updates because the process that reads its log lines has exited.

Messages of libraries can quote names of tensors, models and files from untrusted sources. Therefore terminal escapes are
removed from messages, and secrets are masked.
"""

import contextlib
import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

from redistill.storage.redaction import plain

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console


class _Descriptor(io.FileIO):
    """A file descriptor that ignores failed writes, and keeps the first error."""

    error: OSError | None = None

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            # `super().write` returns None if a non-blocking pipe is full. The data is then lost, but later lines are not.
            return super().write(data) or memoryview(data).nbytes
        except OSError as error:
            self.error = self.error or error
            return memoryview(data).nbytes


class TolerantStream(io.TextIOWrapper):
    """A text stream on a file descriptor whose failed writes raise no error.

    Args:
        descriptor: An open file descriptor.  It stays open when the stream is closed.
        like: The stream that is replaced.  Its encoding is used; if `like` is None, the encoding is UTF-8.
    """

    def __init__(self, descriptor: int, like: TextIO | None) -> None:
        self._raw_stream = _Descriptor(descriptor, "w", closefd=False)
        encoding = "utf-8" if like is None else like.encoding
        self._above: Callable[[str], None] | None = None
        self._begun = ""  # the line that has no end yet, while a bar is shown
        super().__init__(io.BufferedWriter(self._raw_stream), encoding, "backslashreplace", line_buffering=True)

    def write(self, text: str, /) -> int:
        """Write `text` without terminal escapes, and with secrets masked.

        Messages of libraries are written by this method as well.  The result is the length of `text`.
        """
        if self._above is None:
            super().write(plain(text))
        else:
            *lines, self._begun = (self._begun + plain(text)).split("\n")
            for line in lines:
                self._above(line)
        return len(text)

    @contextlib.contextmanager
    def lines_above(self, print_line: Callable[[str], None]) -> Iterator[None]:
        """Context in which `print_line` prints each line that is passed to `write`.

        `print_line` prints above a progress bar.  Without this context, warnings and log lines of libraries would be
        printed within the bar.
        """
        self._above = print_line
        try:
            yield
        finally:
            self._above = None
            begun, self._begun = self._begun, ""
            if begun:
                print_line(begun)

    def write_styled(self, text: str) -> int:
        """Write `text` with its terminal escapes, which rich generates; return its length."""
        return super().write(text)

    @property
    def error(self) -> OSError | None:
        """The error of the first write that failed; None if no write has failed."""
        return self._raw_stream.error

    @property
    def is_closed_pipe(self) -> bool:
        """Whether a write failed because the process that reads the pipe has exited."""
        return self.error is not None and self.error.errno == errno.EPIPE


class _Styled:
    """A view of a `TolerantStream` whose method `write` keeps terminal escapes."""

    def __init__(self, stream: TolerantStream) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        return self._stream.write_styled(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def console(name: Literal["stdout", "stderr"] = "stdout", *, quiet: bool = False) -> "Console":
    """Create a `rich.console.Console` that writes to a standard stream.

    The console writes terminal escapes, which rich generates for colours.  Text from other sources may contain escapes too:
    remove them with `redaction.plain`, and print the text as `rich.text.Text`.

    Args:
        name: Name of the stream in `sys`.
        quiet: Whether nothing is printed.
    """
    from rich.console import Console  # here, since --help does not need it

    stream = tolerant(getattr(sys, name), 1 if name == "stdout" else 2)
    return Console(file=cast(TextIO, _Styled(stream)) if isinstance(stream, TolerantStream) else stream, quiet=quiet)


@contextlib.contextmanager
def plain_messages() -> Iterator[None]:
    """Context in which log messages and warnings are free of escapes and secrets.

    Terminal escapes are removed and secrets are masked (`redaction.plain`).  The messages can quote names of tensors, models
    and files, which come from untrusted sources.
    """
    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made = make_record(*args, **kwargs)
        with contextlib.suppress(TypeError, ValueError):  # arguments that do not fit the message; the handler reports them
            made.msg, made.args = plain(made.getMessage()), ()
        return made

    def formatted(message: Warning | str, *args: Any, **kwargs: Any) -> str:
        return plain(format_warning(message, *args, **kwargs))

    logging.setLogRecordFactory(record)
    warnings.formatwarning = formatted
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Context in which sys.stdout and sys.stderr are `TolerantStream`s.

    If the calling process has closed a standard file descriptor, the descriptor is opened on the null device first.
    Otherwise the next file that is opened, such as a checkpoint, would get the same number, and log lines would be written
    into this file. Streams without a file descriptor, such as streams in memory, are not replaced.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = tolerant(sys.stdout, 1), tolerant(sys.stderr, 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _open_standard_descriptors() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)  # takes the lowest free number


@contextlib.contextmanager
def above_bar(console: "Console") -> Iterator[None]:
    """Context in which output is printed above the progress bar of `console`.

    Inside the context, sys.stdout and sys.stderr print above the bar, if they are terminals.
    """
    from rich.text import Text

    def print_line(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    with contextlib.ExitStack() as stack:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TolerantStream) and stream.isatty():
                stack.enter_context(stream.lines_above(print_line))
        yield


def tolerant(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a `TolerantStream` that replaces `stream`.

    A stream without a file descriptor is returned unchanged.

    Args:
        stream: A standard stream; None if it was closed before Python started.
        descriptor: The file descriptor that is used if `stream` is None.  If `stream` is not None, the descriptor of
            `stream` is used.
    """
    if isinstance(stream, TolerantStream):
        return stream
    try:
        if stream is not None:
            stream.flush()
            descriptor = stream.fileno()
        return TolerantStream(descriptor, stream)
    except (OSError, ValueError):  # the stream is in memory or closed
        return stream or io.StringIO()
