"""`redistill compare`: finished runs in, one comparison out, in as many formats as are asked for."""

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
    """Compare finished runs, and write the comparison to each of `outputs`.

    Args:
        folders: Run folders, or folders of sweeps.
        outputs: Files whose endings say their format: .html, .md, .tex or .csv.
        baseline: A label or a run folder; None takes the sweep's, else the first label.
        labels: Only these rows, in this order; none takes all.
        published: Names of the paper's tables to show beside the measured ones.

    Returns:
        The comparison; `terminal.print_comparison` shows it.

    Raises:
        CheckpointError: a folder is neither a run nor a sweep, is damaged, or has nothing finished.
        ConfigError: another ending, no such row or baseline, or no such published table.
        OutputError: a file cannot be written.
    """
    for path in outputs:
        if path.suffix not in FORMATS:
            raise ConfigError(f"{path}: ends in '{path.suffix}'; must end in {', '.join(FORMATS)}, which says the format")
    comparison = compare_runs(folders, baseline=baseline, labels=labels, published=published)
    for path in outputs:
        files.write_text(path, FORMATS[path.suffix](comparison))
    return comparison
