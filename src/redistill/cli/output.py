"""Standard output of the commands: text for people or, with --json, one JSON document and nothing else."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from redistill.storage.redaction import redacted_tree

SCHEMA = 1


@contextlib.contextmanager
def reserved_stdout(options: argparse.Namespace) -> Iterator[None]:
    """With --json, reserve standard output for `print_json`; redirect other output, also of libraries, to standard error."""
    options.stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        yield


def print_json(options: argparse.Namespace, data: Mapping[str, Any]) -> None:
    """Print `data` as one JSON document, with "schema" first and secrets masked.

    Args:
        options: The options of the command, inside `reserved_stdout`.
        data: JSON values, without NaN and infinities.
    """
    document = json.dumps(redacted_tree({"schema": SCHEMA, **data}), indent=2, allow_nan=False)
    options.stdout.write(document + "\n")


def print_lines(*lines: object) -> None:
    """Print each item on its own line."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
