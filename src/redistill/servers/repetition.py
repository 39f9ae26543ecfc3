"""Repeats requests after an invalid reply, or a reply of another model.

`servers.client` repeats single requests to servers that do not reply.  This module handles replies that arrive and cannot be
used.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from redistill.errors import OtherModelError, ServerError, ServerUnavailableError
from redistill.processes import signals
from redistill.servers.client import Report

Value = TypeVar("Value")

TRIES = 3
"""Maximum number of calls if a reply is invalid, or if a server rejects a request."""
_POLL_S = 1.0  # between two comparisons with a server that has another model


class Repetition:
    """Repeats a call until the replies of servers can be used.

    The call sends requests.  After an invalid reply or a rejected request, it is repeated at once, at most `TRIES` times.
    If a server has another model, the servers are compared for up to `patience_s` seconds.  The call is repeated when all of
    them have the original model.

    If no repetition helps, a ServerUnavailableError is raised, since the same command resumes the run.  If no call of this
    object has succeeded before, invalid replies raise a ServerError: the server may never be usable.

    Args:
        patience_s: Maximum time to wait for the original model during one call of `run`, in seconds.
        report: Function that is called with one line when the call is repeated.

    Example:
        >>> replies = iter([ServerError("server 127.0.0.1:8000: invalid reply"), "text"])
        >>> def call():
        ...     if isinstance(reply := next(replies), Exception):
        ...         raise reply
        ...     return reply
        >>> Repetition(900.0, print).run(call, lambda: None)
        server 127.0.0.1:8000: invalid reply; the request is repeated
        'text'
    """

    def __init__(self, patience_s: float, report: Report) -> None:
        self._patience_s, self._report, self._has_succeeded = patience_s, report, False

    def run(self, call: Callable[[], Value], check: Callable[[], None]) -> Value:
        """Return the result of a call.

        Args:
            call: Sends requests, checks the replies and returns a value.
            check: Compares the servers with the original model; raises a ServerError if one cannot be used.

        Raises:
            ServerError: the replies to the first call of this object are invalid, also after all repetitions.
            ServerUnavailableError: a server cannot be reached or has another model, or a later call failed.
            Interrupted: a signal arrived while the method waited.
        """
        end, failures = time.monotonic() + self._patience_s, 0
        while True:
            try:
                value = call()
            except ServerUnavailableError:
                raise
            except OtherModelError as error:
                self._wait(error, end, check)
            except ServerError as error:
                failures += 1
                if failures == TRIES:
                    if self._has_succeeded:
                        raise _given_up(error) from error
                    raise
                self._report(f"{error}; the request is repeated")
            else:
                self._has_succeeded = True
                return value

    def _wait(self, error: ServerError, end: float, check: Callable[[], None]) -> None:
        """Wait until all servers have the original model.

        Raises:
            ServerUnavailableError: the time `end` of the monotonic clock is reached, or a server cannot be reached.
        """
        if time.monotonic() < end:
            self._report(f"{error}; waiting up to {end - time.monotonic():.0f} s")
        while time.monotonic() < end:
            signals.poll()
            time.sleep(_POLL_S)
            try:
                check()
            except ServerUnavailableError:
                raise
            except ServerError as found:
                error = found
            else:
                return
        raise _given_up(error) from error


def _given_up(error: ServerError) -> ServerUnavailableError:
    return ServerUnavailableError(f"{error}; run the same command again to resume")
