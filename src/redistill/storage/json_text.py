"""Decoding of JSON texts, which may be damaged or hostile.

All modules that read JSON files use this module. The functions reject texts that are not valid JSON (RFC 8259). They also
reject numbers that are not finite as a float64, and values that are nested too deeply.
"""

import json
import math
from collections.abc import Callable
from typing import NoReturn, TypeVar

from redistill.records import Json

Value = TypeVar("Value")

MAX_DEPTH = 100
"""Maximum depth of nested lists and objects; the files of redistill and of models have a depth below 20."""


class JsonError(ValueError):
    """A text is not JSON, or exceeds a limit.

    The message is one line without the text, such as "Expecting value at column 1".
    """


def parse_json(text: str | bytes, *, any_number: bool = False, unique_keys: bool = True) -> Json:
    """Return the value of a JSON text.

    Args:
        text: The text. Bytes are decoded as UTF-8.
        any_number: Whether NaN, infinities, and integers outside of the range of float64 are allowed. Columns of data sets may
            contain them.
        unique_keys: Whether an object with two equal keys is rejected. If False, the last value of a key is used, as in the
            JSON files of transformers.

    Raises:
        JsonError: the text is not UTF-8 or not JSON; a value is nested more than `MAX_DEPTH` levels deep; `any_number` is False
            and a number is not finite as a float64; or `unique_keys` is True and an object has two equal keys.

    Example:
        >>> parse_json('{"loss": [1.5, null]}')
        {'loss': [1.5, None]}
        >>> parse_json('{"loss": 1e999}')
        Traceback (most recent call last):
            ...
        redistill.storage.json_text.JsonError: a number is not finite
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}") from error
    decoder = _DECODERS[any_number, unique_keys]
    value: Json = _decoded(lambda: decoder.decode(decoded))
    _check_depth(value, decoded.count("[") + decoded.count("{"))
    return value


def parse_json_at(text: str, start: int, *, unique_keys: bool = True) -> tuple[Json, int]:
    """Return the JSON value that begins at index `start`, and the index of its end.

    The second result is the index after the last character of the value.  NaN, infinities and integers of any size are
    allowed.  `parse_json` describes the argument `unique_keys`.

    Raises:
        JsonError: there is no JSON value; it is nested more than `MAX_DEPTH` levels deep; or
            `unique_keys` is True and an object has two equal keys.

    Example:
        >>> parse_json_at("[1, 23]", 4)
        (23, 6)
    """
    value, end = _decoded(lambda: _DECODERS[True, unique_keys].raw_decode(text, start))
    _check_depth(value, text.count("[", start, end) + text.count("{", start, end))
    return value, end


def _decoded(decode: Callable[[], Value]) -> Value:
    """Return `decode()`; convert the exceptions of Python's JSON decoder to JsonError."""
    try:
        return decode()
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc else ""
        raise JsonError(f"{error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise JsonError(_TOO_DEEP) from error
    except ValueError as error:  # Python converts no integer of more than 4,300 digits
        raise JsonError("an integer has too many digits") from error


_TOO_DEEP = f"a value is nested more than {MAX_DEPTH} levels deep"


def _check_depth(value: object, num_brackets: int) -> None:
    """Raise JsonError if a value is nested too deeply.

    `num_brackets` is the number of opening brackets in the JSON text of `value`.
    """
    level, depth = [value], 0
    while num_brackets > MAX_DEPTH and level:
        if depth >= MAX_DEPTH:
            raise JsonError(_TOO_DEEP)
        parts = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level, depth = [item for part in parts for item in part if isinstance(item, dict | list)], depth + 1


def _integer(text: str) -> int:
    _finite(text)
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError("a number is not finite")
    return number


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise JsonError("an object has two equal keys")
    return found


def _decoder(any_number: bool, unique_keys: bool) -> json.JSONDecoder:
    hook = _unique if unique_keys else None
    if any_number:
        return json.JSONDecoder(object_pairs_hook=hook)
    return json.JSONDecoder(parse_int=_integer, parse_float=_finite, parse_constant=_no_constant, object_pairs_hook=hook)


_DECODERS = {(number, unique): _decoder(number, unique) for number in (False, True) for unique in (False, True)}
"""The decoders by `any_number` and `unique_keys`."""
