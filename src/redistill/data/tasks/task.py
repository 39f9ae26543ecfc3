"""What a known test set is: where to find it, what is in it, and how much of it the papers evaluate."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from redistill.data.reader import ReadReport, read_records
from redistill.errors import DataError
from redistill.records import Instruction, Metric, Record


@dataclass(frozen=True, kw_only=True)
class Task:
    """A test set.

    The hub files write "<n>" for a line break in a prompt, and it becomes one when they are loaded.  A file of your own is used
    verbatim.

    Args:
        name: What recipes and files call it.
        description: What it holds, in one line.
        hub_name: The data set on the hub; None where its rows are in a file that the recipe names.
        hub_file: The file of it that holds the test rows; these repositories mix kinds of files, so a split would not find it.
        hub_rows: How many rows, from the first, the papers evaluate; None where it is all.
        metrics: What its answers are scored by before the metrics that the recipe names; the first is its primary one.
    """

    name: str
    description: str
    hub_name: str | None = None
    hub_file: str = "valid.jsonl"
    hub_rows: int | None = None
    metrics: tuple[Metric, ...] = ()

    def load(
        self, path: str | Path | None = None, *, max_bad_rows: int = 0, rejected: Path | None = None
    ) -> tuple[list[Record], ReadReport]:
        """The test rows: those of `path` (a file, or a folder with test.jsonl), or else those that the papers evaluate.

        Args:
            max_bad_rows, rejected: As in `read_records`.

        Raises:
            DataError: they cannot be read, or more than `max_bad_rows` of them cannot be used.
        """
        if path is not None:
            return read_records(path, split="test", max_bad_rows=max_bad_rows, rejected=rejected)
        assert self.hub_name is not None, "check_source"
        records, report = read_records(self.hub_name, hub_file=self.hub_file, max_bad_rows=max_bad_rows, rejected=rejected)
        return [_with_line_breaks(record) for record in records[: self.hub_rows]], report


def _with_line_breaks(record: Record) -> Record:
    """The record with "<n>" in its instruction and input read as the line break that it stands for."""
    if not isinstance(record.prompt, Instruction):
        return record
    instruction, given = (text.replace("<n>", "\n") for text in (record.prompt.instruction, record.prompt.input))
    return dataclasses.replace(record, prompt=Instruction(instruction, given))


def with_long_references(records: list[Record], min_words: int) -> list[Record]:
    """The records whose longest reference has at least `min_words` words, which are split at white space.

    Raises:
        DataError: none has.
    """
    kept = [record for record in records if max((len(text.split()) for text in record.references), default=0) >= min_words]
    if not kept:
        raise DataError(f"none of {len(records)} rows has a reference of {min_words} words or more; lower min_reference_words")
    return kept
