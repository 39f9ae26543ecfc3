"""Writing of rejected.jsonl, the list of the rows that training leaves out.

Each line of the file describes one row: its source (a file or hub data set), its line number in this source, and the reason
why it is left out. The number of lines per source is limited.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from redistill.data.bad_rows import Fault
from redistill.records import Json
from redistill.storage.files import append_lines, read_lines, rewrite_lines

LISTED_ROWS = 1000
"""Maximum number of rows that are listed per source; one further line gives the number of rows that are not listed."""

_MAX_REASON = 300  # characters; a reason may quote the error of a chat template, which can be of any length


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """An unusable row.

    Args:
        line: Line number of the row in its file, or number of the row in a JSON array or hub data set; the first is 1.
        fault: The kind of fault.
        reason: The reason, in one line.
    """

    line: int
    fault: Fault
    reason: str

    def in_file(self, name: str) -> "RejectedRow":
        """Return a copy of this row whose reason begins with `name`, the file name.

        The file name is needed if the source has several files.
        """
        return replace(self, reason=f"{name}: {self.reason}")


def list_rejected(path: Path, source: str, bad: Sequence[RejectedRow]) -> None:
    """Write the unusable rows of a source to the JSON Lines file `path`.

    Lines that an earlier read of the same source wrote are replaced; the lines of other sources are kept.
    """
    before = read_lines(path)
    others = [row for row in before if isinstance(row, dict) and row.get("source") != source]
    if before or bad:
        rewrite_lines(path, [*others, *_listed(source, [(row.line, row.reason) for row in bad])])


def list_unlearned(path: Path, rows: Sequence[tuple[str, int, str]]) -> None:
    """Append the rows that tokenization left out to the JSON Lines file `path`.

    Each row is described by a tuple: its source (a file or hub data set), its line number in the source, and the reason.
    """
    by_source: dict[str, list[tuple[int, str]]] = {}
    for source, line, reason in rows:
        by_source.setdefault(source, []).append((line, reason))
    if rows:
        append_lines(path, [entry for source, found in by_source.items() for entry in _listed(source, found)])


def _listed(source: str, rows: Sequence[tuple[int, str]]) -> list[Json]:
    listed = [(line, reason[:_MAX_REASON]) for line, reason in rows[:LISTED_ROWS]]
    if len(rows) > LISTED_ROWS:
        listed.append((rows[LISTED_ROWS][0], f"this row and {len(rows) - LISTED_ROWS - 1} after it are not listed"))
    return [{"source": source, "line": line, "reason": reason} for line, reason in listed]
