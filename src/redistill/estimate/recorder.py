"""Records seconds and peak bytes of each part of an update."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch.autograd.profiler import profile, record_function

from redistill.processes.memory import free
from redistill.training.metrics import peak_bytes

Clock = Callable[[], float]
Role = Literal["student", "teacher"]
BOTH: tuple[Role, ...] = ("student", "teacher")

_MARK = "redistill.estimate: "
_READING: dict[object, str] = {("student learns", "teacher"): "teacher reads", ("vocabulary pass", "student"): "student learns"}
"""Maps a pair (enclosing part, model of a forward pass) to the part that the pass is counted for."""


class Cost(NamedTuple):
    """Key that states what a measured value is.

    Args:
        kind: "seconds" and "peak" (bytes) are costs of a part of the update or validation.  "size" is a number of weights or
            bytes.
        name: Name of the part or of the size, such as "vocabulary pass" (the LM head and the loss) or "gradients".
        models: The models on whose number of layers the value depends.
    """

    kind: Literal["seconds", "peak", "size"]
    name: str
    models: tuple[Role, ...] = BOTH


class Recorder:
    """Records the time and peak memory of the parts of an update and of a validation.

    A region is code whose costs are counted for one part, such as "optimiser".  Regions may be nested; costs are then counted
    for the innermost region only.

    Args:
        clock: Function that returns the time of a monotonic clock, in seconds.
        device: Device of the models.  The recorder waits for the queued work of the device when a region begins or ends.

    Attributes:
        costs: For each part, the seconds spent in its regions, and the peak bytes of all tensors that exist during its regions.
            On a CPU, only tensors that are created inside `recording` count.
    """

    def __init__(self, clock: Clock, device: torch.device) -> None:
        self.costs: defaultdict[Cost, float] = defaultdict(float)
        self._clock, self._device, self._since = clock, device, clock()
        self._current = Cost("seconds", "", ())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Context in which memory is recorded.

        On an accelerator, the memory is read from the allocator. On a CPU, it is computed from the events of the profiler.
        """
        if self._device.type == "cuda":
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # otherwise the profiler prints when it starts and stops
        free()  # garbage that is collected inside would be counted as freed memory
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
        """Context whose time and memory are counted for one part of the measurement.

        Args:
            part: Name of the part.  If empty, costs are counted for the part of the enclosing region, with two exceptions.  A
                forward pass of the teacher within "student learns" is counted for "teacher reads".  A forward pass of the
                student within "vocabulary pass" is counted for "student learns".
            models: The models on whose number of layers the time depends.
        """
        outer = self._current
        self._enter(Cost("seconds", part or _READING.get((outer.name, *models), outer.name), models))
        try:
            yield
        finally:
            self._enter(outer)

    def watch(self, owner: object, method: str, part: str = "", *models: Role) -> None:
        """Replace a method of `owner`, so that each call is a region (see `region`)."""
        setattr(owner, method, self.region(part, *models)(getattr(owner, method)))

    def _enter(self, region: Cost) -> None:
        """End the current region and begin `region`.

        The time and the memory since the last call are counted for the region that ends.
        """
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
    """Return the resident memory of this process in bytes.

    The result is 0 on an accelerator: only the memory of the accelerator is estimated there.
    """
    if device.type == "cuda":
        return 0
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return peak_bytes(device)
    return int(pages.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
