"""Published tables of the MGSR paper (arXiv 2407.10068).

Published values are shown next to measured values and never ranked with them.  They are stored in published/*.yaml, one file
per table.  They were copied by hand from a scan of the paper; the notes of a table list the values that may be wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files

import yaml

from redistill.errors import ConfigError

SOURCE = "Liu et al. 2026, arXiv 2407.10068"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One table of the MGSR paper (arXiv 2407.10068).

    Args:
        title: Number and subject of the table.
        metric: Key of the metric, as in scores.json.
        score: Description of the values, for the caption.
        columns: Names of the test sets; "average" is the mean over them.
        rows: The values of each row, one per column, by the label of the row.
        notes: Doubtful values and assumptions.
    """

    title: str
    metric: str
    score: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    notes: Sequence[str]


def published_names() -> list[str]:
    """List the names of the published tables in alphabetical order.

    Example:
        >>> published_names()[:2]
        ['table1-gpt2', 'table1-llama2']
    """
    found = (package_files("redistill.reports") / "published").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def read_published(name: str) -> Published:
    """Return the published table `name`; `published_names` lists the names.

    Raises:
        ConfigError: there is no table of this name.
    """
    if name not in published_names():
        raise ConfigError(f"--published {name}: unknown table; must be one of {', '.join(published_names())}")
    text = (package_files("redistill.reports") / "published" / f"{name}.yaml").read_text(encoding="utf-8")
    return Published(**yaml.safe_load(text))
