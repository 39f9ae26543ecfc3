"""Parsing of recipes and overrides: YAML with basic types and limited size.

Recipes are untrusted input.  Therefore the parser limits the size of the text, the number of nested sections, and the number of
values. Values are counted after the expansion of aliases.
"""

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import yaml

from redistill.config.shown import line, shown
from redistill.errors import ConfigError
from redistill.records import Json

MAX_YAML_BYTES = 1_000_000
MAX_YAML_ALIASES = 50
MAX_VALUES = 100_000  # without a limit, a few nested aliases expand a kilobyte to gigabytes
MAX_DEPTH = 20  # nested sections
PATH = re.compile(r"\w+(\.\w+)*", re.ASCII)
"""Path of a field in a recipe."""
_FEW_LEVELS = "remove the inner levels, since a recipe has only a few"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def parse_yaml(text: bytes, source: str) -> dict[str, Json]:
    """Parse YAML whose top level is a mapping, and return the mapping.

    The size of the text and the number of aliases are limited, and duplicate keys are rejected.

    Args:
        text: The text of a YAML file.
        source: Prefix of error messages, such as the path of the file.

    Raises:
        ConfigError: the text is not YAML, is not a mapping, or exceeds a limit.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ConfigError(
            f"{source}: {len(text)} bytes of YAML: must be at most {MAX_YAML_BYTES}; remove what is not part of a recipe"
        )
    tree = _load(text, source, "fix the line, or quote its text")
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: a recipe is a mapping of sections, such as `method: mgsr`; found {type(tree).__name__}")
    return tree


class Override(NamedTuple):
    """A value that replaces the value of one field of a recipe.

    Args:
        path: Path of the field, such as "optimiser.learning_rate".
        value: The value as a Python object, such as 0.1. A string is used unchanged: it is not parsed as YAML.
    """

    path: str
    value: object


def parse_override(text: str) -> Override:
    """Parse `section.field=value`, and return it as an override.

    The value is parsed as YAML.

    Raises:
        ConfigError: the text does not have the form `section.field=value`, or its value is not YAML.

    Example:
        >>> parse_override("optimiser.betas=[0.9, 0.95]")
        Override(path='optimiser.betas', value=[0.9, 0.95])
    """
    path, equals, value = text.partition("=")
    if not equals or not PATH.fullmatch(path):
        raise ConfigError(f"{shown(text)}: an override has the form section.field=value")
    return Override(path, _load(value, line(text), "quote the value for YAML, such as 'name=\"a: b\"'"))


def apply_overrides(tree: Mapping[str, object], overrides: Iterable[Override]) -> dict[str, object]:
    """Return a copy of a recipe with overrides applied.

    `tree` is the recipe, as nested mappings. If two overrides have the same path, the later one has precedence.

    Raises:
        ConfigError: the path of an override is not a list of names joined by dots; or the path names more than 20 sections.
    """
    result = _copied(tree)
    for path, value in overrides:
        if not PATH.fullmatch(path):
            raise ConfigError(f"{shown(path)}: must be names joined by dots, such as optimiser.learning_rate")
        *sections, last = path.split(".")
        if len(sections) > MAX_DEPTH:
            raise ConfigError(
                f"{shown(path)}: {len(sections)} nested sections: must be at most {MAX_DEPTH}; write the name of a field as "
                "section.field"
            )
        here = result
        for section in sections:
            held = here.get(section)
            inner: dict[str, object] = held if isinstance(held, dict) else {"kind": held} if isinstance(held, str) else {}
            here[section] = inner
            here = inner
        here[last] = value
    return result


def _load(text: bytes | str, source: str, remedy: str) -> object:
    """Return the value of a YAML text.

    A ConfigError for an invalid text starts with `source`. If the text is not YAML, the message ends with `remedy`.
    """
    try:
        value = yaml.load(text, Loader=_StrictLoader)
        size = _size(value, {})
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply; {_FEW_LEVELS}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as error:  # `!!int x`: ValueError
        raise ConfigError(f"{source}: not YAML ({_yaml_fault(error)}); {remedy}") from error
    if size.depth > MAX_DEPTH:
        raise ConfigError(f"{source}: {size.depth} levels of nested values: must be at most {MAX_DEPTH}; {_FEW_LEVELS}")
    if size.num_values > MAX_VALUES:
        raise ConfigError(
            f"{source}: more than {MAX_VALUES} values after the expansion of aliases; write the values without aliases"
        )
    return value


def _yaml_fault(error: Exception) -> str:
    """Return a description of a YAML error.

    The description does not quote the text, which may contain a secret.
    """
    mark = getattr(error, "problem_mark", None)
    if not isinstance(error, yaml.MarkedYAMLError) or mark is None:
        return line(str(error) or type(error).__name__)
    return line(f"{error.problem or error.context}, line {mark.line + 1}, column {mark.column + 1}")


class _Size(NamedTuple):
    """The number of values and of nested levels of a YAML value."""

    num_values: int
    depth: int


def _size(value: object, known: dict[int, _Size]) -> _Size:
    """Return the size of nested dicts and lists.

    `known` caches the size of each dict and list, by its `id()`.

    Raises:
        RecursionError: a value contains itself.
    """
    if not isinstance(value, dict | list):
        return _Size(1, 0)
    if id(value) not in known:
        sizes = [_size(item, known) for item in (value.values() if isinstance(value, dict) else value)]
        known[id(value)] = _Size(1 + sum(size.num_values for size in sizes), 1 + max((size.depth for size in sizes), default=0))
    return known[id(value)]


def _copied(tree: Mapping[str, object]) -> dict[str, object]:
    return {key: _copied(item) if isinstance(item, Mapping) else item for key, item in tree.items()}


class _StrictLoader(yaml.SafeLoader):
    """A YAML loader with strict rules for aliases, keys and numbers.

    The number of aliases is limited, duplicate keys are an error, and numbers in base 60 are not supported.

    In YAML 1.1, 1:30 is the integer 90. This loader returns the text "1:30", as YAML 1.2 requires.
    """

    def __init__(self, stream: bytes | str) -> None:
        super().__init__(stream)
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_YAML_ALIASES:
                raise yaml.YAMLError(f"more than {MAX_YAML_ALIASES} aliases")
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and ":" in node.value:
            node.tag = self.DEFAULT_SCALAR_TAG
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen = set()
        for key in (self.construct_object(key, deep=True) for key, _ in node.value):
            if key in seen:  # an unhashable key raises a TypeError, which `_load` reports
                raise yaml.YAMLError(f"duplicate key '{key}' in the mapping that starts in line {node.start_mark.line + 1}")
            seen.add(key)
        return super().construct_mapping(node, deep)
