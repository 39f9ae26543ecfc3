"""Strict conversion of YAML to frozen dataclasses and back.

The functions convert any dataclass. An unknown key or a wrong type is an error that names the path of the field. If a field
accepts several dataclasses, the key `kind` selects one of them; `kind_of` returns the value of this key for a class. If another
package defines the class (an external class), the value is `module:Name`.

Recipes are untrusted input. A string with a secret, a control character or a line feed is rejected.
"""

import dataclasses
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from redistill.config.other_tools import setting_hint, value_hint
from redistill.config.plugins import External, name_of
from redistill.config.shown import MAX_WHOLE, line, nearest, shown
from redistill.config.whole_numbers import whole_number
from redistill.errors import ConfigError
from redistill.records import Json
from redistill.storage.paths import unusable
from redistill.storage.redaction import plain_line, printable, redacted_tree, secret_in

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MAX_TEXT = 2_000  # characters; errors quote texts, and names and paths are shorter than this
_FILES = re.compile(r"(^|\.)(out|cache|path|folder|store|train|validation|tests|corpus)(\W|$)")
"""Paths of fields whose texts are paths of files or folders.  Names of models are checked when they are loaded, since a served
model may have any name."""
ALIASES = {
    "fkl": "forward_kl",
    "rkl": "reverse_kl",
    "sfkl": "skew_forward_kl",
    "srkl": "skew_reverse_kl",
    "jsd": "jensen_shannon",
    "tvd": "total_variation",
    "akl": "adaptive_kl",
    "ab": "alpha_beta",
    "nla": "negative_log_acceptance",
    "lk_hybrid": "hybrid_acceptance",
}


Tree = TypeVar("Tree", bound="DataclassInstance")
Names = Mapping[str, object]


class _Context(NamedTuple):
    names: Names
    external: External


NOTHING = External()


def decode(expected: type[Tree], tree: Mapping[str, object], names: Names, external: External = NOTHING) -> Tree:
    """Return an instance of a dataclass with the values of a YAML mapping.

    Args:
        expected: The dataclass.
        tree: The values of the fields, as mappings, lists and scalars.
        names: Mapping from names to types, for type hints that are strings (forward references).
        external: The classes of other packages that the key `kind` of a field may select.

    Raises:
        ConfigError: a key is unknown; a field is missing; a value has a wrong type or is out of range; a string is too long
            for a name or path; or a string contains a secret, a control character or a line feed. The message starts with the
            path of the field.
    """
    _check_texts(tree)
    return _decode_dataclass(expected, tree, "", _Context(names, external))


def _check_texts(value: object, path: str = "") -> None:
    """Raise a ConfigError if `value` contains a string that is not allowed.

    A string must not be too long, and must not contain a secret, a control character or a line feed. If the name of its field
    matches `_FILES`, the string must also be a valid path of a file. All strings in mappings and lists are checked. `path` is
    the path of `value` in the recipe, for the error message.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            _check_text(path or "the recipe", str(key))
            _check_texts(item, line(f"{path}.{key}".lstrip(".")))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_texts(item, f"{path}[{index}]")
    elif isinstance(value, str):
        _check_text(path, value)


def _check_text(path: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ConfigError(
            f"{path} = {shown(text)}: is {len(text)} characters long; must be at most {MAX_TEXT}; use a shorter name or path"
        )
    if text.splitlines() not in ([], [text]):
        raise ConfigError(f"{path} = {shown(text)}: contains a line feed; remove it, since the value must be one line")
    if text != printable(text):
        fault = "contains a control character, an invisible character or a lone surrogate; remove it"
        raise ConfigError(f"{path} = {shown(text)}: {fault}")
    if what := secret_in(text):
        remedy = "remove it, since recipes are copied to run folders and reports; pass tokens in the environment (HF_TOKEN)"
        raise ConfigError(f"{path} = {shown(text)}: contains {what}; {remedy}")
    if _FILES.search(path) and (reason := unusable(text)):
        raise ConfigError(f"{path} = {shown(text)}: {reason}")


def encode(node: object, names: Names) -> dict[str, Json]:
    """Convert a dataclass instance to dicts, lists and scalars, with secrets masked.

    If no secret was masked, `decode` converts the result back to an equal instance. `names` maps names to types, for type hints
    that are strings (forward references).
    """
    return cast("dict[str, Json]", redacted_tree(_encode(node, names)))


def _encode(value: Any, names: Names) -> Any:
    if isinstance(value, tuple | list):
        return [_encode(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item, names) for key, item in value.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return value
    tree = {}
    hints = get_type_hints(type(value), localns=names)
    for f in fields(value):
        item, members = getattr(value, f.name), sections_of(hints[f.name])
        tree[f.name] = _encode(item, names)
        if (len(members) > 1 or any(map(default_kind, members))) and is_dataclass(item):
            kind = kind_of(type(item)) if type(item) in members else name_of(type(item))
            tree[f.name] = {"kind": kind} | tree[f.name]
    return tree


def _decode(expected: object, value: object, path: str, context: _Context) -> object:
    """Return a YAML value, converted to the type `expected`.

    `path` is the path of the field, with which the message of a ConfigError starts. `context` has the arguments `names` and
    `external` of `decode`.
    """
    members = sections_of(expected)
    origin, args = get_origin(expected), get_args(expected)
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise ConfigError(f"{path} = {shown(value)}: must lie between -2^63 and 2^63")
    if value is None and type(None) in args:
        return None
    if len(members) > 1 or any(map(default_kind, members)):
        return _decode_kind(members, value, path, context)
    if members and (isinstance(value, dict) or str not in args):  # a section that a text can abbreviate, as in `str | Source`
        return _decode_dataclass(members[0], value, path, context)
    if origin in {Union, types.UnionType}:
        return _decode_either([arg for arg in args if arg is not type(None)], value, path, context)
    if origin is Literal and value in args:
        return value
    if origin is tuple:
        return _decode_tuple(args, value, path, context)
    if origin is dict and isinstance(value, dict):
        return {str(key): _decode(args[1], item, f"{path}.{line(str(key))}", context) for key, item in value.items()}
    if expected is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 parses 5e-4 as a string
        except ValueError:
            pass
    elif expected is int and (whole := whole_number(value)) is not None:
        return whole
    elif isinstance(expected, type) and isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    allowed = _name(expected)
    raise ConfigError(f"{path} = {shown(value)}: must be {allowed}{value_hint(value, args) if origin is Literal else ''}")


def _decode_dataclass(cls: type[Tree], value: object, path: str, context: _Context) -> Tree:
    if not isinstance(value, dict):
        raise ConfigError(f"{path or 'the recipe'} = {shown(value)}: must be a mapping of fields")
    hints = get_type_hints(cls, localns=context.names)
    known = {f.name: f for f in fields(cls)}
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in known:
            hint = setting_hint(str(key), known) or nearest(str(key), known, f"allowed are {', '.join(known) or 'none'}")
            raise ConfigError(f"{prefix}{line(str(key))}: no such {'field' if path else 'section'}; {hint}")
    for name, f in known.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: missing; it has no default, so the recipe must set it")
    decoded = {key: _decode(hints[key], item, prefix + key, context) for key, item in value.items()}
    try:
        return cls(**decoded)
    except ValueError as error:  # a ConfigError, or another ValueError of an external class
        raise ConfigError(f"{prefix}{plain_line(str(error))}") from error


def _decode_kind(members: list[type], value: object, path: str, context: _Context) -> object:
    """Return an instance of the dataclass that the key `kind` of `value` selects.

    The dataclass is one of `members`, or an external class (a class of another package). A string `value` is equivalent to a
    mapping with only the key `kind` and this string. A mapping without the key `kind` selects the first class of `members`
    that itself defines an attribute `kind`.
    """
    tree = {"kind": value} if isinstance(value, str) else value
    kinds = {kind_of(member): member for member in members}
    if isinstance(tree, dict) and "kind" not in tree:
        tree = {"kind": next((kind for member in members if (kind := default_kind(member))), None)} | tree
    if not isinstance(tree, dict) or tree["kind"] is None:
        raise ConfigError(f"{path}.kind: missing; choose one of {', '.join(kinds)}")
    name = ALIASES.get(str(tree["kind"]), str(tree["kind"]))
    if ":" in name:
        try:
            kinds[name] = context.external.component(name, members)
        except ConfigError as error:
            raise ConfigError(f"{path}.kind = {shown(name)}: {error}") from error
    if name not in kinds:
        hint = nearest(name, kinds, f"choose one of {', '.join(kinds)}")
        raise ConfigError(f"{path}.kind = {shown(tree['kind'])}: no such kind; {hint}")
    return _decode_dataclass(kinds[name], {key: item for key, item in tree.items() if key != "kind"}, path, context)


def _decode_either(options: list[object], value: object, path: str, context: _Context) -> object:
    for option in options:
        try:
            return _decode(option, value, path, context)
        except ConfigError as error:
            last = error
    raise last if len(options) == 1 else ConfigError(f"{path} = {shown(value)}: must be {' or '.join(map(_name, options))}")


def _decode_tuple(args: tuple[object, ...], value: object, path: str, context: _Context) -> tuple[object, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{path} = {shown(value)}: must be a list")
    kinds = [args[0]] * len(items) if len(args) == 2 and args[1] is ... else list(args)
    if len(kinds) != len(items):
        raise ConfigError(f"{path} = {shown(value)}: must have {len(kinds)} values")
    pairs = enumerate(zip(kinds, items, strict=True))
    return tuple(_decode(kind, item, f"{path}[{index}]", context) for index, (kind, item) in pairs)


def sections_of(expected: object) -> list[type]:
    """Return the dataclasses that a field of the type `expected` accepts.

    For a union, the result has all dataclasses of the union. For a dataclass, it has only this class. For any other type,
    the result is empty.
    """
    options = get_args(expected) if get_origin(expected) in {Union, types.UnionType} else (expected,)
    return [option for option in options if isinstance(option, type) and is_dataclass(option)]


def kind_of(cls: type) -> str:
    """Return the value of the key `kind` that selects a class in a recipe.

    If the class itself defines an attribute `kind`, the result is the value of this attribute. Otherwise, the result is the
    class name in snake case, without the suffix "Config".
    """
    if kind := default_kind(cls):
        return kind
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Config")).lower()


def default_kind(cls: type) -> str | None:
    """Return the string `kind` that the class itself defines, or None."""
    kind = vars(cls).get("kind")
    return kind if isinstance(kind, str) else None


def _name(expected: object) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping", tuple: "a list"}
    cls = get_origin(expected) or expected
    if cls is Literal:
        return " or ".join(map(repr, get_args(expected)))
    if is_dataclass(cls):
        return "a mapping"
    return names[cls] if isinstance(cls, type) and cls in names else str(expected)
