"""JSON texts: what is written is read, and what cannot be written again is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.storage.json_text import MAX_DEPTH, JsonError, parse_json, parse_json_at

scalars = (
    st.none() | st.booleans() | st.integers(-(10**308), 10**308) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values)
def test_what_json_writes_is_read_back(value: object) -> None:
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == parse_json(text, any_number=True) == value
    assert parse_json_at(f"[1, {text}, 2]", 4) == (value, 4 + len(text))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 309, "-1" + "0" * 309])
def test_a_number_that_files_cannot_hold_needs_any_number(number: str) -> None:
    with pytest.raises(JsonError, match=r"not finite|not a JSON number"):
        parse_json(f'{{"a": [{number}]}}')
    parse_json(f'{{"a": [{number}]}}', any_number=True)


@pytest.mark.parametrize("any_number", [False, True])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_the_depth_is_limited(opening: str, closing: str, any_number: bool) -> None:
    parse_json(opening * MAX_DEPTH + "1" + closing * MAX_DEPTH, any_number=any_number)
    for depth in (MAX_DEPTH + 1, 1000, 100_000):
        with pytest.raises(JsonError, match="nested more than 100 levels deep"):
            parse_json(opening * depth + "1" + closing * depth, any_number=any_number)


def test_many_brackets_of_little_depth_are_read() -> None:
    assert len(parse_json("[" + "[], " * 5000 + "{}]")) == 5001


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{1: 2}", "Expecting property name enclosed in double quotes at column 2"),
        ("[1,\n2", "Expecting ',' delimiter at line 2, column 2"),
        (b'"\xff"', "not UTF-8: byte 0xff at position 2"),
        ("1" * 5000, "a number is not finite"),
    ],
)
def test_the_error_is_one_line_with_the_position(text: str | bytes, message: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_json(text)
    assert str(caught.value) == message


def test_python_does_not_convert_an_integer_of_5000_digits() -> None:
    with pytest.raises(JsonError, match="an integer has too many digits"):
        parse_json("1" * 5000, any_number=True)


@pytest.mark.parametrize("any_number", [False, True])
@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": 1, "\\u0061": 1}', '[1, {"b": {"": 1, "c": 2, "": 1}}]'])
def test_two_equal_keys_are_rejected_unless_the_last_counts(text: str, any_number: bool) -> None:
    with pytest.raises(JsonError, match=r"^an object has two equal keys$"):
        parse_json(text, any_number=any_number)
    with pytest.raises(JsonError, match=r"^an object has two equal keys$"):
        parse_json_at(text, 0)
    assert parse_json(text, any_number=any_number, unique_keys=False) == json.loads(text)
