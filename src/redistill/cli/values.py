"""Parsers of the values of arguments.

Each function parses the text of one argument, and is passed to argparse as `type`. If a text is not allowed, the function
raises `argparse.ArgumentTypeError`, or `OutputError` in the case of `path`. The message is one line.
"""

import argparse
import math
from pathlib import Path

from redistill.config.shown import shown
from redistill.config.whole_numbers import whole_number as with_exponent
from redistill.errors import OutputError
from redistill.storage.paths import unusable


def whole_number(text: str, lowest: int = -(2**63)) -> int:
    """Parse a whole number from `lowest` to 2^63 - 1, such as 1000 or 1e3."""
    try:
        number = int(text)  # a text of more than 4,300 digits raises a ValueError
    except ValueError:
        found = with_exponent(text)
        number = lowest - 1 if found is None else found
    if not lowest <= number < 2**63:
        allowed = "a whole number of at most 64 bits" if lowest < 0 else f"a whole number from {lowest} to 2^63 - 1"
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be {allowed}")
    return number


def count(text: str) -> int:
    """Parse an argument that is a whole number >= 1."""
    return whole_number(text, 1)


def finite_number(text: str) -> float:
    """Parse an argument that is a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{shown(text)}: must be a finite number")
    return number


def path_text(text: str) -> str:
    """Parse an argument that may be the path of a file or folder to read."""
    if (fault := unusable(text)) is not None:
        raise argparse.ArgumentTypeError(f"{shown(text)}: {fault}")
    return text


def path(text: str) -> Path:
    """Parse an argument that is the path of a file or folder.

    Raises:
        OutputError: no file or folder can have this path.
    """
    if (fault := unusable(text)) is not None:
        raise OutputError(f"{shown(text)}: {fault}")
    return Path(text)


def seeds(text: str) -> tuple[int, ...]:
    """Parse an argument that is a list of whole numbers, separated by commas."""
    try:
        return tuple(map(whole_number, text.split(",")))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; separate seeds by commas, such as 10,20,30") from error
