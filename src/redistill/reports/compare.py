"""`redistill compare`: builds and writes the comparison of finished runs.

Labels and other texts from files are untrusted, so the special characters of each output format are escaped.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from redistill.errors import ConfigError
from redistill.reports.compare_page import page_of, repeat_command
from redistill.reports.measured import Measured, read_measured
from redistill.reports.pages import markdown_text, render
from redistill.reports.published import read_published
from redistill.reports.sheet import Comparison, comparison_of
from redistill.storage import files
from redistill.storage.redaction import plain_line

_TEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "[": "{[}",  # at the start of a row, "[" would be parsed as the optional argument of the preceding \\
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}
_FORMULA = re.compile(r"[\s'\"]*[=+\-@|%]")  # the start of a formula in spreadsheets


def html(measured: Measured, comparison: Comparison, command: str) -> str:
    """Return the comparison as one self-contained HTML page.

    Args:
        measured: The compared runs.
        comparison: Their comparison.
        command: The command that builds the comparison, to be shown on the page.
    """
    return render("compare.html", {**page_of(measured, comparison), "command": command}, scripts=["responses.js"])


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown for GitHub.

    The best value of each column is bold, the second best is underlined.
    """
    return render("compare.md", {"comparison": comparison}, markdown_text) + "\n"


def latex(comparison: Comparison) -> str:
    r"""Return the comparison as LaTeX tables, to be included by \input.

    The tables need the LaTeX package booktabs.  The caption of the first table lists the settings that are not equal in all
    runs.
    """
    return render("compare.tex", {"comparison": comparison}, _tex) + "\n"


def csv_text(comparison: Comparison) -> str:
    """Return the comparison as CSV, with numbers in full precision.

    Each model has one line per table column (a data set or an average).  Further decodings have lines of their own.  Values of
    the included tables of the MGSR paper (arXiv 2407.10068) have one line each.  Fields without a value are empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(comparison.fields)
    for record in comparison.records:
        writer.writerow([_field(record.get(name)) for name in comparison.fields])
    return out.getvalue()


_TEXTS: dict[str, Callable[[Comparison], str]] = {".md": markdown, ".tex": latex, ".csv": csv_text}
FORMATS = (".html", *_TEXTS)


def build_comparison(
    folders: Sequence[Path],
    outputs: Sequence[Path] = (),
    *,
    baseline: str | None = None,
    labels: Sequence[str] = (),
    published: Sequence[str] = (),
) -> Comparison:
    """Compare finished runs and write the comparison to each of `outputs`.

    Args:
        folders: Run folders or sweep folders.
        outputs: Files to write; the suffix selects the format: .html, .md, .tex or .csv.
        baseline: Label or folder of the run that the others are compared with.  If None, it is the baseline that a sweep sets,
            or else the first run.
        labels: Labels of the runs to include, in this order; if empty, all runs are included.
        published: Names of published tables of the MGSR paper (arXiv 2407.10068) to include; `published.published_names` lists
            them.

    Returns:
        The comparison; `terminal.print_comparison` prints it.

    Raises:
        CheckpointError: a folder is neither a run nor a sweep; a folder is damaged; there is no finished run.
        ConfigError: a file suffix, a label, the baseline or a published table is unknown.
        OutputError: a file cannot be written.
    """
    for path in outputs:
        if path.suffix not in FORMATS:
            raise ConfigError(
                f"{path}: unknown suffix '{path.suffix}'; must be one of {', '.join(FORMATS)}; the suffix selects the format"
            )
    tables = {name: read_published(name) for name in published}
    measured = read_measured(folders, baseline, labels)
    comparison = comparison_of(measured, tables)
    for path in outputs:
        write = _TEXTS.get(path.suffix)
        command = repeat_command(folders, baseline, labels, published)
        files.write_text(path, write(comparison) if write else html(measured, comparison, command))
    return comparison


def _tex(text: str) -> Markup:
    return Markup("".join(_TEX.get(letter, letter) for letter in plain_line(text)))


def _field(value: object) -> object:
    if not isinstance(value, str):
        return value
    # Some spreadsheets separate fields by semicolons, and read full-width signs as operators; NFKC maps these to the signs.
    parts = re.split("([;\N{FULLWIDTH SEMICOLON}\N{GREEK QUESTION MARK}])", plain_line(value))
    return "".join(f"'{part}" if _FORMULA.match(unicodedata.normalize("NFKC", part)) else part for part in parts)
