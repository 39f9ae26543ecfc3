"""The recipes that are installed with the package, by name.

A recipe is a YAML file with the settings of a run; a sweep is a recipe with rows. This module finds the files; run.py and
sweep_recipe.py read them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from redistill.config.shown import nearest, shown
from redistill.errors import ConfigError
from redistill.storage.packaged import packaged


SCHEMA_LINE = "# yaml-language-server: $schema="
"""Start of the comment with which a recipe names its schema; editors read this comment."""
SCHEMA_FILES: Mapping[str, str] = {"run": "run.schema.json", "sweep": "sweep.schema.json"}
"""File names of the schemas in the folder of the recipes, by kind of recipe."""


@dataclass(frozen=True, kw_only=True)
class PackagedRecipe:
    """A recipe that is installed with the package.

    Args:
        name: The name, which commands accept instead of a path.
        kind: "run" for the settings of one run, "sweep" for those of several runs.
        title: What the recipe trains, in one line.
        path: The file.
    """

    name: str
    kind: Literal["run", "sweep"]
    title: str
    path: Path

    @property
    def command(self) -> str:
        """The command that runs the recipe."""
        return f"redistill {self.kind} {self.name}"


def packaged_recipes() -> dict[str, PackagedRecipe]:
    """Return the recipes that are installed with the package, sorted by name.

    Example:
        >>> packaged_recipes()["table1-toy"].command
        'redistill sweep table1-toy'
    """
    found = {}
    for path in sorted(packaged("recipes").glob("*.yaml")):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(SCHEMA_LINE)]
        kind: Literal["run", "sweep"] = "sweep" if "rows:" in (line.split("#")[0].strip() for line in lines) else "run"
        title = lines[0].removeprefix("# ").rstrip(".")
        found[path.stem] = PackagedRecipe(name=path.stem, kind=kind, title=title, path=path)
    return found


def packaged_recipe(name: str) -> PackagedRecipe:
    """Return the recipe of the package that has this name.

    Raises:
        ConfigError: no recipe of the package has this name.

    Example:
        >>> packaged_recipe("table1-tiy")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: 'table1-tiy': no such recipe in the package; did you mean 'table1-toy'?
    """
    known = packaged_recipes()
    if name not in known:
        hint = nearest(name, known, "`redistill recipes list` prints the names")
        raise ConfigError(f"{shown(name)}: no such recipe in the package; {hint}")
    return known[name]


def read_recipe(path: Path, folder: Path = Path()) -> bytes:
    """Return the contents of a recipe.

    If the file `path` exists, it is read. Otherwise, `path` must be the name of a recipe of the package, without a folder and
    without a suffix.

    Args:
        path: Path of a file, relative to `folder`; or the name of a recipe of the package.
        folder: The folder to which a relative `path` refers; by default, the current folder.

    Raises:
        ConfigError: there is no such file and no such recipe, or the file cannot be read.

    Example:
        >>> read_recipe(Path("table1-toy")).splitlines()[1][:9]
        b'# Table 1'
    """
    file = folder / path
    try:
        if not file.is_file() and str(path) in (known := packaged_recipes()):
            file = known[str(path)].path
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{folder / path}: {error.strerror}; {_hint(path)}") from error


def _hint(path: Path) -> str:
    """Return the remedy for a recipe that cannot be read."""
    known = packaged_recipes()
    if path.stem in known:  # such as recipes/table1-toy.yaml outside of a checkout
        return f"the recipe of the package has the name {path.stem}"
    return nearest(path.stem, known, "give the path of a recipe, or a name that `redistill recipes list` prints")
