"""Work that is repeated with half as much at once where memory runs out."""

import gc
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from redistill.errors import TrainingError

Result = TypeVar("Result")
PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device.

    Example:
        >>> is_out_of_memory(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
        True
        >>> is_out_of_memory(RuntimeError("shape mismatch"))
        False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in PHRASES)


def unless_out_of_memory(work: Callable[[], Result]) -> Result | None:
    """What `work` returns, or None where memory ran out; nothing of the attempt is held on to then."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    # Behind the handler: until it is left, the traceback keeps every tensor of the attempt alive.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Halving:
    """A batch size that becomes half of itself whenever memory runs out, and stays so.

    Args:
        setting: Its name in a recipe, for what is said.
        size: At the start; None means all at once.

    Example:
        >>> sizes = Halving("training.micro_batch_size", 6)
        >>> sizes.halve(6), sizes.size
        (3, 3)
    """

    def __init__(self, setting: str, size: int | None) -> None:
        self.setting, self.size = setting, size
        self._changes: list[str] = []

    def halve(self, tried: int) -> int:
        """Half of the size that was too large.

        Args:
            tried: How many were at work at once.

        Raises:
            TrainingError: it was one, which has no half.
        """
        if tried <= 1:
            raise TrainingError(
                f"{self.setting} = 1: out of memory with a single sequence at a time; lower data.tokens.response_tokens or "
                "prompt_tokens, set student.gradient_checkpointing, or train adapters (student.lora)"
            )
        self.size = tried // 2
        self._changes.append(f"out of memory with {self.setting} = {tried}; repeated with {self.size}, which stays")
        return self.size

    def take_changes(self) -> list[str]:
        """A sentence for each change since this was last asked."""
        changes, self._changes = self._changes, []
        return changes

    def repeat(self, work: Callable[[int], Result]) -> Result:
        """What `work` returns, which is never None, given a size that fits into memory; it must be safe to begin anew.

        Raises:
            TrainingError: not even one at a time fits.
        """
        while True:
            assert self.size is not None, "a size to begin with"
            done = unless_out_of_memory(partial(work, self.size))
            if done is not None:
                return done
            self.halve(self.size)

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.size = state["size"]
