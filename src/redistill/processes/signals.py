"""Graceful shutdown: SIGTERM and SIGINT set a flag, which the running work polls.

The work polls at points where its state is consistent.  After the first signal, the next `poll` or `gather` raises
`Interrupted`.  A second signal ends the process immediately, which is safe because files are written atomically.  Several
processes stop together: if one process has received a signal, the next `gather` raises `Interrupted` in all processes.

`failing_together` does the same for an error of one process.
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
from typing import Literal, NoReturn, TypeVar

from redistill.errors import Interrupted, RedistillError

Value = TypeVar("Value")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO_S = 1.0
"""Seconds after the first signal in which a second one is ignored: a launcher may forward the signal of the terminal."""


@dataclass
class _Flag:
    """State of the signal handler of this process.

    Args:
        number: The first signal that has arrived; None if none has arrived.
        arrived: Time at which the first signal arrived, in seconds of the monotonic clock.
        count: Number of signals that have arrived.
        mode: When the first signal raises `Interrupted`.  "poll": at the next `poll`.  "immediate": immediately.
            "immediate if single": immediately in a job of one process, and otherwise at the next `poll`.  "children": at
            the next `poll`, and a second signal does not end the process.
        installed: True if the handler is installed.
    """

    number: int | None = None
    arrived: float = 0.0
    count: int = 0
    mode: Literal["poll", "immediate if single", "immediate", "children"] = "poll"
    installed: bool = False


_flag = _Flag()


@contextmanager
def handled(*, at_once: bool = False, with_children: bool = False) -> Iterator[None]:
    """Context in which SIGTERM and SIGINT stop the work gracefully.

    Contexts may be nested.  A context has no effect outside of the main thread, because only the main thread may handle
    signals.  A signal that is ignored stays ignored.

    Args:
        at_once: Raise `Interrupted` immediately instead of at the next `poll`.  Use this for work that may be interrupted
            anywhere and does not poll, such as loading a model.  In a job of several processes, only a nested context
            raises immediately.  The processes must not wait for each other inside this context, and must all call `gather`
            after it, so that the interruption reaches all of them.
        with_children: Use this for work that stops its child processes before it ends.  SIGHUP then stops the work as well,
            and a second signal does not end this process; see `num_arrived`.

    Raises:
        Interrupted: a signal has arrived.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    outermost, outer_mode = in_main_thread and not _flag.installed, _flag.mode
    numbers = (*(STOP_SIGNALS if outermost else ()), *((signal.SIGHUP,) if in_main_thread and with_children else ()))
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        _flag.installed |= outermost
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _arrive)
        _flag.mode = "children" if with_children else "poll"
        if at_once:
            _flag.mode = "immediate if single" if outermost else "immediate"
            poll()
        yield
    finally:
        _flag.mode = outer_mode
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if outermost:
            _flag.number, _flag.count, _flag.installed = None, 0, False


def num_arrived() -> int:
    """Return the number of signals that have arrived since `handled` was entered.

    If `handled` contexts are nested, the outermost one counts.  Outside of all contexts the result is 0.
    """
    return _flag.count


def poll() -> None:
    """Raise `Interrupted` if a signal has arrived.

    In a job of several processes, a process that has received a signal calls `gather` in this function.  Therefore the next
    collective operation of the other processes must be `gather` as well.

    Raises:
        Interrupted: a signal has arrived.
    """
    if _flag.number is not None:
        gather([])


def gather(values: list[Value]) -> list[Value]:
    """Gather the lists of all processes and concatenate them in order of rank.

    Raises:
        Interrupted: a signal has arrived in a process; the exception is raised in all processes.
        RedistillError: another process has called `fail`.
    """
    return _gather(values, None)


def fail(error: RedistillError) -> NoReturn:
    """Raise an error of this process in all processes.

    The next collective operation of all other processes must be `gather`.  If several processes call this function, the error
    of the lowest rank is raised.

    Raises:
        Interrupted: a signal has arrived in a process.
        RedistillError: `error`, with `is_everywhere` set.
    """
    error.is_everywhere = True
    _gather([], error)
    raise AssertionError("unreachable")


@contextmanager
def failing_together(kind: type[RedistillError]) -> Iterator[None]:
    """Context in which an error of one process is raised in all processes.

    Use it where the next collective operation of all processes is `gather`.

    Args:
        kind: The class of the errors; other errors are raised in this process only.
    """
    try:
        yield
    except kind as error:
        if error.is_everywhere:
            raise
        fail(error)


def _gather(values: list[Value], failure: RedistillError | None) -> list[Value]:
    """Gather lists as `gather` does; `failure` is an error of this process."""
    parts = [(_flag.number, failure, values)] * num_processes()
    if len(parts) > 1:
        from torch import distributed

        distributed.all_gather_object(parts, parts[0])
    for number, _, _ in parts:
        if number is not None:
            raise Interrupted(number)
    for _, error, _ in parts:
        if error is not None:
            raise error
    return [value for _, _, part in parts for value in part]


def num_processes() -> int:
    """Return the number of processes; 1 before the process group is initialized."""
    # torch.distributed is not imported: that takes seconds, and the signal may have arrived during its import.
    distributed = sys.modules.get("torch.distributed")
    is_initialized = getattr(distributed, "is_initialized", None)
    return int(distributed.get_world_size()) if distributed and is_initialized and is_initialized() else 1


def _arrive(number: int, frame: FrameType | None) -> None:
    _flag.count += 1
    if _flag.number is None:
        _flag.number, _flag.arrived = number, time.monotonic()
        if "WORLD_SIZE" not in os.environ and _flag.mode != "children":
            for each in STOP_SIGNALS:  # the default action of the system does not wait for a long computation
                if signal.getsignal(each) is not signal.SIG_IGN:
                    signal.signal(each, signal.SIG_DFL)
        if _flag.mode == "immediate" or (_flag.mode == "immediate if single" and num_processes() == 1):
            poll()
        if os.environ.get("RANK", "0") == "0":
            plan = "stopping at the next safe point; a second signal exits immediately"
            plan = "stopping the runs; a second signal kills the runs" if _flag.mode == "children" else plan
            with contextlib.suppress(OSError):  # standard error is closed
                os.write(2, f"redistill: {signal.Signals(number).name}: {plan}\n".encode())
    elif _flag.mode != "children" and time.monotonic() - _flag.arrived > ECHO_S:
        os._exit(128 + number)
