"""The command `redistill watch` with its arguments."""

import argparse
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

from redistill.cli.options import Group, add_command, add_json
from redistill.cli.output import print_json
from redistill.cli.values import finite_number, path
from redistill.errors import ConfigError
from redistill.processes.streams import TolerantStream, console

if TYPE_CHECKING:
    from redistill.reports.live import LiveRun

_SHORTEST_S, _LONGEST_S = 0.1, 3600.0


def add_watch(group: Group) -> None:
    """Add the command `watch` to a group of commands."""
    parser = add_command(group, "watch", watch, "redistill watch runs/mgsr")
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder, which need not exist yet")
    parser.add_argument("--once", action="store_true", help="print the present state, and exit")
    text = "seconds between two updates of the view (default: %(default)g)"
    parser.add_argument("--interval", type=finite_number, default=1.0, metavar="S", help=text)
    add_json(parser, "print the present state as JSON, and exit")


def watch(options: argparse.Namespace) -> None:
    """Show the progress of a run until it has ended."""
    if not _SHORTEST_S <= options.interval <= _LONGEST_S:
        raise ConfigError(f"--interval {options.interval:g}: must lie in [{_SHORTEST_S:g}, {_LONGEST_S:g}]; 1 is usual")
    from redistill.reports.live import LiveRun

    run = LiveRun(options.run)
    if options.json:
        print_json(options, run.state().as_json())
    elif options.once:
        from redistill.reports.live_frame import frame

        console().print(frame(run.state()))
    else:
        _follow(run, options.interval)


def _follow(run: "LiveRun", interval: float) -> None:
    """Show the state of a run repeatedly.

    If the output is a terminal, each frame replaces the previous one.  If it is not, each changed frame is printed below
    the previous one.
    """
    from rich.live import Live

    from redistill.reports.live_frame import frame

    page, last = console(), None
    view = Live(console=page, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
    with view if page.is_terminal else nullcontext() as live:
        while True:
            state = run.state()
            if live is not None:
                live.update(frame(state), refresh=True)
            elif state != last:
                page.print(frame(state))
            last = state
            if state.phase in ("trained", "finished") or (isinstance(sys.stdout, TolerantStream) and sys.stdout.is_closed_pipe):
                return
            time.sleep(interval)
