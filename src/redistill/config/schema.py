"""Schema numbers of recipes and run.json, and fields that were renamed.

A schema number is the version of the file format. A run.json without a number has schema 1, since the first versions of
redistill wrote no number. A recipe without a number has the current schema.
"""

from collections.abc import Mapping

from redistill import __version__
from redistill.config.shown import shown
from redistill.errors import ConfigError

SCHEMA = 2
FIRST = 1
RENAMED: Mapping[str, str] = {}
"""Maps the former dotted path of each renamed field to its current path."""


def check_schema(number: object, where: str, written_by: object = None) -> int:
    """Return a schema number, if this version of redistill supports it.

    Args:
        number: The schema number in the file.
        where: Prefix of the error message, such as the path of the file.
        written_by: Version of redistill that wrote the file; None if the file does not state the version.

    Raises:
        ConfigError: the number is not a whole number from 1 to the current schema.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < FIRST:
        allowed = f"must be a whole number from {FIRST} to {SCHEMA}"
        raise ConfigError(f"{where}: schema = {shown(number)}: {allowed}; remove the number to use the current schema")
    if number > SCHEMA:
        named = isinstance(written_by, str) and written_by != __version__
        version = f"redistill {shown(written_by)}, which wrote it" if named else f"a version later than {__version__}"
        raise ConfigError(
            f"{where}: schema = {shown(number)}: redistill {__version__} reads schemas up to {SCHEMA}; install {version}"
        )
    return number


def schema_of_run(held: Mapping[str, object], where: str) -> int:
    """Check the schema number of a run.json, and return the number.

    Args:
        held: The content of the run.json.
        where: Prefix of error messages, such as the path of the file.

    Raises:
        ConfigError: the number is not a whole number from 1 to the current schema.
    """
    return check_schema(held.get("schema", FIRST), where, writer_of(held))


def writer_of(held: Mapping[str, object]) -> object:
    """Return the version of redistill that wrote a run.json.

    The result is None if the file does not state the version.
    """
    versions = held.get("versions")
    return versions.get("redistill") if isinstance(versions, Mapping) else None


def current_tree(tree: Mapping[str, object], source: str) -> dict[str, object]:
    """Check the schema number of a recipe, and return the recipe without the number.

    The result is a copy of the recipe without the key "schema", which has the number.

    Args:
        tree: The recipe.
        source: Prefix of error messages, such as the path of the file.

    Raises:
        ConfigError: the schema number is not supported, or the recipe has the former name of a renamed field.
    """
    check_schema(tree.get("schema", SCHEMA), source)
    for old, new in RENAMED.items():
        if _holds(tree, old):
            raise ConfigError(f"{source}: {old}: was renamed to {new} in schema {SCHEMA}; rename it")
    return {name: section for name, section in tree.items() if name != "schema"}


def _holds(tree: object, path: str) -> bool:
    """Return whether a recipe has a field at a dotted path such as `training.updates`."""
    for name in path.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
