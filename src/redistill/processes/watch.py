"""Several processes of one job: none of them waits for one that has failed, was killed, or stands still.

A time limit on what they do together could not tell a slow process from a stopped one; so each gives a sign of life every
second, from a thread of its own, and looks for the others'.  The first to fail says so before its connections break, and only
that one prints what was wrong.
"""

import atexit
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from types import TracebackType

from redistill.errors import ConfigError, TrainingError

BEAT_S = 1.0
SILENCE_S = 20.0
"""So long without a sign of life, and a process is given up; long enough for one that computes while the machine is busy."""
START_S = 300.0
"""So long for its first sign of life, since a process may be started late."""
FAREWELL_S = 3.0
"""So long the one that failed has to print its traceback, before the others end."""

_blocks = count()


@contextmanager
def watched() -> Iterator[None]:
    """While the block runs, this process ends soon after another one of the job has failed or fallen silent.

    All processes must come to their watched blocks in the same order; blocks may be nested.  Alone, nothing is watched.

    Raises:
        SystemExit: where an error in the block only followed from the end of another process.
    """
    number = next(_blocks)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    watch = _watch()
    around, watch.blocks = watch.blocks, (*watch.blocks, number)
    try:
        yield
    except Exception as error:
        if not watch.is_to_blame(error, number):
            raise SystemExit(1) from None
        _tell_launcher(error)
        raise
    finally:
        watch.blocks = around
        watch.leave(number)


def _silence_s() -> float:
    """`SILENCE_S`, or what the environment says."""
    text = os.environ.get("REDISTILL_SILENCE_S", str(SILENCE_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 2 * BEAT_S <= seconds < math.inf:
        raise ConfigError(f"REDISTILL_SILENCE_S = {text!r}: must be a number of seconds, 2 or more; leave it out for 20")
    return seconds


class _Watch:
    """This process's view of the others, in the store that the launcher has brought them together by.

    Its thread gives signs of life for as long as the process lives, so that one that comes late to a block is known from one
    that will never come; it looks for the others' while this process is in a block.
    """

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore

        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.blocks: tuple[int, ...] = ()  # that this process is in, the innermost last
        # A connection of our own: the process group waits on its own for as long as it likes.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        place = f"redistill/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._store = PrefixStore(place, TCPStore(address, port, is_master=False))
        self._silence_s = _silence_s()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name="signs of life", daemon=True)
        self._thread.start()

    def is_to_blame(self, error: Exception, block: int) -> bool:
        """Whether `error` is what is wrong with the job, and not what another process's end has brought about here."""
        if not _is_of_a_meeting(error):
            return self._store.add(f"{block}/failed", 1) == 1
        before = self._signs(block)
        time.sleep(FAREWELL_S)  # for the one that failed to say so, or the silence of one that cannot
        if self._has_failed(self.blocks):
            return False
        silent = [rank for rank, signs in self._signs(block).items() if signs == before[rank]]
        if silent:
            _say(f"process {silent[0]} of {self.world} is gone, killed or out of memory")
            return False
        return self._store.add(f"{block}/failed", 1) == 1

    def leave(self, block: int) -> None:
        """Say that this process has come to the end of the block; what becomes of it then is not the others' matter there."""
        with suppress(RuntimeError):  # the first process may have had the store, and have left before
            self._store.add(f"{block}/left/{self.rank}", 1)

    def end(self) -> None:
        """No more signs: the process ends."""
        self._ended.set()
        self._thread.join(BEAT_S)

    def _live(self) -> None:
        """Give signs of life, and in a block end the process when those of another one stay away."""
        judged, looked, seen = tuple[int, ...](), 0.0, dict[int, tuple[int, float]]()
        try:
            self._store.add(f"signs/{self.rank}", 1)
            while not self._ended.wait(BEAT_S):
                self._store.add(f"signs/{self.rank}", 1)
                blocks, now = self.blocks, time.monotonic()
                if not blocks:
                    continue
                stood_still = now - looked > self._silence_s / 2  # this process itself, as all do on Ctrl-Z
                if blocks != judged or stood_still:
                    judged, seen = blocks, dict.fromkeys(range(self.world), (0, now))
                self._judge(blocks, seen, now)
                looked = now
        except RuntimeError as error:  # the store is with the launcher, or with the first process
            if self.blocks:
                _give_up(f"the launcher is gone ({str(error).splitlines()[0]})")

    def _judge(self, blocks: tuple[int, ...], seen: dict[int, tuple[int, float]], now: float) -> None:
        """End the process where another one has failed or is silent for too long; `seen`: signs so far, and since when."""
        for rank, signs in self._signs(blocks[-1]).items():
            if signs != seen[rank][0]:
                seen[rank] = (signs, now)
            elif now - seen[rank][1] > (self._silence_s if signs else START_S):
                _give_up(f"process {rank} of {self.world} has given no sign of life for {now - seen[rank][1]:.0f} s")
        if self._has_failed(blocks) and not self._ended.wait(FAREWELL_S):
            os._exit(1)

    def _has_failed(self, blocks: tuple[int, ...]) -> bool:
        """Whether a process has said that it failed in one of them."""
        return any(self._store.add(f"{block}/failed", 0) for block in blocks)

    def _signs(self, block: int) -> dict[int, int]:
        """How many signs of life each process has given so far; one that has left the block in peace gives them forever."""
        left = {rank for rank in range(self.world) if rank == self.rank or self._store.add(f"{block}/left/{rank}", 0)}
        return {rank: self._store.add(f"signs/{rank}", 1 if rank in left else 0) for rank in range(self.world)}


@cache
def _watch() -> _Watch:
    """That of this process, begun with its first block."""
    watch = _Watch()
    atexit.register(watch.end)
    return watch


def _is_of_a_meeting(error: Exception) -> bool:
    """Whether it was raised where processes meet; what is raised there is mostly another one's end."""
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).startswith("torch.distributed")


def _tell_launcher(error: Exception) -> None:
    """Leave the traceback where torchrun looks for it; it prints that of the first to fail as the last thing."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _say(what: str) -> None:
    line = f"redistill: {what}; leaving, since none can go on alone: the same command resumes from the last checkpoint\n"
    os.write(2, line.encode())


def _give_up(why: str) -> None:
    """End this process, whatever its main thread waits for."""
    _say(why)
    try:
        raise TrainingError(why)
    except TrainingError as error:  # raised, since the launcher is told of a traceback
        _tell_launcher(error)
    os._exit(1)
