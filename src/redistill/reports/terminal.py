"""Prints tables on the terminal.  Control characters are removed from all untrusted text first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from redistill.records import FRACTION
from redistill.reports.folders import measures
from redistill.reports.report import summary_table
from redistill.reports.sheet import Comparison
from redistill.reports.statistics import deviation, mean
from redistill.reports.tables import Cell
from redistill.storage.redaction import plain


def print_summary(run: Path, baselines: Sequence[Path] = ()) -> None:
    """Print the main results of a run.

    Shows all models on all test sets, with differences to the first baseline, in one table per primary metric.

    Args:
        run: Folder of the run.
        baselines: Run folders to compare with.

    Raises:
        CheckpointError: a folder is not a run folder, or a file in it is damaged.
    """
    rows = summary_table(run, baselines)
    for metric in dict.fromkeys(row["metric"] for row in rows):
        console().print(_summary([row for row in rows if row["metric"] == metric]))
    if not rows:
        console().print(_summary([]))


def _summary(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Table of the rows of one primary metric."""
    table = Table()
    title, unit = (rows[0]["title"], rows[0]["unit"]) if rows else ("score", "")
    versus = next((f"difference to {row['versus']}" for row in rows if row["versus"]), "difference")
    for column in ("data set", "model", title, versus, "95 % interval"):
        table.add_column(Text(plain(column)), justify="left" if column in {"data set", "model"} else "right")
    for row in rows:
        times = 100 if unit == FRACTION else 1  # differences of fractions are shown in percentage points
        interval = "" if row["lower"] is None else f"{times * row['lower']:+.2f} to {times * row['upper']:+.2f}"
        difference = "" if row["difference"] is None else f"{times * row['difference']:+.2f}"
        score = _spread(row[row["metric"]], row[f"{row['metric']}_sd"], unit)
        table.add_row(*(Text(plain(cell)) for cell in (row["dataset"], row["model"], score, difference, interval)))
    return table


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print the scores of one model: mean ± standard deviation over seeds.

    Args:
        scores: Content of scores.json.
    """
    table, datasets = Table(), scores["datasets"]
    columns = list(dict.fromkeys(measure for found in datasets.values() for measure in measures(found)))
    for column in ("data set", "prompts", *(measure.heading for measure in columns), "length", "ended"):
        table.add_column(Text(plain(column)), justify="left" if column == "data set" else "right")
    for dataset, found in datasets.items():
        seeds = list(found["seeds"].values())
        values = {measure: [seed[measure.name] for seed in seeds if measure.name in seed] for measure in columns}
        spreads = {measure: deviation(values[measure]) if measure == measures(found)[0] else None for measure in columns}
        table.add_row(
            Text(plain(dataset)),  # a plain string would be parsed as markup
            str(found["prompts"]),
            *(_spread(mean(values[measure]), spreads[measure], measure.unit) for measure in columns),
            _shown(mean(seed["length_tokens"] for seed in seeds), "{:.0f} tokens"),
            _shown(mean(seed["eos_rate"] for seed in seeds), "{:.0%}"),
        )
    console().print(table)


def print_comparison(comparison: Comparison, *, tables: bool = True) -> None:
    """Print the settings that are not equal in all runs and, if `tables`, the tables.

    Tables with `is_detail` are too wide for a terminal and are omitted.
    """
    page = console()
    for table in (table for table in comparison.tables if tables and not table.is_detail):
        shown = Table(title=Text(plain(table.title)), title_justify="left", caption=Text(plain(table.caption)))
        shown.caption_justify = "left"
        for column in table.columns:
            shown.add_column(Text(plain(column)), justify="left" if column == table.columns[0] else "right")
        for line in table.lines:
            shown.add_row(Text(plain(line.label)), *(_cell(cell) for cell in line.cells))
        page.print(shown)
    if comparison.budgets.unequal:
        page.print("Not equal in all compared runs:", style="bold red")
    for text in (*comparison.budgets.unequal, *(f"not finished, omitted: {run}" for run in comparison.left_out)):
        page.print(Text(plain(f"- {text}")))


def _cell(cell: Cell) -> Text:
    text = Text(plain(cell.text), style={"best": "bold", "second": "underline"}.get(cell.mark, ""))
    return text if not cell.detail else text.append(f" {plain(cell.detail)}", style="not bold not underline dim")


def _spread(value: float | None, deviation_: float | None, unit: str) -> str:
    """Mean ± standard deviation; a dash without a mean, no ± without a deviation."""
    shape = "{:.1%}" if unit == FRACTION else "{:.2f}"
    return _shown(value, shape) + ("" if deviation_ is None else f" ± {_shown(deviation_, shape)}")


def _shown(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)


def console() -> Console:
    """The console that all tables are printed on."""
    return Console(soft_wrap=False)
