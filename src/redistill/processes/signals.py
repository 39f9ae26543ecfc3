"""Stopping in order: SIGTERM and SIGINT set a flag, and what works looks at it where nothing is half-done.

The first signal is answered at the next `poll` or `gather`, with `Interrupted`.  A second one ends the process there and then;
that is safe as well, since every file is written under another name first.  Several processes stop together: one that polls and
finds the flag takes part in the `gather` that the others come to next, and it is there that all of them learn of it.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from redistill.errors import Interrupted

STOPS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0
"""A launcher passes on what the terminal has sent to its processes already; so soon after the first it is no second signal."""


@dataclass
class _Flag:
    """What has arrived, when, and where it is answered: where the work looks, or at once - by one that is alone, or by all."""

    number: int | None = None
    arrived: float = 0.0
    answered: Literal["looking", "alone", "at once"] = "looking"
    installed: bool = False


_flag = _Flag()


@contextmanager
def handled(*, at_once: bool = False) -> Iterator[None]:
    """The two signals are answered in order while the block runs; blocks may be nested.

    Outside of the main thread, which alone may handle signals, and for one that is ignored, nothing changes.

    Args:
        at_once: For work that may be left anywhere and polls nothing, such as loading a model: `Interrupted` comes when the
            signal does.  No process may wait for another in such a block, and all must come to a `gather` behind it; behind the
            outermost block none comes, so that there only a process that is alone is interrupted at once.

    Raises:
        Interrupted: see above.
    """
    outermost = not _flag.installed and threading.current_thread() is threading.main_thread()
    before, around = {}, _flag.answered
    try:
        if outermost:
            _flag.installed = True
            before = {number: signal.getsignal(number) for number in STOPS}
            for number in STOPS:
                if before[number] is not signal.SIG_IGN:
                    signal.signal(number, _arrive)
        _flag.answered = ("alone" if outermost else "at once") if at_once else "looking"
        if at_once:
            poll()
        yield
    finally:
        _flag.answered = around
        if outermost:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            _flag.number, _flag.installed = None, False


def poll() -> None:
    """Leave if a signal has arrived.

    With several processes every way on from here must lead all of them to a `gather` before any other meeting.

    Raises:
        Interrupted: it has.
    """
    if _flag.number is not None:
        gather([])


def gather(values: list[Any]) -> list[Any]:
    """Every process hands in a list and gets all of them, joined in the order of the processes.

    Raises:
        Interrupted: on all of them, where a signal has arrived at any.
    """
    shares: list[Any] = [(_flag.number, values)]
    if num_processes() > 1:
        from torch import distributed

        mine, shares = shares[0], [None] * num_processes()
        distributed.all_gather_object(shares, mine)
    for number, _ in shares:
        if number is not None:
            raise Interrupted(number)
    return [value for _, share in shares for value in share]


def num_processes() -> int:
    """How many processes work on this job, as far as they have met."""
    # Not imported: that takes seconds, and a signal may have come in the midst of them.
    distributed: Any = sys.modules.get("torch.distributed")
    is_initialized = getattr(distributed, "is_initialized", None)
    return int(distributed.get_world_size()) if is_initialized is not None and is_initialized() else 1


def _arrive(number: int, frame: FrameType | None) -> None:
    if _flag.number is None:
        _flag.number, _flag.arrived = number, time.monotonic()
        if "WORLD_SIZE" not in os.environ:
            for each in STOPS:  # the system's own way, which waits for no long computation to end
                if signal.getsignal(each) is not signal.SIG_IGN:
                    signal.signal(each, signal.SIG_DFL)
        if _flag.answered == "at once" or (_flag.answered == "alone" and num_processes() == 1):
            poll()
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"redistill: {signal.Signals(number).name}: stopping in order; a second one ends it now\n".encode())
    elif time.monotonic() - _flag.arrived > ECHO_S:
        os._exit(128 + number)
