"""Tables on the terminal.  Whatever a model may have written is stripped of control characters first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from redistill.reports.report import summary_table
from redistill.reports.sheet import Comparison
from redistill.reports.statistics import deviation, mean
from redistill.reports.tables import Cell
from redistill.storage.redaction import plain


def print_summary(run: Path, baselines: Sequence[Path] = ()) -> None:
    """The headline of a run: every model on every test set, with the difference to the first baseline."""
    table = Table()
    rows = summary_table(run, baselines)
    versus = next((f"difference to {row['versus']}" for row in rows if row["versus"]), "difference")
    for column in ("data set", "model", "ROUGE-L", versus, "95 % interval"):
        table.add_column(Text(plain(column)), justify="left" if column in {"data set", "model"} else "right")
    for row in rows:
        interval = "" if row["lower"] is None else f"{row['lower']:+.2f} to {row['upper']:+.2f}"
        difference = "" if row["difference"] is None else f"{row['difference']:+.2f}"
        rouge = _spread(row["rouge_l"], row["rouge_l_sd"])
        table.add_row(*(Text(plain(cell)) for cell in (row["dataset"], row["model"], rouge, difference, interval)))
    console().print(table)


def print_scores(scores: Mapping[str, Any]) -> None:
    """The scores of one model: mean and standard deviation over seeds."""
    table = Table()
    for column in ("data set", "prompts", "ROUGE-L", "exact match", "length", "ended"):
        table.add_column(Text(plain(column)), justify="left" if column == "data set" else "right")
    shapes = {"exact_match": "{:.1%}", "length_tokens": "{:.0f} tokens", "eos_rate": "{:.0%}"}
    for dataset, found in scores["datasets"].items():
        seeds = list(found["seeds"].values())
        rouge = [seed["rouge_l"] for seed in seeds]
        table.add_row(
            Text(plain(dataset)),  # a text alone would be read as markup
            str(found["prompts"]),
            _spread(mean(rouge), deviation(rouge)),
            *(_shown(mean(seed[name] for seed in seeds), shape) for name, shape in shapes.items()),
        )
    console().print(table)


def print_comparison(comparison: Comparison, *, tables: bool = True) -> None:
    """What was not equal in the compared runs and, with `tables`, the tables but for details that need a page's width."""
    page = console()
    differences = [table.key for table in comparison.tables if table.key.startswith("difference-")]
    details = {*differences[1:], "other-scores"}
    for table in (table for table in comparison.tables if tables and table.key not in details):
        shown = Table(title=Text(plain(table.title)), title_justify="left", caption=Text(plain(table.caption)))
        shown.caption_justify = "left"
        for column in table.columns:
            shown.add_column(Text(plain(column)), justify="left" if column == table.columns[0] else "right")
        for line in table.lines:
            shown.add_row(Text(plain(line.label)), *(_cell(cell) for cell in line.cells))
        page.print(shown)
    if comparison.budgets.unequal:
        page.print("Not equal in all compared runs:", style="bold red")
    for text in (*comparison.budgets.unequal, *(f"not finished, and left out: {run}" for run in comparison.left_out)):
        page.print(Text(plain(f"- {text}")))


def _cell(cell: Cell) -> Text:
    text = Text(plain(cell.text), style={"best": "bold", "second": "underline"}.get(cell.mark, ""))
    return text if not cell.detail else text.append(f" {plain(cell.detail)}", style="not bold not underline dim")


def _spread(value: float | None, deviation_: float | None) -> str:
    """Mean ± standard deviation, as far as there are any."""
    return _shown(value, "{:.2f}") + ("" if deviation_ is None else f" ± {deviation_:.2f}")


def _shown(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)


def console() -> Console:
    return Console(soft_wrap=False)
