"""Standard output of the commands.

A command prints readable text. With --json it prints exactly one JSON document.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping

from redistill.storage.redaction import redacted_tree

SCHEMA = 1


@contextlib.contextmanager
def reserved_stdout(options: argparse.Namespace) -> Iterator[None]:
    """Context that reserves standard output for `print_json` if --json is set.

    With --json, all other output in the context is redirected to standard error, including the output of libraries. Without
    --json, nothing is redirected. In both cases, `options.stdout` is set to the stream that `print_json` writes to.

    Args:
        options: The options of the command.
    """
    options.stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        yield


def print_json(options: argparse.Namespace, data: Mapping[str, object]) -> None:
    """Print `data` as one JSON document, with secrets masked.

    The first key is "schema". Its value is the version of the format of redistill's JSON output.

    Args:
        options: The options of the command. Call this function inside `reserved_stdout`.
        data: JSON values, without NaN and infinities.
    """
    document = json.dumps(redacted_tree({"schema": SCHEMA, **data}), indent=2, allow_nan=False)
    options.stdout.write(document + "\n")


def print_lines(*lines: object) -> None:
    """Print each argument on its own line."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
