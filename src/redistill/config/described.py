"""Descriptions and ranges of the fields of a recipe, from docstrings.

The page docs/configuration.md and the JSON Schema of recipes use them.
"""

import inspect
import re
from collections.abc import Mapping

from redistill.records import Json

_BOUND = re.compile(r"(?P<sign>>=|>) (?P<value>-?[\d.]*\d)")
_INTERVAL = re.compile(r"\bin (?P<open>[\[(])(?P<lower>-?[\d.]*\d), (?P<upper>-?[\d.]*\d)(?P<close>[\])])")


def descriptions(node: type) -> dict[str, str]:
    """Return the description of each field of a dataclass.

    The descriptions are those under Args in the docstrings of the class and of its parent classes. "None" is replaced by
    "null", as it is written in a recipe.
    """
    found: dict[str, str] = {}
    for cls in reversed(node.__mro__):
        doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        block = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc + "\n", re.MULTILINE)
        for entry in re.split(r"\n(?=    \w)", "\n" + block.group(1).rstrip()) if block else ():
            names, _, text = entry.partition(":")
            found |= dict.fromkeys(re.split(r",\s*", names.strip()), re.sub(r"\bNone\b", "null", " ".join(text.split())))
    return found


def first_paragraph(node: type) -> str:
    """Return the first paragraph of a class's docstring as one line."""
    return " ".join(inspect.cleandoc(node.__doc__ or "").split("\n\n")[0].split())


def number_range(description: str) -> Mapping[str, Json]:
    """Return the range of a number as keywords of JSON Schema.

    The result is empty if the description states no range. A test checks that the class rejects all numbers outside the range.

    Args:
        description: The description of a field, as `descriptions` returns it.

    Example:
        >>> number_range("Nucleus probability, in (0, 1]; 1 keeps all tokens.")
        {'exclusiveMinimum': 0, 'maximum': 1}
        >>> number_range("Sequences per update over all processes, >= 1.")
        {'minimum': 1}
    """
    if (interval := _INTERVAL.search(description)) is not None:
        return {
            "minimum" if interval["open"] == "[" else "exclusiveMinimum": _number(interval["lower"]),
            "maximum" if interval["close"] == "]" else "exclusiveMaximum": _number(interval["upper"]),
        }
    if (bound := _BOUND.search(description)) is not None:
        return {"minimum" if bound["sign"] == ">=" else "exclusiveMinimum": _number(bound["value"])}
    return {}


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
