"""JSON Schema (draft 2020-12) of a recipe, for editors and other tools.

The schema is generated from the dataclasses that `redistill.config.decode` decodes. It accepts what the decoder accepts, except
that it does not check rules that concern several fields. Descriptions and ranges are those of the docstrings.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Literal, Union, get_args, get_origin, get_type_hints

from redistill.config.decode import ALIASES, Names, default_kind, kind_of, sections_of
from redistill.config.described import descriptions, first_paragraph, number_range
from redistill.config.methods import METHODS
from redistill.config.recipes import GENERATED
from redistill.config.run import NAMES, SLOTS, Run
from redistill.config.schema import FIRST, SCHEMA
from redistill.records import Json

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOTTED = r"^\w+(\.\w+)+$"
"""Pattern of a key that sets one field, such as `objective.span_weight`."""

Schema = dict[str, Json]

_EXTERNAL: Schema = {"type": "string", "pattern": r"^\w+(\.\w+)*:\w+(\.\w+)*$"}
_NUMBER_TEXT: Schema = {"type": "string", "pattern": r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"}
_WHOLE_TEXT: Schema = {"type": "string", "pattern": r"^[+-]?\d+(\.\d*)?[eE][+-]?\d{1,3}$"}
_SCALARS: Mapping[object, Schema] = {str: {"type": "string"}, bool: {"type": "boolean"}, dict: {"type": "object"}}


def run_schema() -> Schema:
    """Return the JSON Schema of the recipe of a run.

    Example:
        >>> schema = run_schema()
        >>> schema["required"], schema["properties"]["seed"]["type"]
        (['name', 'student'], ['integer', 'string'])
    """
    builder = Builder(NAMES)
    return document("Recipe of a run of redistill", builder.section(Run), builder.definitions)


def document(title: str, root: Mapping[str, Json], definitions: Mapping[str, Json]) -> Schema:
    """Return a schema as a complete document.

    Args:
        title: Title of the schema.
        root: Schema of the whole recipe.
        definitions: Schemas by name, to which `root` refers.
    """
    number: Schema = {
        "type": "integer",
        "minimum": FIRST,
        "maximum": SCHEMA,
        "description": "Version of the format of recipes.",
    }
    head: Schema = {"$schema": DIALECT, "$comment": GENERATED, "title": title}
    fields: Schema = {"schema": number, **mapping(root["properties"])}
    return {**head, **root, "properties": fields, "$defs": dict(sorted(definitions.items()))}


class Builder:
    """Builds the schemas of the dataclasses of a recipe.

    Args:
        names: Mapping from names to types, for type hints that are strings (forward references).
        is_partial: Whether every field may be omitted, as in the base and the rows of a sweep.
    """

    def __init__(self, names: Names, *, is_partial: bool = False) -> None:
        self.names, self.is_partial = names, is_partial
        self.definitions: Schema = {}

    def section(self, node: type) -> Schema:
        """Return the schema of a mapping whose keys are the fields of a dataclass.

        Schemas of other dataclasses are added to `definitions`.

        Args:
            node: The dataclass.
        """
        hints, texts = get_type_hints(node, localns=self.names), descriptions(node)
        properties: Schema = {}
        required = []
        for each in dataclasses.fields(node):
            text = texts.get(each.name, "")
            found = _method() if node is Run and each.name == "method" else self._type(hints[each.name], text)
            properties[each.name] = {**found, **_default(each), "description": text}
            if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
                required.append(each.name)
        schema: Schema = {"type": "object", "description": first_paragraph(node), "properties": properties}
        if required and not self.is_partial:
            schema["required"] = required
        return {**schema, "additionalProperties": False}

    def _reference(self, node: type, kind: str | None = None) -> Schema:
        """Return a reference to the schema of a dataclass.

        If `kind` is set, the section has the key `kind` with this value, or with an alias of it.
        """
        if node.__name__ not in self.definitions:
            self.definitions[node.__name__] = {}  # a section may contain itself, as the source of a policy
            schema = self.section(node)
            if kind is not None:
                schema["properties"] = {"kind": {"enum": _spellings(kind)}} | mapping(schema["properties"])
            self.definitions[node.__name__] = schema
        return {"$ref": f"#/$defs/{node.__name__}"}

    def _type(self, expected: object, text: str) -> Schema:
        """Return the schema of a field of the type `expected`.

        `text` is the description of the field.
        """
        nodes, origin, args = sections_of(expected), get_origin(expected), get_args(expected)
        if len(nodes) > 1 or any(map(default_kind, nodes)):
            return self._kinds(nodes, is_optional=type(None) in args)
        if nodes and not args:
            return self._reference(nodes[0])
        if origin in {Union, types.UnionType}:
            return self._union(args, text)
        if origin is Literal:
            return {"enum": list(args)}
        if origin is tuple:
            return self._list(args, text)
        if origin is dict:
            return {"type": "object", "additionalProperties": self._type(args[1], "")}
        if expected is types.NoneType:
            return {"type": "null"}
        if expected is float:
            return {"type": ["number", "string"], **number_range(text), "pattern": _NUMBER_TEXT["pattern"]}
        if expected is int:
            return {"type": ["integer", "string"], **number_range(text), "pattern": _WHOLE_TEXT["pattern"]}
        return dict(_SCALARS[expected])

    def _union(self, args: tuple[object, ...], text: str) -> Schema:
        """Return the schema of a union of types, of which at most one is a section."""
        found = [self._type(arg, text) for arg in args]
        sections = [schema for schema in found if "$ref" in schema]
        others = [schema for schema in found if "$ref" not in schema]
        if sections and all(set(schema) == {"type"} for schema in others):  # so that a fault in the section has its own path
            kinds = ["object", *(schema["type"] for schema in others)]
            return {"type": kinds, "if": {"type": "object"}, "then": sections[0]}
        null: Schema = {"type": "null"}
        if len(found) == 2 and null in others:
            (one,) = (schema for schema in found if schema != null)
            if isinstance(one.get("enum"), list):
                return {**one, "enum": [*_items(one["enum"]), None]}
            if "type" in one:
                kind = one["type"]
                return {**one, "type": [*([kind] if isinstance(kind, str) else _items(kind)), "null"]}
        return _any_of(found)

    def _list(self, args: tuple[object, ...], text: str) -> Schema:
        """Return the schema of a list; a text is accepted instead of a list with this text."""
        each = text if "each in" in text else ""
        if args[1:] != (...,):
            items = [self._type(arg, each) for arg in args]
            return {"type": "array", "prefixItems": items, "minItems": len(args), "maxItems": len(args)}
        item = self._type(args[0], each)
        if "$ref" in item:
            return {"type": "array", "items": item}
        return {"type": ["array", "string"], "items": item, "if": {"type": "string"}, "then": item}

    def _kinds(self, nodes: list[type], *, is_optional: bool) -> Schema:
        """Return the schema of a section whose dataclass the key `kind` selects.

        A text is accepted instead of a section that has only the key `kind`.
        """
        kinds = {kind_of(node): node for node in nodes}
        names = [name for kind in kinds for name in _spellings(kind)]
        alone = [name for kind, node in kinds.items() for name in _spellings(kind) if self.is_partial or not _required(node)]
        is_open = any(set(slot.members) <= set(nodes) for slot in SLOTS)
        default = next((kind for node in nodes if (kind := default_kind(node))), None)
        rules: list[Json] = [{"if": {"type": "string"}, "then": _named(alone, is_open)}]
        whole: Schema = {"type": "object", "properties": {"kind": _named(names, is_open)}}
        if default is None:
            whole["required"] = ["kind"]
        else:
            rules.append({"if": _object(not_required=["kind"]), "then": self._reference(kinds[default], default)})
        rules.append({"if": {"type": "object"}, "then": whole})
        for kind, node in kinds.items():
            named = _object(required=["kind"]) | {"properties": {"kind": {"enum": _spellings(kind)}}}
            rules.append({"if": named, "then": self._reference(node, kind)})
        return {"type": ["object", "string", *(["null"] if is_optional else [])], "allOf": rules}


def _items(value: Json) -> list[Json]:
    assert isinstance(value, list)
    return value


def mapping(value: Json) -> dict[str, Json]:
    """Convert a mapping in a schema to a dict."""
    assert isinstance(value, Mapping)
    return dict(value)


def _required(node: type) -> bool:
    """Return whether a dataclass has a field without a default."""
    return any(f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING for f in dataclasses.fields(node))


def _spellings(kind: str) -> list[Json]:
    """Return a kind and its aliases."""
    return [kind, *(alias for alias, name in ALIASES.items() if name == kind)]


def _named(names: list[Json], is_open: bool) -> Schema:
    """Return the schema of the name of a kind.

    If `is_open` is set, the names of external classes are accepted as well.
    """
    found: Schema = {"enum": names}
    return _any_of([found, _EXTERNAL]) if is_open else found


def _object(*, required: list[Json] | None = None, not_required: list[Json] | None = None) -> Schema:
    found: Schema = {"type": "object"}
    if required is not None:
        found["required"] = required
    return found if not_required is None else {**found, "not": {"required": not_required}}


def _any_of(options: list[Schema]) -> Schema:
    return options[0] if len(options) == 1 else {"anyOf": options}


def _method() -> Schema:
    return _any_of([{"enum": list(METHODS)}, _EXTERNAL])


def _default(field: "dataclasses.Field[object]") -> Schema:
    """Return the keyword for the default of a field.

    The result is empty if the default is not a number, a text, a list, true or false.
    """
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return {"default": value} if isinstance(value, bool | int | float | str | list) else {}
