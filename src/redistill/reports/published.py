"""The paper's own tables, to be shown beside measured ones and never ranked with them.

The figures stand in published/*.yaml, one file a table, copied by hand from a scan; what is doubtful in it is noted there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files

import yaml

from redistill.errors import ConfigError

SOURCE = "Liu et al. 2026, arXiv 2407.10068"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One table of the paper.

    Args:
        metric: The metric's key in files.
        score: What the figures are, in words.
        columns: Data sets, called as `redistill methods` calls them, and perhaps their average.
        rows: Label -> a figure for each column.
        notes: What is doubtful about the figures.
    """

    title: str
    metric: str
    score: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[float]]
    notes: Sequence[str]


def published_names() -> list[str]:
    """The names that `read_published` knows.

    Example:
        >>> published_names()[:2]
        ['table1-gpt2', 'table1-llama2']
    """
    found = (package_files("redistill.reports") / "published").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in found if file.name.endswith(".yaml"))


def read_published(name: str) -> Published:
    """A table of the paper by its name.

    Raises:
        ConfigError: no such table.
    """
    if name not in published_names():
        raise ConfigError(f"--published {name}: no such table; choose from {', '.join(published_names())}")
    text = (package_files("redistill.reports") / "published" / f"{name}.yaml").read_text(encoding="utf-8")
    return Published(**yaml.safe_load(text))
