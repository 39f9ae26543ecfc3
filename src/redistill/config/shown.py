"""Values and names in error messages: on one line, truncated, without secrets."""

import difflib
import reprlib
from collections.abc import Iterable

from redistill.storage.redaction import plain, plain_line

MAX_WHOLE = 2**63


class _Shown(reprlib.Repr):
    """Formats a value for an error message, with limited depth and length."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 100, 100
        self.maxlist = self.maxtuple = self.maxdict = 8

    def repr_str(self, value: str, level: int) -> str:
        # Secrets are masked before the text is truncated, since part of a secret would not be recognised.
        return super().repr_str(plain(value), level)

    def repr_int(self, value: int, level: int) -> str:
        # Python raises an error when it converts very large integers to text.
        return repr(value) if abs(value) <= MAX_WHOLE else f"a number of {value.bit_length()} bits"


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return a hint for an unknown name: the most similar name of `known`, if any.

    If no name is similar, the hint is `otherwise`.

    Example:
        >>> nearest("trainig", ["training", "data"], "see the list")
        "did you mean 'training'?"
    """
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"did you mean '{near[0]}'?" if near else otherwise


def shown(value: object) -> str:
    """Return a value for an error message as one line, truncated, with secrets masked."""
    return line(_Shown().repr(value))


def line(text: str) -> str:
    """Return a text for an error message as one line, truncated, with secrets masked."""
    text = plain_line(text)
    return text if len(text) <= 300 else f"{text[:300]} ..."
