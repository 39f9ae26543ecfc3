"""Out-of-memory handling, and the memory that a piece of work needs.

Work that runs out of memory is retried with half the batch size.
"""

import ctypes
import gc
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TypeVar, cast

import torch

from redistill.errors import TrainingError
from redistill.records import Json

Result = TypeVar("Result")
_PHRASES = "out of memory|can't allocate memory|not enough memory|(cublas|cudnn)_status_alloc_failed"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether `error` is an out-of-memory error of any device.

    Example:
        >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
        True
        >>> is_out_of_memory(RuntimeError("shape mismatch"))
        False
    """
    is_typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return is_typed or (isinstance(error, RuntimeError) and re.search(_PHRASES, str(error), re.IGNORECASE) is not None)


def machine_bytes() -> int | None:
    """Return the machine's memory in bytes; None if the system does not report it."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def device_bytes(device: torch.device | str) -> int | None:
    """Return the memory of a CUDA device in bytes; None for other devices.

    Example:
        >>> device_bytes("cpu") is None
        True
    """
    return _device_bytes(torch.device(device)) if torch.device(device).type == "cuda" else None


@cache
def _device_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[1]


def unallocated_bytes(device: torch.device | str) -> int | None:
    """Return the unallocated memory of a CUDA device in bytes; None for other devices.

    This is the memory that tensors of this process may still use.  Memory of other processes is subtracted.
    """
    if torch.device(device).type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return min(total - allocated, free + reserved - allocated)


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """Return the result of `work`; if memory runs out, free memory and return None."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Memory is freed after the handler, because inside it the traceback keeps every tensor of `work` alive.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def free() -> None:
    """Free unused memory, and return it to the operating system if the C library can."""
    gc.collect()
    torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # another C library, which keeps little freed memory
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def peak_growth(work: Callable[[], Result], device: torch.device) -> tuple[Result, int | None]:
    """Call `work`; return its result and the growth of memory during the call.

    Args:
        work: The work.
        device: Device of the work.  On a CUDA device, the memory of torch's allocator is measured.  On a CPU, it is the
            resident memory of this process, which only Linux reports.

    Returns:
        The result of `work`, and the peak of memory during the call minus the memory before it, in bytes.  The growth is None
        if the peak cannot be measured.

    Example:
        >>> found, growth = peak_growth(lambda: torch.ones(4_000_000).sum().item(), torch.device("cpu"))
        >>> found, growth is None or growth > 1_000_000
        (4000000.0, True)
    """
    free()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return work(), torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, the peak, to the present size
        before = _process_bytes("VmRSS")
    except (OSError, ValueError):  # another system, or a container that forbids it
        return work(), None
    result = work()
    return result, max(0, _process_bytes("VmHWM") - before)


def _process_bytes(field: str) -> int:
    """Return a field of /proc/self/status in bytes; raise a ValueError if the field is missing."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    if (found := re.search(rf"^{field}:\s*(\d+) kB$", status, re.MULTILINE)) is None:
        raise ValueError(field)
    return 1024 * int(found[1])


class Halving:
    """A batch size that is halved whenever memory runs out, and never increases again.

    Args:
        setting: Name of the setting in a recipe, for messages.
        size: Initial size; None means unlimited.

    Example:
        >>> sizes = Halving("training.micro_batch_size", 6)
        >>> sizes.halve(6), sizes.size
        (3, 3)
    """

    def __init__(self, setting: str, size: int | None) -> None:
        self.setting, self.size, self._changes = setting, size, list[str]()

    def halve(self, tried: int) -> int:
        """Set the size to half of `tried`, and return the new size.

        Args:
            tried: The size that was too large, >= 1.

        Raises:
            TrainingError: `tried` is 1, which cannot be halved.
        """
        if tried <= 1:
            raise TrainingError(
                f"{self.setting} = 1: out of memory with a single sequence; lower data.tokens.response_tokens or "
                "prompt_tokens, set student.gradient_checkpointing, or train adapters (student.lora)"
            )
        self.size = tried // 2
        self._changes.append(
            f"out of memory with {self.setting} = {tried}; retried with {self.size}, also used for later batches"
        )
        return self.size

    def take_changes(self) -> list[str]:
        """Return one message for each time the batch size has changed since the last call."""
        changes, self._changes = self._changes, []
        return changes

    def repeat(self, work: Callable[[int], Result]) -> Result:
        """Call `work` and return its result; if memory runs out, halve the size and retry.

        Args:
            work: Function that is called with the size. A second call after a failure must be safe, and the result must not be
                None.

        Raises:
            TrainingError: memory runs out with the size 1.
        """
        while True:
            assert self.size is not None, "repeat needs an initial size"
            done = unless_out_of_memory(partial(work, self.size))
            if done is not None:
                return done
            self.halve(self.size)

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state to be saved in checkpoints."""
        return {"size": self.size}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        self.size = cast(int | None, state["size"])
