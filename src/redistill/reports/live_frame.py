"""The frame that `redistill watch` shows on the terminal.

Names, events and messages come from files of a run.  They are passed through `redaction.plain_line` before they are shown.
"""

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from redistill.records import Json
from redistill.reports.live import CURVES, LiveState
from redistill.storage.redaction import plain_line
from redistill.training.progress import duration

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Number of characters of a curve, and of the bar."""
_PHASES = {
    "waiting": "waiting for run.json",
    "trained": "trained, not evaluated",
    "stopped": "stopped; the command that started the run resumes it",
}
_COUNTS = ("step", "kind", "seed")


def frame(state: LiveState) -> Group:
    """Return the lines and tables that show the state of a run.

    Args:
        state: The state, as `LiveRun.state` returns it.
    """
    parts: list[Text | Table | ProgressBar] = [_line(_title(state)), _line(_progress(state))]
    if state.updates is not None and state.phase == "training":
        parts.append(ProgressBar(total=state.updates, completed=state.step, width=WIDTH))
    curves = _curves(state)
    if curves.row_count:
        parts.append(curves)
    if state.validation:
        shown = [f"{name} {value:.4g}" for name, value in state.validation.items() if _is_number(name, value)]
        parts.append(_line(f"validation at step {state.validation.get('step')}: {', '.join(shown)}"))
    parts += [_line(f"event: {text}") for text in state.events]
    return Group(*parts)


def spark(values: Sequence[float], width: int = WIDTH) -> str:
    """Return a line of bars whose heights show the values.

    The smallest value has the lowest bar, and the largest value the highest.  More than `width` values are averaged in groups
    of neighbours.

    Example:
        >>> spark([0.0, 1.0, 3.5, 7.0]), spark([2.0, 2.0])
        ('▁▂▅█', '▁▁')
    """
    count = min(len(values), width)
    edges = [len(values) * number // count for number in range(count + 1)] if count else [0]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    lowest, highest = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (highest - lowest) if highest > lowest else 0.0
    return "".join(BARS[round((value - lowest) * scale)] for value in means)


def _title(state: LiveState) -> str:
    method = f" ({state.method})" if state.method else ""
    return f"{state.name}{method}: {_PHASES.get(state.phase, state.phase)}"


def _progress(state: LiveState) -> str:
    total = "" if state.updates is None else f"/{state.updates}"
    parts = [f"step {state.step}{total}"]
    if state.left_s is not None:
        parts.append(f"{duration(state.left_s)} left")
    if isinstance(speed := state.train.get("tokens_per_s"), int | float):
        parts.append(f"{speed:,.0f} tokens/s")
    if state.answers:
        parts.append(f"{state.answers} test answers")
    return f"{state.folder}  {'  '.join(parts)}"


def _curves(state: LiveState) -> Table:
    """Return a table with a row for each curve: its name, its last value and its bars."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    names = [name for name in CURVES if name in state.curves]
    names += [name for name in state.curves if name.startswith("validation ")]
    for name in names:
        values = state.curves[name]
        table.add_row(_line(name.replace("_", " ")), Text(f"{values[-1]:.4g}", justify="right"), Text(spark(values)))
    return table


def _is_number(name: str, value: Json) -> bool:
    return name not in _COUNTS and isinstance(value, int | float)


def _line(text: str) -> Text:
    return Text(plain_line(text))
