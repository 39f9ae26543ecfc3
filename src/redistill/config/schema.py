"""The schema number of recipes and of run.json, and the fields that were renamed between schemas.

Schema 1 is that of commit 98f02f3 and before; its recipes have no number.  A recipe without one is read as the current schema.
"""

from collections.abc import Mapping
from typing import Any

from redistill import __version__
from redistill.config.decode import told
from redistill.errors import ConfigError

SCHEMA = 2
FIRST = 1
RENAMED: Mapping[str, str] = {}
"""Old dotted path of a recipe's field -> its path now."""


def check_schema(number: Any, where: str, written_by: Any = None) -> None:
    """Refuse a schema number that is not one, or that only a later version of redistill reads.

    Args:
        number: What the file holds.
        where: Start of the error line, such as the file's path.
        written_by: Version of redistill that wrote the file, where the file names it.

    Raises:
        ConfigError: the number is not a whole number from 1 to the current schema.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < FIRST:
        raise ConfigError(f"{where}: schema = {told(number)}: must be a whole number from {FIRST} to {SCHEMA}")
    if number > SCHEMA:
        named = isinstance(written_by, str) and written_by != __version__
        version = f"redistill {told(written_by)}, which wrote it" if named else f"a version later than {__version__}"
        raise ConfigError(f"{where}: schema = {told(number)}: redistill {__version__} reads up to {SCHEMA}; install {version}")


def schema_of_run(held: Mapping[str, Any], where: str) -> int:
    """The schema number of what a run.json holds.

    Raises:
        ConfigError: `check_schema` refuses it.
    """
    number = held.get("schema", FIRST)
    check_schema(number, where, writer_of(held))
    return int(number)


def writer_of(held: Mapping[str, Any]) -> Any:
    """The version of redistill that a run.json names as its writer; None where it names none."""
    versions = held.get("versions")
    return versions.get("redistill") if isinstance(versions, Mapping) else None


def current_tree(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The tree of a recipe without its schema number.

    Args:
        source: Start of error lines.

    Raises:
        ConfigError: the schema number is refused by `check_schema`, or a field has another name now.
    """
    check_schema(tree.get("schema", SCHEMA), source)
    for old, new in RENAMED.items():
        if _holds(tree, old):
            raise ConfigError(f"{source}: {old}: is called {new} since schema {SCHEMA}; rename it")
    return {name: section for name, section in tree.items() if name != "schema"}


def _holds(tree: Any, path: str) -> bool:
    """Whether a tree has a field at a dotted path."""
    for name in path.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
