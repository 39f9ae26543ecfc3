"""Standard output of the commands: text for people or, with --json, one JSON document and nothing else."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TextIO

from redistill.storage.redaction import redacted_tree

SCHEMA = 1


@contextlib.contextmanager
def reserved_stdout(options: argparse.Namespace) -> Iterator[None]:
    """Reserve standard output for `print_json` with --json: any other output, also of libraries, goes to standard error."""
    options.stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        yield


def print_json(options: argparse.Namespace, data: Mapping[str, Any]) -> None:
    """Print `data` as one JSON document, with "schema" first and secrets masked.

    Args:
        options: Of the command, inside `reserved_stdout`.
        data: JSON values only, without NaN or infinities.
    """
    document = json.dumps(redacted_tree({"schema": SCHEMA, **data}), indent=2, allow_nan=False)
    _write(options.stdout, document + "\n")


def print_lines(*lines: object) -> None:
    """Print each of `lines` on a line of its own."""
    _write(sys.stdout, "".join(f"{line}\n" for line in lines))


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _leave_closed_pipe(stream)


def _leave_closed_pipe(stream: TextIO) -> NoReturn:
    """Exit without a traceback when the reader of a pipe, such as `head`, has exited; rich does the same for tables."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # the interpreter flushes the stream again at exit
    raise SystemExit(1)
