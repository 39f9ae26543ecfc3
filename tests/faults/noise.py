"""Values of every kind, sound trees with a few of their values changed, and the one way in which they may be refused."""

import contextlib
import copy
import json
import math
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from redistill.errors import RedistillError
from redistill.storage.redaction import printable
from tests.faults.counts import FUZZED, trials

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**400, -(10**400), -1]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0]),
)
TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "a\nb",
            "\x00",
            "\ud800",
            "\x1b[31m",
            "../../x",
            "/",
            "null",
            "1e3",
            "fkl",
            "mgsr",
            "a:B",
            "2 epochs",
            "10**9",
        ]
    ),
    st.sampled_from(["\u202e", "{{ 1 }}", "https://a:b@c", "~", "NaN", "auto", "teacher", "chat"]),
    st.sampled_from(["1:30", "190:20:30", "1:2.5", "0o17", "2024-01-02", "1e999", "\u200b", "\u2028"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.one_of(TEXTS, st.sampled_from(["kind", "source", "seeds", "model", "rows", "divergence", "steps", "folder", "label"]))


def nested(depth: int, inner: Any = 1) -> Any:
    """`inner` in lists and dicts by turns, `depth` in all."""
    for level in range(depth):
        inner = {"kind": inner} if level % 2 else [inner]
    return inner


VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
) | st.sampled_from([30, 150]).map(nested)

JSON_PIECES = [
    *("1e999", "-1e999", "1e-999", "NaN", "Infinity", "-Infinity", "-0", "01", "+1", ".5", "0x1F", "1:30", "True", "'x'"),
    *(str(2**63), str(-(2**63) - 1), str(2**64), str(10**400), "1" + "0" * 5000, "-" + "9" * 5000, "0." + "1" * 5000),
    *(
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '"\\u0000"',
        '"\\u001b[31m"',
        '"\\u202e"',
        '"\\u200b"',
        '"\x07"',
        '"\\x"',
        '"a\nb"',
        '"',
    ),
    *(
        '{"a": 1, "a": 2}',
        '{"__proto__": {}, "": 0}',
        '{"a" 1}',
        "[1,]",
        "[1 2]",
        "",
        "/* */ 1",
        "1]",
        "null",
        '"' + "x" * 100_000 + '"',
    ),
    *("[" * depth + "]" * depth for depth in (90, 150, 700, 1000, 100_000)),
    *('{"a": ' * depth + "1" + "}" * depth for depth in (90, 150, 700, 1000, 20_000)),
    *("[" * 5000, '{"a": ' * 5000, "[" + "1, " * 5000 + "1]"),
]
"""Texts in the place of a value that `json.dumps` does not write."""

PIECES = st.integers(0, len(JSON_PIECES) - 1).map(lambda number: JSON_PIECES[number])  # `sampled_from` shows them all


def tried(quick: int, whole: int) -> Callable[[Any], Any]:
    """How many examples, and no limits of time; every call of pytest tries the same ones."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=trials(quick, whole),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
        phases=(Phase.explicit, Phase.generate),  # to shrink an example with long texts takes minutes
    )


def fuzzed(reader: str) -> Callable[[Any], Any]:
    """As many examples as the table `FUZZED` has for a reader."""
    return tried(*FUZZED[reader])


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a tree but the tree itself."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, item in items for found in [(*path, key), *places(item, (*path, key))]]


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """`tree` with one to three of its values replaced, taken out, or joined by a stranger."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        found = places(tree)
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        place = tree
        for key in path:
            place = place[key]
        act = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if act == "replace" or isinstance(place, list):
            place[last] = draw(VALUES)
        elif act == "remove":
            del place[last]
        else:
            place[draw(KEYS)] = draw(VALUES)
    return tree


@st.composite
def json_text(draw: st.DrawFn, tree: Any) -> str:
    """`tree` as JSON, with one to two of its values replaced by a piece of text, or such a piece alone."""
    found = places(tree)
    if not found or draw(st.integers(0, 9)) == 0:
        return draw(PIECES)
    tree, pieces = copy.deepcopy(tree), {}
    for number in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(found))
        place = tree
        with contextlib.suppress(LookupError, TypeError):  # where the other text took the place of its parent
            for key in path:
                place = place[key]
            place[last] = f"@piece {number}@"
        pieces[f'"@piece {number}@"'] = draw(PIECES)
    text = json.dumps(tree)
    for mark, piece in pieces.items():
        text = text.replace(mark, piece)
    return text


@st.composite
def written_json(draw: st.DrawFn, tree: Any) -> str:
    """The text of a JSON file that held `tree`: some of it is changed, or all of it is another value or no JSON."""
    noise = st.one_of(VALUES, st.text(max_size=20), PIECES)
    found = draw(st.one_of(changed(tree), changed(tree), json_text(tree), json_text(tree), noise))
    return found if isinstance(found, str) else json.dumps(found)


def is_one_line(error: RedistillError) -> bool:
    """Whether an error is a line that a terminal can show whole: where, what and what to do."""
    told = str(error)
    return "\n" not in told and 10 < len(told) < 3000 and printable(told) == told


def read_or_refused(read: Callable[[], Any]) -> Any:
    """What was read; None where it was refused, which takes one typed line."""
    try:
        return read()
    except RedistillError as error:
        assert is_one_line(error), repr(str(error))
        return None
