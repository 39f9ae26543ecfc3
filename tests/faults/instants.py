"""Something happens in the midst of a run: at the n-th call of a function of redistill, or the first of a given function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import redistill

PACKAGE = str(Path(redistill.__file__).parent)


@dataclass
class Calls:
    """How many calls there were, and the function of the one that was chosen."""

    number: int = 0
    where: str | None = None


@contextmanager
def at_call(chosen: int | str | None, act: Callable[[], None]) -> Iterator[Calls]:
    """Do `act` when the call number `chosen` begins, counted from 1, or the first one of the function `chosen`; None counts.

    Calls of `redistill.signals` do not count: a signal in the midst of one is another one at its end.
    """
    calls = Calls()

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if frame.f_code.co_filename.endswith("signals.py"):
            return
        calls.number += 1
        if chosen in (calls.number, frame.f_code.co_qualname):
            calls.where = frame.f_code.co_qualname
            sys.setprofile(None)  # before what may not come back
            act()

    sys.setprofile(seen)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def spread(total: int, count: int) -> list[int]:
    """`count` numbers from 1 to `total`, one in the midst of each of as many equal parts.

    Example:
        >>> spread(100, 4)
        [13, 38, 63, 88]
    """
    return [total * (2 * place + 1) // (2 * count) + 1 for place in range(count)]
