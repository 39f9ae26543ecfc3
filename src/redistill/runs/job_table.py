"""The table of the runs of a sweep, which a terminal shows while they run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from redistill.errors import RedistillError
from redistill.reports.live import LiveRun, LiveState
from redistill.storage.redaction import plain_line
from redistill.training.progress import duration

READ_EVERY_S = 1.0
"""Shortest time in seconds between two reads of the files of a run."""
_COLUMNS = ("run", "status", "step", "loss", "time left")
_OTHER_LINES = 6  # of the terminal: the header of the table, the bar, and the lines that are printed above the table


@dataclass
class _Row:
    run: LiveRun
    status: str | None = None
    state: LiveState | None = None
    read_at: float | None = None


class JobTable:
    """Status, step, loss and remaining time of each run that has started.

    The figures are read from the run folders, so that they are the same for runs on this and on other machines.  A terminal
    with few lines shows the running jobs first, and then those that ended last.

    Args:
        height: Number of lines of the terminal.
        clock: Monotonic clock, in seconds.

    Example:
        >>> table = JobTable(height=24)
        >>> table.start("kd-seed10", Path("runs/table1/kd-seed10"))
        >>> table.rows()
        [('kd-seed10', 'waiting', '', '', '')]
        >>> table.end("kd-seed10", "finished")
        >>> table.rows()
        [('kd-seed10', 'finished', '', '', '')]
    """

    def __init__(self, *, height: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._height, self._clock, self._rows = height, clock, dict[str, _Row]()

    def start(self, name: str, folder: Path) -> None:
        """Add a run, or show a run again that was started before."""
        self._rows[name] = _Row(LiveRun(folder))

    def end(self, name: str, status: str) -> None:
        """Set the final status of a run, such as "finished"; its last figures remain."""
        if (row := self._rows.get(name)) is not None:
            self._read(row)
            row.status = status

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of each row: name, status, step, loss and time left.

        An unknown value is "".
        """
        names = [name for name, row in self._rows.items() if row.status is None]
        names += [name for name, row in reversed(self._rows.items()) if row.status is not None]
        return [self._cells(name, self._rows[name]) for name in names[: max(1, self._height - _OTHER_LINES)]]

    def __rich__(self) -> Table:
        table = Table(*_COLUMNS, box=None, padding=(0, 2, 0, 0))
        for cells in self.rows():
            table.add_row(*map(Text, cells))
        return table

    def _cells(self, name: str, row: _Row) -> tuple[str, ...]:
        now = self._clock()
        if row.status is None and (row.read_at is None or now - row.read_at >= READ_EVERY_S):
            row.read_at = now
            self._read(row)
        state = row.state
        if state is None:
            return plain_line(name), row.status or "running", "", "", ""
        step = f"{state.step}/{'?' if state.updates is None else state.updates}" if state.train else ""
        loss = state.train.get("loss")
        left = "" if row.status is not None or state.left_s is None else duration(state.left_s)
        return plain_line(name), row.status or state.phase, step, f"{loss:.4g}" if isinstance(loss, float) else "", left

    def _read(self, row: _Row) -> None:
        """Read the files of a run; files that cannot be read now leave the last figures in the table."""
        try:
            row.state = row.run.state()
        except (RedistillError, OSError):
            return
