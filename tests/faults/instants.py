"""Something happens in the midst of a run: at the n-th call of a function of redistill, or the first of a given function."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import redistill
from redistill.cli.main import main

PACKAGE = str(Path(redistill.__file__).parent)
PHASES = {  # by the first of these functions, in this order, that is at work
    "TeacherSource._generate_block": "text of the teacher",
    "save_checkpoint": "save",
    "generate": "generation",
    "_step": "training",
    "load_data": "data preparation",
    "load_tests": "data preparation",
    "_validate": "evaluation",
    "Evaluator.evaluate": "evaluation",
}
ELSEWHERE = "elsewhere"  # loading of models, writing of the student, report


@dataclass
class Calls:
    """How many calls there were, the phase of each if asked for, and the function and phase of the one that was chosen."""

    number: int = 0
    where: str | None = None
    phase: str | None = None
    phases: list[str] = field(default_factory=list)


@contextmanager
def at_call(chosen: int | str | None, act: Callable[[], None], *, with_phases: bool = False) -> Iterator[Calls]:
    """Do `act` when the call number `chosen` begins, counted from 1, or the first one of the function `chosen`; None counts.

    Calls of `redistill.processes.signals` do not count: a signal in the midst of one is another one at its end.  Nor do the
    bodies of modules and classes, which run in the first run of a process only.
    """
    calls = Calls()

    def seen(frame: FrameType, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if frame.f_code.co_filename.endswith("signals.py") or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
            return
        calls.number += 1
        if with_phases:
            calls.phases.append(_phase(frame))
        if chosen in (calls.number, frame.f_code.co_qualname):
            calls.where, calls.phase = frame.f_code.co_qualname, _phase(frame)
            sys.setprofile(None)  # before what may not come back
            act()

    sys.setprofile(seen)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def spread_over(phases: list[str], count: int) -> list[int]:
    """`count` calls, by number: one of each phase in turn, and those of a phase spread over all of it.

    Args:
        phases: Of each call of a run.

    Example:
        >>> spread_over(["save"] * 4 + ["training"] * 9, 3)
        [2, 4, 9]
    """
    known = [phase for phase in dict.fromkeys([*PHASES.values(), ELSEWHERE]) if phase in phases]
    chosen = []
    for turn, phase in enumerate(known):
        numbers = [number for number, each in enumerate(phases, start=1) if each == phase]
        share = len(range(turn, count, len(known)))
        chosen += [numbers[place - 1] for place in spread(len(numbers), share)]
    return sorted(chosen)


def spread(total: int, count: int) -> list[int]:
    """`count` numbers from 1 to `total`, one in the midst of each of as many equal parts.

    Example:
        >>> spread(100, 4)
        [13, 38, 63, 88]
    """
    return [total * (2 * place + 1) // (2 * count) + 1 for place in range(count)]


def _phase(frame: FrameType | None) -> str:
    working = set()
    while frame is not None and frame.f_code is not main.__code__:  # what lies behind it is pytest's
        working.add(frame.f_code.co_qualname)
        frame = frame.f_back
    return next((phase for function, phase in PHASES.items() if function in working), ELSEWHERE)
