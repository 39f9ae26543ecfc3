"""A comparison as a page, as Markdown, as LaTeX and as CSV.

Labels come from files that somebody else may have written: each format escapes what it would obey.
"""

import csv
import io
import re
from collections.abc import Callable

from redistill.reports.pages import render
from redistill.reports.sheet import Comparison
from redistill.reports.tables import Cell, Table
from redistill.storage import files
from redistill.storage.redaction import plain

_TEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "[": "{[}",  # a row that begins with it would be an option of the line break before
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}
_FORMULA = ("=", "+", "-", "@", "\t")  # what a spreadsheet would compute


def html(comparison: Comparison) -> str:
    """One self-contained page without JavaScript."""
    return render("compare.html", {"comparison": comparison})


def markdown(comparison: Comparison) -> str:
    """Tables as GitHub renders them; best in bold, second best underlined."""
    parts = [f"# {_md(comparison.name)}", _budget_lines(comparison, _md, "- ")]
    for table in comparison.tables:
        header = "|".join(_md(column) or " " for column in table.columns)
        rule = "|".join(["---", *["--:"] * (len(table.columns) - 1)])
        lines = [f"|{_md(line.label)}|{'|'.join(_md_cell(cell) for cell in line.cells)}|" for line in table.lines]
        parts += [f"## {_md(table.title)}", "\n".join([f"|{header}|", f"|{rule}|", *lines]), _md(table.caption)]
    return "\n\n".join([*parts, "## How differences were tested", _md(comparison.tests)]) + "\n"


def latex(comparison: Comparison) -> str:
    r"""Tables for \input, in booktabs; what was not equal stands in the caption of the scores."""
    head = "% Written by redistill compare. Needs \\usepackage{booktabs}.\n"
    comments = "".join(f"% {line}\n" for line in _budget_lines(comparison, _one_line, "").splitlines() if line)
    tables = [_tex_table(table, _unequal(comparison) if place == 0 else "") for place, table in enumerate(comparison.tables)]
    return "\n".join([head + comments, *tables, f"% {_one_line(comparison.tests)}\n"])


def csv_text(comparison: Comparison) -> str:
    """A record for each model and column, in full precision; an empty field is what was not measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(comparison.fields)
    for record in comparison.records:
        writer.writerow([_field(record.get(name)) for name in comparison.fields])
    return out.getvalue()


def _budget_lines(comparison: Comparison, escaped: Callable[[str], str], bullet: str) -> str:
    """What is equal and what is not, a paragraph or a list each."""
    told = comparison.budgets
    parts = []
    if told.unequal:
        parts.append("\n".join(["Not equal in all compared runs:", "", *(f"{bullet}{escaped(line)}" for line in told.unequal)]))
    if told.equal:
        parts.append(f"Equal in all compared runs: {escaped('; '.join(told.equal))}.")
    if told.unknown:
        parts.append(f"Not recorded: {escaped(', '.join(told.unknown))}.")
    if comparison.left_out:
        parts.append(f"Not finished, and left out: {escaped('; '.join(comparison.left_out))}.")
    return "\n\n".join(parts)


def _unequal(comparison: Comparison) -> str:
    told = comparison.budgets.unequal
    return f" Not equal in all compared runs: {'; '.join(told)}." if told else ""


def _tex_table(table: Table, warning: str) -> str:
    columns = " & ".join(_tex(column) for column in table.columns)
    lines: list[str] = []
    for line, before in zip(table.lines, [None, *table.lines], strict=False):
        if before is not None and before.kind != line.kind:
            lines.append(r"\midrule")
        lines.append(" & ".join([_tex(line.label), *map(_tex_cell, line.cells)]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_tex(table.caption + warning)}}}",
            f"\\label{{tab:{files.slug(table.key)}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            columns + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _md_cell(cell: Cell) -> str:
    text = _md(cell.text)
    marked = {"best": f"**{text}**", "second": f"<u>{text}</u>"}.get(cell.mark, text)
    return f"{marked} {_md(cell.detail)}".strip()


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    marked = {"best": f"\\textbf{{{text}}}", "second": f"\\underline{{{text}}}"}.get(cell.mark, text)
    return f"{marked} {{\\scriptsize {_tex(cell.detail)}}}" if cell.detail else marked


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", _one_line(text))


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(plain(text).split())


def _field(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = _one_line(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
