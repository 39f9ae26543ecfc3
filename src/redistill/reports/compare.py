"""`redistill compare`: builds the comparison of finished runs and writes it in the requested formats."""

from collections.abc import Callable, Sequence
from pathlib import Path

from redistill.errors import ConfigError
from redistill.reports.sheet import Comparison, compare_runs
from redistill.reports.writers import csv_text, html, latex, markdown
from redistill.storage import files

FORMATS: dict[str, Callable[[Comparison], str]] = {".html": html, ".md": markdown, ".tex": latex, ".csv": csv_text}


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
        baseline: Label or run folder that differences refer to; None selects the sweep's baseline, else the first label.
        labels: Labels to include, in this order; empty includes all.
        published: Names of tables of the paper to include; see `published.published_names`.

    Returns:
        The comparison; `terminal.print_comparison` prints it.

    Raises:
        CheckpointError: a folder is neither a run nor a sweep, is damaged, or contains no finished run.
        ConfigError: unknown file suffix, label, baseline or published table.
        OutputError: a file cannot be written.
    """
    for path in outputs:
        if path.suffix not in FORMATS:
            raise ConfigError(
                f"{path}: unknown suffix '{path.suffix}'; must be one of {', '.join(FORMATS)}; the suffix selects the format"
            )
    comparison = compare_runs(folders, baseline=baseline, labels=labels, published=published)
    for path in outputs:
        files.write_text(path, FORMATS[path.suffix](comparison))
    return comparison
