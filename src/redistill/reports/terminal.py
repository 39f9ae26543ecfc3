"""Prints tables on the terminal.

Control characters are removed from all untrusted text first.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from rich.table import Table
from rich.text import Text

from redistill.processes.streams import console
from redistill.records import FRACTION, PROPOSALS, Json
from redistill.reports.comparison import Row
from redistill.reports.folders import Evaluation, at, number
from redistill.reports.judgements import Judgement
from redistill.reports.pages import large
from redistill.reports.report import summary_rows
from redistill.reports.sheet import Comparison
from redistill.reports.statistics import deviation, mean
from redistill.reports.tables import Cell
from redistill.storage.redaction import plain_line


def print_summary(run: Path, baselines: Sequence[Path] = ()) -> None:
    """Print the main results of a run.

    There is one table per primary metric.  It shows all models on the test sets of this metric, with differences to the first
    baseline.

    Args:
        run: Folder of the run.
        baselines: Run folders to compare with.

    Raises:
        CheckpointError: a folder is not a run folder, or a file in it is damaged.
    """
    rows = summary_rows(run, baselines)
    for metric in dict.fromkeys(row.measures[0].name for row in rows):
        console().print(_summary([row for row in rows if row.measures[0].name == metric]))
    if not rows:
        console().print(_summary([]))


def _summary(rows: Sequence[Row]) -> Table:
    """Build the table of scores and differences for rows with one primary metric."""
    title, unit = (rows[0].measures[0].heading, rows[0].measures[0].unit) if rows else ("score", "")
    versus = next((f"difference to {row.versus}" for row in rows if row.versus), "difference")
    table = _table(("data set", "model", title, versus, "95 % interval"), texts=("data set", "model"))
    for row in rows:
        times = 100 if unit == FRACTION else 1  # differences of fractions are shown in percentage points
        found = row.interval
        difference = "" if found is None else f"{times * found.difference:+.2f}"
        interval = "" if found is None else f"{times * found.lower:+.2f} to {times * found.upper:+.2f}"
        score = _spread(row.primary.mean, row.primary.deviation, unit)
        table.add_row(*map(_text, (row.column, row.model, score, difference, interval)))
    return table


def print_scores(scores: Mapping[str, object]) -> None:
    """Print the scores of one model, as means over evaluation seeds.

    The primary metric of a data set is printed with its standard deviation over seeds.  Latency and peak memory are printed
    below the table if they were measured.  They are those of answers that were generated one at a time.

    Args:
        scores: Content of scores.json.
    """
    model = Evaluation(label="", role="student", scores=cast(Mapping[str, Json], scores), answers={})
    columns = list(dict.fromkeys(measure for dataset in model.datasets for measure in model.measures(dataset)))
    headings = ("data set", "prompts", *(measure.heading for measure in columns), "length", "ended")
    table = _table(headings, texts=("data set",))
    for dataset in model.datasets:
        length, ended = (mean(model.seed_scores(dataset, name).values()) for name in ("length_tokens", "eos_rate"))
        cells = [dataset, str(model.num_prompts(dataset))]
        for measure in columns:
            found = model.seed_scores(dataset, measure.name).values()
            over = deviation(found) if measure == model.measures(dataset)[0] else None
            cells.append(_spread(mean(found), over, measure.unit))
        table.add_row(*map(_text, (*cells, _shown(length, "{:.0f} tokens"), _shown(ended, "{:.0%}"))))
    page = console()
    page.print(table)
    median, tail = (number(at(model.scores, "latency", name)) for name in ("p50_s", "p95_s"))
    if median is not None:
        size = number(model.scores.get("peak_bytes"))
        memory = "" if size is None else f"; peak memory {large(size, 'G')}B"
        latency = f"median {median:.3g} s, 95th percentile {_shown(tail, '{:.3g}')} s"
        page.print(_text(f"latency of one answer at a time: {latency}{memory}"))


def print_acceptance(scores: Mapping[str, object]) -> None:
    """Print acceptance and accepted lengths of a draft model for each data set.

    Args:
        scores: Content of scores.json.
    """
    model = Evaluation(label="", role="student", scores=cast(Mapping[str, Json], scores), answers={})
    counts = range(1, PROPOSALS + 1)
    table = _table(("data set", "alpha", *(f"k = {k}" for k in counts)), texts=("data set",))
    table.title, table.title_justify = "expected accepted tokens of k proposed tokens", "left"
    for dataset in model.datasets:
        lengths = [_shown(model.forced_score(dataset, f"accepted_length_{k}"), "{:.2f}") for k in counts]
        table.add_row(*map(_text, (dataset, _shown(model.forced_score(dataset, "acceptance"), "{:.1%}"), *lengths)))
    console().print(table)


def print_harness(found: Mapping[str, object]) -> None:
    """Print the scores of tasks of lm-evaluation-harness.

    Args:
        found: Content of harness.json.
    """
    table = _table(("task", "metric", "score", "standard error"), texts=("task", "metric"))
    results = cast("Mapping[str, Mapping[str, object]]", found["results"])
    for task, values in results.items():
        for key, value in values.items():
            metric, _, filtered = key.partition(",")
            error = values.get(f"{metric}_stderr,{filtered}")
            if isinstance(value, int | float) and filtered and not metric.endswith("_stderr"):
                shown = f"{error:.4f}" if isinstance(error, int | float) else "-"
                table.add_row(*map(_text, (task, metric if filtered == "none" else key, f"{value:.4f}", shown)))
    console().print(table)


def print_judgements(found: Sequence[Judgement]) -> None:
    """Print how often a judge preferred the answers of a model, for each data set."""
    table = _table(("data set", "against", "wins", "ties", "losses", "score", "95 % interval"), texts=("data set", "against"))
    for each in found:
        counts = map(str, (each.wins, each.ties, each.losses))
        interval = f"{_shown(each.lower, '{:.3f}')} to {_shown(each.upper, '{:.3f}')}"
        table.add_row(*map(_text, (each.dataset, each.against, *counts, _shown(each.score, "{:.3f}"), interval)))
    page = console()
    page.print(table)
    for each in found:
        faults = {"ties with different verdicts": each.disagreements, "unparsed": each.unparsed, "missing": each.missing}
        texts = [f"{count} {name}" for name, count in faults.items() if count]
        if texts:
            page.print(_text(f"{each.dataset}: {', '.join(texts)}"))


def print_comparison(comparison: Comparison, *, tables: bool = True) -> None:
    """Print the verdict and the tables of a comparison.

    Unequal settings and unfinished runs are listed below the tables.

    No table is printed if `tables` is False. Tables whose attribute `is_detail` is True are too wide for a terminal and are
    never printed.
    """
    page = console()
    for sentences in comparison.verdict:
        page.print(_text(" ".join(sentences)))
    for table in (table for table in comparison.tables if tables and not table.is_detail):
        shown = _table(table.columns, texts=table.columns[:1])
        shown.title, shown.title_justify = _text(table.title), "left"
        shown.caption, shown.caption_justify = _text(table.caption), "left"
        for line in table.lines:
            shown.add_row(_text(line.label), *map(_cell, line.cells))
        page.print(shown)
    if comparison.budgets.unequal:
        page.print("Not equal in all compared runs:", style="bold red")
    for text in (*comparison.budgets.unequal, *(f"not finished, omitted: {run}" for run in comparison.left_out)):
        page.print(_text(f"- {text}"))


def _text(text: str) -> Text:
    return Text(plain_line(text))  # a plain string would be parsed as markup


def _table(columns: Iterable[str], texts: Sequence[str]) -> Table:
    """Create a table with the headings `columns` and without rows.

    Columns whose heading is in `texts` are aligned left, all others right.  A label that is too long for its column is wrapped.
    """
    table = Table()
    for column in columns:
        table.add_column(_text(column), justify="left" if column in texts else "right", overflow="fold")
    return table


def _cell(cell: Cell) -> Text:
    text = Text(plain_line(cell.text), style={"best": "bold", "second": "underline"}.get(cell.mark, ""))
    return text if not cell.detail else text.append(f" {plain_line(cell.detail)}", style="not bold not underline dim")


def _spread(value: float | None, deviation_: float | None, unit: str) -> str:
    """Format mean ± standard deviation.

    A missing mean is shown as a dash; a missing deviation is omitted.
    """
    shape = "{:.1%}" if unit == FRACTION else "{:.2f}"
    return _shown(value, shape) + ("" if deviation_ is None else f" ± {_shown(deviation_, shape)}")


def _shown(value: float | None, shape: str) -> str:
    return "-" if value is None else shape.format(value)
