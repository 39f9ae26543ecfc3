"""The entry point of the command line.

It parses the arguments, runs the command, and maps errors to exit codes.
"""

import os
import signal
import sys
from collections.abc import Sequence

from redistill.cli.commands import is_main_process
from redistill.cli.output import reserved_stdout
from redistill.cli.parsers import parse_arguments
from redistill.errors import Interrupted, RedistillError
from redistill.processes import signals
from redistill.storage.redaction import plain, print_traceback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The arguments without the name of the program; None takes those of the process.

    Returns:
        The exit code; `redistill --help` lists them. If it is not 0, one line on standard error gives the reason.

    Raises:
        SystemExit: after --help and --version (code 0), or for invalid arguments (code 2).
    """
    sys.excepthook = print_traceback
    options = parse_arguments(arguments)
    for variable in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):  # of other libraries; their warnings are shown
        os.environ.setdefault(variable, "1")
    try:
        with signals.handled(at_once=True), reserved_stdout(options):
            options.command(options)
    except RedistillError as error:
        # A name in a file of somebody else may have line ends.
        print(f"redistill: {plain(' '.join(str(error).splitlines()))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        if is_main_process():
            print("redistill: interrupted; run the same command again to resume", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
    return 0
