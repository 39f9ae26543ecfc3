"""Graceful shutdown: SIGTERM and SIGINT set a flag, which the work polls at points where its state is consistent.

After the first signal, the next `poll` or `gather` raises `Interrupted`.  A second signal ends the process immediately; that is
safe as well, because files are written atomically.  Several processes stop together: a process whose `poll` finds the flag
joins the next `gather` of the others, which raises `Interrupted` in all of them.
"""

import contextlib
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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0
"""Seconds in which a second signal is ignored, because a launcher forwards the signal that the terminal has already sent."""


@dataclass
class _Flag:
    """State of the handler.

    Args:
        number: The signal that has arrived.
        arrived: Time of its arrival, in seconds of the monotonic clock.
        mode: When `Interrupted` is raised: at the next `poll`; immediately if the job has one process; or immediately.
        installed: Whether the handler is installed.
    """

    number: int | None = None
    arrived: float = 0.0
    mode: Literal["poll", "immediate if single", "immediate"] = "poll"
    installed: bool = False


_flag = _Flag()


@contextmanager
def handled(*, at_once: bool = False) -> Iterator[None]:
    """Context in which SIGTERM and SIGINT stop the work gracefully.

    Contexts may be nested.  A context has no effect outside of the main thread, which alone may handle signals, and none on a
    signal that is ignored.

    Args:
        at_once: Raise `Interrupted` immediately instead of at the next `poll`, for work that may be interrupted anywhere and
            does not poll, such as loading a model.  Processes must not wait for each other in such a block, and all must call
            `gather` after it.  No `gather` follows the outermost block, so there only a job of one process is interrupted
            immediately.

    Raises:
        Interrupted: a signal has arrived.
    """
    outermost = not _flag.installed and threading.current_thread() is threading.main_thread()
    before, outer_mode = {}, _flag.mode
    try:
        if outermost:
            _flag.installed = True
            before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            for number in STOP_SIGNALS:
                if before[number] is not signal.SIG_IGN:
                    signal.signal(number, _arrive)
        _flag.mode = ("immediate if single" if outermost else "immediate") if at_once else "poll"
        if at_once:
            poll()
        yield
    finally:
        _flag.mode = outer_mode
        if outermost:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
            _flag.number, _flag.installed = None, False


def poll() -> None:
    """Raise `Interrupted` if a signal has arrived.

    With several processes, the next collective of all processes after this call must be a `gather`.

    Raises:
        Interrupted: a signal has arrived.
    """
    if _flag.number is not None:
        gather([])


def gather(values: list[Any]) -> list[Any]:
    """All-gather: returns the lists of all processes, concatenated in order of rank.

    Raises:
        Interrupted: in all processes, if a signal has arrived in any of them.
    """
    parts: list[Any] = [(_flag.number, values)]
    if num_processes() > 1:
        from torch import distributed

        mine, parts = parts[0], [None] * num_processes()
        distributed.all_gather_object(parts, mine)
    for number, _ in parts:
        if number is not None:
            raise Interrupted(number)
    return [value for _, part in parts for value in part]


def num_processes() -> int:
    """Number of processes of the job; 1 before the process group is initialized."""
    # Not imported, because that takes seconds, and the signal may have arrived during the import.
    distributed: Any = sys.modules.get("torch.distributed")
    is_initialized = getattr(distributed, "is_initialized", None)
    return int(distributed.get_world_size()) if is_initialized is not None and is_initialized() else 1


def _arrive(number: int, frame: FrameType | None) -> None:
    if _flag.number is None:
        _flag.number, _flag.arrived = number, time.monotonic()
        if "WORLD_SIZE" not in os.environ:
            for each in STOP_SIGNALS:  # the default action of the system does not wait for a long computation
                if signal.getsignal(each) is not signal.SIG_IGN:
                    signal.signal(each, signal.SIG_DFL)
        if _flag.mode == "immediate" or (_flag.mode == "immediate if single" and num_processes() == 1):
            poll()
        if os.environ.get("RANK", "0") == "0":
            name = signal.Signals(number).name
            with contextlib.suppress(OSError):  # standard error is closed
                os.write(2, f"redistill: {name}: stopping at the next safe point; a second signal exits immediately\n".encode())
    elif time.monotonic() - _flag.arrived > ECHO_S:
        os._exit(128 + number)
