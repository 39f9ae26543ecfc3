"""Prints an estimate on the terminal."""

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from redistill.estimate import Estimate
from redistill.processes import streams
from redistill.storage.redaction import plain_line
from redistill.training.progress import duration


def print_estimate(found: Estimate, console: Console | None = None) -> None:
    """Print tables of parameters, memory and time, then the assumptions."""
    console = console or streams.console()
    console.print(_table("parameters", [(name, f"{count / 1e6:,.1f} M") for name, count in found.parameters.items()]))
    phases = [(f"peak: {name}", _megabytes(size)) for name, size in found.memory.phases.items()]
    parts = [(name, _megabytes(size)) for name, size in found.memory.parts.items() if size]
    console.print(_table("memory", [*parts, *phases, ("peak of all phases", _megabytes(found.memory.peak_bytes))]))
    times = [(name, f"{seconds:,.2f} s") for name, seconds in found.seconds.parts.items() if seconds]
    times += [("update", f"{found.seconds.step:,.2f} s"), ("validation", f"{found.seconds.validation:,.1f} s")]
    if found.run_seconds is not None:
        times.append((f"run: {found.updates:,} updates, {found.validations:,} validations", duration(found.run_seconds)))
    console.print(_table("time", times))
    if found.placements:
        console.print(_placements(found))
    for note in found.notes:
        console.print(Text(plain_line(f"- {note}")), soft_wrap=True)


def _placements(found: Estimate) -> Table:
    """Return a table of the memory of a process, with one row for each phase and one column for each placement."""
    title = f"calculated for each of {found.processes} processes"
    numbers = [Column(name, justify="right") for name in found.placements]
    table = Table(Column("phase"), *numbers, title=title, title_justify="left")
    totals = [placed.totals for placed in found.placements.values()]
    for phase in totals[0]:
        table.add_row(phase, *(_megabytes(total[phase]) for total in totals))
    table.add_row("largest", *(_megabytes(placed.peak_bytes) for placed in found.placements.values()))
    return table


def _table(title: str, lines: list[tuple[str, str]]) -> Table:
    table = Table(Column(), Column(justify="right"), title=title, title_justify="left", show_header=False)
    for name, value in lines:
        table.add_row(Text(name), value)
    return table


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
