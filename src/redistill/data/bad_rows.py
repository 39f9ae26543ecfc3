"""Faults of rows, and checks of the texts in a row."""

import re
from collections.abc import Mapping
from typing import Literal

Fault = (
    Literal["not UTF-8", "byte order mark", "not JSON", "not CSV"]
    | Literal["not an object", "unknown keys", "no answer", "too large"]
    | Literal["missing text", "empty text", "wrong type", "NUL character", "lone surrogate"]
    | Literal["unknown role", "order of roles", "tool call"]
    | Literal["nothing to learn"]
)
"""Kinds of faults of a row.

The lines above list the faults of a line in a file, of a row, of a text in a row, and of a conversation. The fault in the last
line is detected by tokenization only.
"""

_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRow(Exception):
    """Raised for an unusable row; the message is the reason, in one short line."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault: Fault = fault


def filled(value: object, name: str) -> str:
    """Check that `value` is a string that is not blank, and return it.

    BadRow is raised for any other value.  `name` is the name of the value in the message.
    """
    text = text_of(value, name)
    if not text.strip():
        raise BadRow("empty text", f"{name} is empty")
    return text


def text_of(value: object, name: str) -> str:
    """Check that `value` is a string of valid Unicode, and return it.

    BadRow is raised for any other value, and for a string with a NUL character.  `name` is the name of the value in the
    message.
    """
    if not isinstance(value, str):
        fault: Fault = "missing text" if value is None else "wrong type"
        raise BadRow(fault, f"{name} is {kind_of(value)}; it must be a string")
    if "\x00" in value:
        raise BadRow("NUL character", f"{name} has a NUL character")
    if not value.isascii() and _SURROGATE.search(value):
        raise BadRow("lone surrogate", f"{name} has a lone surrogate, which is not valid Unicode")
    return value


def first(row: Mapping[str, object], *names: str) -> object:
    """Return the first value of `row` under the keys `names` that is not null.

    The keys are tried in order. The result is None if there is no such value.
    """
    key = first_key(row, *names)
    return None if key is None else row[key]


def first_key(row: Mapping[str, object], *names: str) -> str | None:
    """Return the first key in `names` whose value in `row` is not null.

    The result is None if there is no such key.
    """
    return next((name for name in names if row.get(name) is not None), None)


def kind_of(value: object) -> str:
    """Describe the JSON type of a value for an error message.

    Examples are "a string" and "missing".
    """
    if value is None:
        return "missing"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    if value in ([], {}):
        return "empty"
    return names.get(type(value), f"a {type(value).__name__}")
