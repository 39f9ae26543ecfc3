"""Detects dead ranks, so that no process waits for a process that failed or hangs.

A timeout of collective operations cannot distinguish a slow process from a dead one.  Instead, a thread of each process
sends a heartbeat every second and checks the heartbeats of the other processes.  The first process that fails reports this
to the others, and only this process prints its error.
"""

import atexit
import math
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count

from redistill.errors import ConfigError, TrainingError, first_line

HEARTBEAT_S = 1.0
"""Interval between two heartbeats, in seconds."""
SILENCE_S = 20.0
"""A process counts as dead after this number of seconds without a heartbeat.

A live process on a busy machine sends a heartbeat within this time.
"""
START_S = 300.0
"""Maximum time until the first heartbeat of a process, in seconds."""
GRACE_S = 3.0
"""Seconds that processes wait before they exit after the failure of another process, which prints its traceback meanwhile."""

_blocks = count()


class RanksDifferError(ConfigError):
    """The ranks of a job have different inputs.

    All ranks raise this error after the same collective operation, so that no rank waits for another.

    Example:
        >>> RanksDifferError("rank 1 has different training data than rank 0; use the same files on all ranks").exit_code
        2
    """


@contextmanager
def watched() -> Iterator[None]:
    """Context in which this process exits soon after another process fails or dies.

    The code inside the context is a watched block.  All processes must enter their blocks in the same order, and blocks may
    be nested. In a job of one process, the context has no effect.

    A `RanksDifferError` ends every process with the exit code of the error.  Only rank 0 raises the error, so that it is
    printed once.

    Raises:
        SystemExit: an error in the block was caused by the failure of another process; or the error was a
            `RanksDifferError`, and this process is not rank 0.
        ConfigError: REDISTILL_SILENCE_S is not a number of seconds >= 2.
    """
    number = next(_blocks)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    watch = _watch()
    around, watch.blocks = watch.blocks, (*watch.blocks, number)
    try:
        yield
    except RanksDifferError as error:
        if watch.rank:
            raise SystemExit(error.exit_code) from None
        raise  # not recorded for the launcher: its line is the whole reason, and a traceback adds nothing
    except Exception as error:
        if not watch.is_root_cause(error, number):
            raise SystemExit(1) from None
        _record_for_launcher(error)
        raise
    finally:
        watch.blocks = around
        watch.leave(number)


def _silence_s() -> float:
    """Return the seconds without a heartbeat after which a process counts as dead.

    The value is that of the environment variable REDISTILL_SILENCE_S, or 20 (`SILENCE_S`) if the variable is not set.
    """
    text, seconds = os.environ.get("REDISTILL_SILENCE_S", str(SILENCE_S)), math.nan
    with suppress(ValueError):
        seconds = float(text)
    if not 2 * HEARTBEAT_S <= seconds < math.inf:
        raise ConfigError(f"REDISTILL_SILENCE_S = {text!r}: must be a number of seconds >= 2; unset it to use 20")
    return seconds


class _Watch:
    """Sends and checks heartbeats through the launcher's rendezvous store.

    A thread sends heartbeats as long as the process lives.  The thread checks the heartbeats of the other processes only
    while this process is inside a `watched` context, called a block.
    """

    def __init__(self) -> None:
        from torch._C._distributed_c10d import PrefixStore, TCPStore

        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.blocks: tuple[int, ...] = ()  # the blocks that this process is in, innermost last
        # A separate connection, because the process group may block its own for an unlimited time.
        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        self._store = PrefixStore(f"redistill/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._silence_s = _silence_s()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        atexit.register(self.end)

    def is_root_cause(self, error: Exception, block: int) -> bool:
        """Return whether `error` is the first failure of the job.

        If so, the failure is reported to the other processes.  The result is False if `error` was caused by the failure or
        death of another process.  `block` is the number of the `watched` context in which `error` was raised.
        """
        if _is_from_collective(error):
            before = self._heartbeats(block)
            time.sleep(GRACE_S)  # until a failed process has reported its failure, or a dead process has missed heartbeats
            if self._has_failed(self.blocks):
                return False
            if silent := [rank for rank, beats in self._heartbeats(block).items() if beats == before[rank]]:
                _report(f"process {silent[0]} of {self.world} is dead: killed or out of memory")
                return False
        return self._store.add(f"{block}/failed", 1) == 1

    def leave(self, block: int) -> None:
        """Record that this process has left the `watched` context with the number `block`.

        Other processes in this context then stop checking the heartbeats of this process.
        """
        with suppress(RuntimeError):  # the store may have been in the first process, which has exited
            self._store.add(f"{block}/left/{self.rank}", 1)

    def end(self) -> None:
        """Stop the heartbeat thread."""
        self._ended.set()
        self._thread.join(HEARTBEAT_S)

    def _run(self) -> None:
        """Send heartbeats; in a `watched` context, end this process if another is dead."""
        checked_blocks, checked_at, seen = tuple[int, ...](), 0.0, dict[int, tuple[int, float]]()
        try:
            self._store.add(f"heartbeats/{self.rank}", 1)
            while not self._ended.wait(HEARTBEAT_S):
                self._store.add(f"heartbeats/{self.rank}", 1)
                if blocks := self.blocks:
                    now = time.monotonic()
                    was_paused = now - checked_at > self._silence_s / 2  # for example by Ctrl-Z
                    if blocks != checked_blocks or was_paused:
                        checked_blocks, seen = blocks, dict.fromkeys(range(self.world), (0, now))
                    self._check(blocks, seen, now)
                    checked_at = now
        except RuntimeError as error:  # the store is in the launcher or in the first process
            if self.blocks:
                _abort(f"the launcher is dead ({first_line(error)})")

    def _check(self, blocks: tuple[int, ...], seen: dict[int, tuple[int, float]], now: float) -> None:
        """End this process if another process has failed or is dead."""
        # `seen` maps each rank to its number of heartbeats and the time at which this number last changed.
        for rank, beats in self._heartbeats(blocks[-1]).items():
            if beats != seen[rank][0]:
                seen[rank] = (beats, now)
            elif now - seen[rank][1] > (self._silence_s if beats else START_S):
                _abort(f"process {rank} of {self.world} has sent no heartbeat for {now - seen[rank][1]:.0f} s")
        if self._has_failed(blocks) and not self._ended.wait(GRACE_S):
            os._exit(1)

    def _has_failed(self, blocks: tuple[int, ...]) -> bool:
        """Return whether a process has reported a failure.

        `blocks` has the numbers of the `watched` contexts in which a failure counts.
        """
        return any(self._store.add(f"{block}/failed", 0) for block in blocks)

    def _heartbeats(self, block: int) -> dict[int, int]:
        """Return the number of heartbeats of each rank.

        `block` is the number of a `watched` context.  A process that has left the context does not count as dead, so each call
        of this method adds a heartbeat for such a process, and also for this process.
        """
        left = {rank for rank in range(self.world) if rank == self.rank or self._store.add(f"{block}/left/{rank}", 0)}
        return {rank: self._store.add(f"heartbeats/{rank}", 1 if rank in left else 0) for rank in range(self.world)}


_watch = cache(_Watch)  # the watch of this process, started at its first block


def _is_from_collective(error: Exception) -> bool:
    """Return whether torch.distributed raised `error`."""
    # Such an error is usually a consequence of the end of another process.
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__")).startswith("torch.distributed")


def _record_for_launcher(error: Exception) -> None:
    """Save the traceback of `error` for torchrun, which prints the earliest traceback."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _report(what: str) -> None:
    line = f"redistill: {what}; stopping: the job cannot continue without it; rerun the same command to resume\n"
    os.write(2, line.encode())


def _abort(why: str) -> None:
    """Print the reason and end this process, even if its main thread is blocked."""
    _report(why)
    try:
        raise TrainingError(why)
    except TrainingError as error:  # raised and caught, because the launcher records a traceback
        _record_for_launcher(error)
    os._exit(1)
