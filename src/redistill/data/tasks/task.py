"""The description of a test set: its source, its rows, and its metrics."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from redistill.data.reader import ReadReport, read_records
from redistill.data.sources import Source
from redistill.errors import ConfigError
from redistill.records import Instruction, Metric, Record


@dataclass(frozen=True, kw_only=True)
class Task:
    """A test set.

    In the prompts of hub files, "<n>" stands for a line break; `load` replaces each "<n>" by a line break.  Local files are
    read verbatim.

    Args:
        name: Name of the test set in recipes and files.
        description: Contents of the test set, in one line.
        hub_name: Name of the data set on the Hugging Face hub; None if the recipe gives a file.
        hub_file: The file of the hub repository that contains the test rows; the repository may have several files.
        hub_rows: Number of rows of the test set, as in the literature. These are the first rows of the hub file. If None, all
            rows of the file are used.
        columns: Pairs (key, column). The value of `key` in a row, such as "output", is read from the column `column`. No pairs
            are needed if the columns are called "instruction" and "output". A local file may use the keys or the column names.
        metrics: Metrics that are computed before those of the recipe; the first is the primary metric.

    Raises:
        ConfigError: `metrics` is not a tuple of `Metric`.

    Example:
        >>> from redistill.evaluation.metrics import METRICS
        >>> Task(name="trivia", description="my questions", metrics=(METRICS["exact_match"],)).metrics[0].title
        'exact match'
    """

    name: str
    description: str
    hub_name: str | None = None
    hub_file: str = "valid.jsonl"
    hub_rows: int | None = None
    columns: tuple[tuple[str, str], ...] = ()
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.metrics, tuple) or not all(isinstance(metric, Metric) for metric in self.metrics):
            raise ConfigError(f"test set {self.name}: metrics: must be a tuple of redistill.records.Metric, as in (METRIC,)")

    def load(
        self, path: str | Path | Source | None = None, *, max_bad_rows: int = 0, rejected: Path | None = None
    ) -> tuple[Sequence[Record], ReadReport]:
        """Read the test rows.

        Args:
            path: A file, or a folder with test.jsonl.  If None, the first `hub_rows` rows of the hub file are read.
            max_bad_rows: Maximum number of unusable rows, >= 0.
            rejected: A JSON Lines file that the unusable rows are written to; if None, no file is written.

        Returns:
            The records, and the report of `read_records`.

        Raises:
            DataError: the rows cannot be read, or more than `max_bad_rows` of them are unusable.
        """
        if path is not None:
            source = Source.of(path, dict(self.columns))
            return read_records(
                source, split="test", max_bad_rows=max_bad_rows, why_answer="a test set needs answers", rejected=rejected
            )
        assert self.hub_name is not None, "check_source"
        source = Source.of(self.hub_name, dict(self.columns))
        records, report = read_records(source, hub_file=self.hub_file, max_bad_rows=max_bad_rows, rejected=rejected)
        return [_with_line_breaks(record) for record in records[: self.hub_rows]], report


def _with_line_breaks(record: Record) -> Record:
    """Replace "<n>" by a line break in the instruction of a record and in its input."""
    if not isinstance(record.prompt, Instruction):
        return record
    instruction, given = (text.replace("<n>", "\n") for text in (record.prompt.instruction, record.prompt.input))
    return dataclasses.replace(record, prompt=Instruction(instruction, given))
