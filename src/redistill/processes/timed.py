"""Calls of a library that may block forever, with a time limit and with signals."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TypeVar

from redistill.processes import signals

Value = TypeVar("Value")

_POLL_S = 0.1


class TimedCalls:
    """Runs calls of a library one at a time, each with a time limit.

    A call runs in another thread, while this thread polls for signals.  A call that exceeds the limit cannot be stopped.  Its
    thread continues without effect, and does not delay the end of this process.  Child processes of the library are killed.

    Args:
        timeout_s: Time limit of a call in seconds, > 0.

    Example:
        >>> TimedCalls(timeout_s=60.0).run(lambda: 6 * 7)
        42
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s, self._children = timeout_s, set[BaseProcess]()

    def run(self, call: Callable[[], Value]) -> Value:
        """Return the result of a call; an exception of the call is raised.

        Raises:
            TimeoutError: the call exceeded the time limit.
            Interrupted: a signal arrived; the call continues in its thread.
        """
        future = Future[Value]()

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - raised in the calling thread
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        left_s = self._timeout_s
        while True:
            wait_s = min(_POLL_S, left_s)
            try:
                return future.result(timeout=wait_s)
            except TimeoutError:
                if future.done():
                    raise
            signals.poll()
            left_s -= wait_s
            if left_s <= 0:
                raise TimeoutError(f"no result within {self._timeout_s:g} s")

    @contextmanager
    def children(self) -> Iterator[None]:
        """Context in which the library starts child processes, which `kill` will end."""
        before = set(multiprocessing.active_children())
        try:
            yield
        finally:
            self._children |= set(multiprocessing.active_children()) - before

    def kill(self) -> None:
        """Kill the child processes of the library."""
        for child in self._children:
            child.kill()
            child.join()
        self._children.clear()
