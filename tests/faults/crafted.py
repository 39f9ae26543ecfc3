"""Safetensors files that are crafted by hand: headers that a library would not write."""

import json
import struct
from typing import Any

from hypothesis import strategies as st

from tests.faults.noise import KEYS, TEXTS, VALUES, changed, json_text

_SIZES = {"F32": 4, "F64": 8, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F8_E4M3": 1}
_INTEGERS = st.one_of(
    st.integers(-2, 64), st.sampled_from([2**31, 2**32 + 1, 2**53, 2**62, 2**63, 2**64 - 1, 2**64, 10**400, -(2**63)])
)
_DTYPES = st.one_of(st.sampled_from([*_SIZES, "F4", "F8_E8M0", "C64", "U64", "U16", "f32", "", "\x1b[31m"]), VALUES)
_ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": _DTYPES,
            "shape": st.lists(_INTEGERS, max_size=4),
            "data_offsets": st.lists(_INTEGERS, min_size=1, max_size=3),
        }
    ),
    VALUES,
)
_ALIASES = st.one_of(
    VALUES.map(json.dumps),
    TEXTS,
    st.sampled_from(["{}", '{"b": "a"}', '{"b": "c"}', '{"a": "a"}', '{"b": ["a"]}', "[]", "null"]),
)
_METADATA = st.one_of(st.fixed_dictionaries({"aliases": _ALIASES}), st.dictionaries(TEXTS, TEXTS, max_size=3), VALUES)


def tensors_file(header: Any, data: bytes) -> bytes:
    """A file of a header, as JSON or as text, and of data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def sound(names: tuple[str, ...] = ("a", "c")) -> dict[str, Any]:
    """A header that is valid with 8 bytes of data for each name."""
    entries = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * n, 8 * n + 8]} for n, name in enumerate(names)}
    return {"__metadata__": {"aliases": '{"b": "a"}'}, **entries}


@st.composite
def crafted(draw: st.DrawFn) -> bytes:
    """A file with a header that was changed or composed, or with a length of the header that is wrong."""
    header = draw(
        st.one_of(
            changed(sound()),
            json_text(sound()),
            st.dictionaries(st.one_of(KEYS, st.sampled_from(["a", "b", "__metadata__"])), _ENTRIES, max_size=4),
            st.tuples(_METADATA, _ENTRIES).map(lambda pair: {**sound(), "__metadata__": pair[0], "a": pair[1]}),
            st.builds('{{"a": {0}, "a": {0}}}'.format, _ENTRIES.map(json.dumps)),
        )
    )
    made = tensors_file(header, draw(st.sampled_from([bytes(16), b"\xff" * 16, bytes(8), b"", bytes(17)])))
    act = draw(st.integers(0, 11))
    if act == 0:
        return made[: draw(st.integers(0, len(made)))]
    if act == 1:
        return struct.pack("<Q", draw(st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1, 100_000_001, len(made)]))) + made[8:]
    return draw(st.binary(max_size=64)) if act == 2 else made
