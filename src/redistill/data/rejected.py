"""rejected.jsonl: the rows that are not learned from, by source, with line and reason; its size has a limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redistill.data.forms import Fault
from redistill.storage.files import append_lines, read_lines, rewrite_lines

LISTED_ROWS = 1000
"""Rows that one reading of a source lists; a further line says how many it leaves out.  All are counted."""

_MAX_REASON = 300  # characters; a reason may quote a chat template, which may say anything


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """A row that cannot be used: its line (in a JSON array or a hub data set, its place from 1), the kind of fault, and why."""

    line: int
    fault: Fault
    reason: str


def list_rejected(path: Path, source: str, bad: Sequence[RejectedRow]) -> None:
    """Put a source's rows in the place of those that an earlier reading of it listed."""
    before = read_lines(path)
    others = [row for row in before if isinstance(row, dict) and row.get("source") != source]
    if before or bad:
        rewrite_lines(path, [*others, *_listed(source, [(row.line, row.reason) for row in bad])])


def list_unlearned(path: Path, rows: Sequence[tuple[str, int, str]]) -> None:
    """Add rows as (source, line, reason), each source's in their order, to what was listed when they were read."""
    by_source: dict[str, list[tuple[int, str]]] = {}
    for source, line, reason in rows:
        by_source.setdefault(source, []).append((line, reason))
    if rows:
        append_lines(path, [entry for source, found in by_source.items() for entry in _listed(source, found)])


def _listed(source: str, rows: Sequence[tuple[int, str]]) -> list[dict[str, str | int]]:
    entries: list[dict[str, str | int]] = [
        {"source": source, "line": line, "reason": reason[:_MAX_REASON]} for line, reason in rows[:LISTED_ROWS]
    ]
    if len(rows) > LISTED_ROWS:
        reason = f"this row and {len(rows) - LISTED_ROWS - 1} after it are not listed one by one"
        entries.append({"source": source, "line": rows[LISTED_ROWS][0], "reason": reason})
    return entries
