"""The entry point of the command line.

It parses the arguments, runs the command, and maps errors to exit codes.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from redistill.cli.commands import is_main_process
from redistill.cli.output import reserved_stdout
from redistill.cli.parsers import parse_arguments
from redistill.errors import Interrupted, OutputError, RedistillError
from redistill.processes import signals, streams
from redistill.servers.address import allow_hosts
from redistill.storage.redaction import plain_line, print_traceback
from redistill.storage.user_cache import set_compiler_cache


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the command line.

    Args:
        arguments: The arguments, without the name of the program. If None, the arguments of this process are used.

    Returns:
        The exit code; `redistill --help` lists the codes. If the code is not 0, one line on standard error gives the reason.

    Raises:
        SystemExit: after --help and --version (code 0), or for invalid arguments (code 2).
    """
    sys.excepthook = print_traceback
    with streams.tolerant_streams(), streams.plain_messages():
        try:
            options = parse_arguments(arguments)
        except RedistillError as error:
            return _report(error)
        code = _run(options)
        return code or _output_code(options)


def _run(options: argparse.Namespace) -> int:
    """Run the command that `options` contains, and return its exit code."""
    os.environ["PYTHONSAFEPATH"] = "1"  # of child processes that libraries start: no imports from the current folder
    set_compiler_cache()
    if getattr(options, "private", False):
        os.umask(0o077)  # child processes inherit it
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # no progress bars of other libraries
        os.environ.setdefault(variable, "1")
    try:
        _check_current_folder()
        allow_hosts(getattr(options, "allow_host", ()))
        with signals.handled(at_once=True), reserved_stdout(options):
            options.command(options)
    except RedistillError as error:
        return _report(error)
    except KeyboardInterrupt as error:
        if is_main_process():
            consequence = getattr(options, "if_interrupted", "run the same command again to resume")
            print(f"redistill: interrupted; {consequence}", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
    return 0


def _report(error: RedistillError) -> int:
    """Print the message of an error as one line, and return the exit code."""
    print(f"redistill: {plain_line(str(error))}", file=sys.stderr)  # the message may quote text with line ends
    return error.exit_code


def _check_current_folder() -> None:
    """Raise OutputError if the current folder was removed.

    Libraries that are imported later cannot be loaded in a removed folder.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise OutputError(f"current folder: cannot be opened ({error.strerror}); change to a folder that exists") from error


def _output_code(options: argparse.Namespace) -> int:
    """Return the exit code of a command that raised no error.

    The code is 0 if all writes to standard output succeeded, or if the reading process closed the pipe. It is also 0 if the
    command has an output folder, because this folder contains the results. In all other cases, it is the exit code of
    OutputError.
    """
    found = sys.stdout
    if not isinstance(found, streams.TolerantStream) or found.error is None or found.is_closed_pipe:
        return 0
    reason = f"standard output: cannot be written ({found.error.strerror})"
    if hasattr(options, "out"):
        print(f"redistill: {reason}; the output folder is complete", file=sys.stderr)
        return 0
    print(f"redistill: {reason}; free disk space, or redirect it to another file", file=sys.stderr)
    return OutputError.exit_code
