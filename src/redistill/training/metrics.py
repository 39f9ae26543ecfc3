"""Measurements of training: metrics.jsonl, generated tokens, peak memory."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from redistill.records import Json
from redistill.storage import files, logs


class MetricsLog:
    """The file metrics.jsonl of a run, or another log with one JSON object per line.

    A line is on disk when `write` returns.

    Args:
        path: The file; it need not exist.

    Attributes:
        observer: Function that is called with each line after it was written; None if there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.observer: Callable[[Mapping[str, Json]], None] | None = None

    def write(self, line: Mapping[str, Json]) -> None:
        """Append `line` to the file; `line["step"]` is the number of updates done.

        Numbers must be finite, because JSON has no NaN and no infinity; pass None instead of a number that is not finite.
        """
        files.append_line(self.path, line)
        if self.observer is not None:
            self.observer(line)

    def num_bytes(self) -> int:
        """Size of the file in bytes; 0 if it is missing."""
        return logs.num_bytes(self.path)

    def truncate_after(self, step: int, size: int | None = None) -> None:
        """Remove the lines of updates after `step`, and an incomplete last line.

        `step` is the step of the checkpoint from which a run resumes.  The file then continues as in an uninterrupted run.

        Args:
            step: Number of the last update whose lines are kept.
            size: Size of the file in bytes after this update.  If it is None or not the end of a line of the file, all lines
                are read to find those of later updates.
        """
        if self.path.exists() and (size is None or not logs.truncate(self.path, size)):
            logs.truncate_after(self.path, step)


class Meter:
    """Counts the tokens that this process generates for training.

    Requests to a served teacher, and the tokens of these requests, are counted as well.
    """

    def __init__(self) -> None:
        self._tokens, self._requests, self._sent = 0, 0, 0

    def add(self, tokens: int) -> None:
        """Add `tokens` to the number of generated tokens."""
        self._tokens += tokens

    def read(self) -> int:
        """Return the number of tokens generated since the last call of `read`.

        The count is reset to 0."""
        tokens, self._tokens = self._tokens, 0
        return tokens

    def add_requests(self, requests: int, tokens: int) -> None:
        """Count requests to a served teacher, and the tokens that were sent and generated."""
        self._requests += requests
        self._sent += tokens

    def read_requests(self) -> tuple[int, int]:
        """Return the numbers of requests and tokens since the last call of this method.

        Both counts are reset to 0.
        """
        found, self._requests, self._sent = (self._requests, self._sent), 0, 0
        return found


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory of this process, in bytes.

    For a CUDA device, this is the peak of the CUDA allocator.  For a CPU, it is the peak of the resident set, or 0 on
    Windows, where it is not measured.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
