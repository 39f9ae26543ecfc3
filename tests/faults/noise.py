"""Values of every kind, sound trees with a few of their values changed, and the one way in which they may be refused."""

import copy
import math
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from redistill.errors import RedistillError
from redistill.storage.redaction import printable
from tests.faults.counts import trials

NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([2**31, -(2**63), 2**64, 10**400, -1]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, 1e308, 5e-324, -0.0]),
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
    st.sampled_from(["x" * 5000, "\u202e", "{{ 1 }}", "https://a:b@c", "~", "NaN", "auto", "teacher", "chat"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.one_of(TEXTS, st.sampled_from(["kind", "source", "seeds", "model", "rows", "divergence", "steps", "folder", "label"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


def tried(quick: int, whole: int) -> Callable[[Any], Any]:
    """How many examples; `make faults` tries 10,000 in all."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=trials(quick, whole), deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


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
