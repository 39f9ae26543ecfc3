"""Functions that print the results of `redistill doctor`."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from redistill.doctor import Diagnosis
from redistill.doctor.findings import Finding, Outcome
from redistill.doctor.machine import Disk, Machine
from redistill.processes import streams
from redistill.storage.redaction import plain_line


def print_machine(found: Machine, console: Console | None = None) -> None:
    """Print the description of a machine as tables, then each finding on one line."""
    console = console or streams.console()
    memory = found.about["memory_bytes"]
    about = [("processor", str(found.about["cpu"])), ("cores", str(found.about["cores"]))]
    about += [("memory", f"{memory / 1e9:,.1f} GB")] if isinstance(memory, int) else []
    console.print(_table("versions", found.versions.items()))
    console.print(_table("devices", [*about, *found.devices.items()]))
    speeds = [
        (name, "not supported" if speed is None else f"{1e3 * speed:,.0f}e9 FLOP/s") for name, speed in found.products.items()
    ]
    console.print(_table("matrix products", speeds))
    console.print(_table("disks", [(name, _disk(disk)) for name, disk in found.disks.items()]))
    console.print(Text(plain_line(f"hub: {found.hub}")), soft_wrap=True)
    _print_lines(console, found.findings, "found")


def _disk(disk: Disk) -> str:
    speed = disk.fault
    if disk.write_bytes_per_s is not None and disk.read_bytes_per_s is not None:
        speed = f"write {disk.write_bytes_per_s / 1e6:,.0f} MB/s, read {disk.read_bytes_per_s / 1e6:,.0f} MB/s"
    return f"{disk.folder}: {disk.free_bytes / 1e9:,.1f} GB free, {speed}"


def print_diagnosis(found: Diagnosis, console: Console | None = None) -> None:
    """Print the checks as a table, then each finding and each note on one line."""
    console = console or streams.console()
    table = Table("", "silent failure", "result", title="checks", title_justify="left")
    for outcome in found.outcomes:
        table.add_row(str(outcome.number), outcome.name, _result(outcome))
    console.print(table)
    for outcome in found.outcomes:
        _print_lines(console, outcome.findings, f"{outcome.number} found")
    for outcome in found.outcomes:
        _print_lines(console, outcome.notes, f"{outcome.number} note")
    proved = ", ".join(str(outcome.number) for outcome in found.outcomes if outcome.proof)
    console.print(
        Text(f"failures that tests prove impossible in redistill's own code (see docs/doctor.md): {proved}"), soft_wrap=True
    )
    console.print(Text(f"{found.num_findings} findings in {len(found.outcomes)} checks, {found.seconds:.0f} s"))


def _result(outcome: Outcome) -> Text:
    styles = {"passed": "", "found": "bold red", "not examined": "dim"}
    words = f"not examined: {outcome.reason}" if outcome.status == "not examined" else outcome.status
    return Text(plain_line(words), style=styles[outcome.status])


def _print_lines(console: Console, findings: Iterable[Finding], prefix: str) -> None:
    for finding in findings:
        console.print(Text(plain_line(f"{prefix}: {finding.line}")), soft_wrap=True)


def _table(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in lines:
        table.add_row(Text(name), Text(plain_line(value)))
    return table
