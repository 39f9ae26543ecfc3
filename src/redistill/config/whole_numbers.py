"""Whole numbers that are written with an exponent, such as 1e3."""

import re

from redistill.config.shown import MAX_WHOLE

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d{1,3}", re.ASCII)


def whole_number(value: object) -> int | None:
    """Convert a float, or a text in exponent notation, to an integer of equal value.

    Args:
        value: A float, or a text such as "1e3" or "2.5e3".

    Returns:
        The integer. None if the value is not a whole number, if a text has no exponent, or if the value has another type.

    Example:
        >>> whole_number("1e3"), whole_number(20.0), whole_number("1e-3"), whole_number("12")
        (1000, 20, None, None)
    """
    text = str(value) if isinstance(value, float | str) else ""
    if isinstance(value, str) and not _EXPONENT.fullmatch(text):  # YAML 1.1 parses 1e3 as a string, and 1.0e+3 as a number
        return None
    number = float(text or "nan")
    return int(number) if number.is_integer() and abs(number) < MAX_WHOLE else None
