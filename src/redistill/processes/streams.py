"""Standard streams whose write errors do not stop a command.

A write to standard output fails if the pipe is closed, the disk is full, or the calling process has closed the stream. A run
must not lose its updates because the process that reads its log lines has exited.
"""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


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
        super().__init__(io.BufferedWriter(self._raw_stream), encoding, "backslashreplace", line_buffering=True)

    @property
    def error(self) -> OSError | None:
        """The error of the first write that failed; None if no write has failed."""
        return self._raw_stream.error

    @property
    def is_closed_pipe(self) -> bool:
        """Whether a write failed because the process that reads the pipe has exited."""
        return self.error is not None and self.error.errno == errno.EPIPE


@contextlib.contextmanager
def tolerant_streams() -> Iterator[None]:
    """Context in which sys.stdout and sys.stderr are `TolerantStream`s.

    Standard file descriptors that the calling process has closed are opened on the null device first. Otherwise the next file
    that is opened, such as a checkpoint, would get the number of the descriptor, and log lines would be written into this file.
    Streams without a file descriptor, such as streams in memory, are not replaced.
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


def tolerant(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a `TolerantStream` that replaces `stream`.

    A stream without a file descriptor is returned unchanged.

    Args:
        stream: A standard stream; None if it was closed before Python started.
        descriptor: The file descriptor that is used if `stream` is None.
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
