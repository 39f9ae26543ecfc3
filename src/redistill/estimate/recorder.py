"""Seconds and peak bytes of the parts of an update, recorded while it runs."""

import ctypes
import gc
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.autograd.profiler import profile, record_function

from redistill.training.metrics import peak_bytes

Clock = Callable[[], float]
Role = Literal["student", "teacher"]
BOTH: tuple[Role, ...] = ("student", "teacher")

_MARK = "redistill.estimate: "
_READING: dict[object, str] = {("student learns", "teacher"): "teacher reads", ("vocabulary pass", "student"): "student learns"}


class Cost(NamedTuple):
    """What is measured: seconds or peak bytes of a part, or a size.

    `models` are those on whose layers it depends.
    """

    kind: Literal["seconds", "peak", "size"]
    name: str
    models: tuple[Role, ...] = BOTH


class Recorder:
    """Attributes time and peak memory to the innermost region.

    Args:
        clock: Seconds, monotonic.
        device: Where the models are; regions begin and end when its queued work is done.

    Attributes:
        costs: Seconds of each part outside of the regions in it, and the most bytes of tensors that were alive in it at
            once; on a CPU those of tensors made inside `recording` only.
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self.costs: defaultdict[Cost, float] = defaultdict(float)
        self._clock, self._device, self._since = clock, device, clock()
        self._current = Cost("seconds", "", ())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which memory is recorded.

        It is read from the accelerator's allocator, or on a CPU from the profiler's events.
        """
        if self._device.type == "cuda":
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else the profiler prints when it starts and stops
        free()  # what is collected inside would count as freed
        with profile(profile_memory=True) as profiler:
            yield
        assert profiler.kineto_results is not None
        part, alive = "", 0
        for event in sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                alive += event.nbytes()
            elif event.name().startswith(_MARK):
                part = event.name().removeprefix(_MARK)
            self._raise(part, alive)

    @contextmanager
    def region(self, part: str = "", *models: Role) -> Iterator[None]:
        """A region, whose time depends on the layers of `models`.

        Without a part it continues the enclosing one, but for models that read what is learned from, which have parts of their
        own.
        """
        outer = self._current
        self._enter(Cost("seconds", part or _READING.get((outer.name, *models), outer.name), models))
        try:
            yield
        finally:
            self._enter(outer)

    def watch(self, owner: object, method: str, part: str = "", *models: Role) -> None:
        """Make each call of a method of `owner` a region."""
        setattr(owner, method, self.region(part, *models)(getattr(owner, method)))

    def _enter(self, region: Cost) -> None:
        """Account for the current region and enter another one."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._raise(self._current.name, torch.cuda.max_memory_allocated(self._device))
            torch.cuda.reset_peak_memory_stats(self._device)
        now = self._clock()
        self.costs[self._current] += now - self._since
        self._current, self._since = region, now
        with record_function(f"{_MARK}{region.name}"):
            pass

    def _raise(self, part: str, alive: int) -> None:
        peak = Cost("peak", part)
        self.costs[peak] = max(self.costs[peak], alive)


def resident_bytes(device: torch.device) -> int:
    """Resident memory of this process in bytes.

    0 on an accelerator, where only its own memory counts.
    """
    if device.type == "cuda":
        return 0
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return peak_bytes(device)
    return int(pages.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free() -> None:
    """Release unused memory, to the system where the C library allows it."""
    gc.collect()
    torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library, which keeps little
        ctypes.CDLL("libc.so.6").malloc_trim(0)
