"""Measurements of training: metrics.jsonl, generated tokens, peak memory."""

import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from redistill.storage import files


class MetricsLog:
    """metrics.jsonl of a run: one JSON object per line, on disk when `write` returns.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, object]) -> None:
        """Append `line`; its "step" is the number of updates done.

        Values must be finite or None: JSON has no NaN.
        """
        files.append_line(self.path, line)

    def truncate_after(self, step: int) -> None:
        """Remove the lines after `step`, and an incomplete last line.

        `step` is that of the checkpoint from which a run resumes.  The file then continues as in an uninterrupted run.
        """
        if self.path.exists():
            files.rewrite_lines(self.path, [line for line in files.read_lines(self.path) if line.get("step", 0) <= step])


class Meter:
    """Counts the tokens that this process generates for training."""

    def __init__(self) -> None:
        self._tokens = 0

    def add(self, tokens: int) -> None:
        """Count `tokens` more tokens."""
        self._tokens += tokens

    def read(self) -> int:
        """Tokens counted since the last call."""
        tokens, self._tokens = self._tokens, 0
        return tokens


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process, in bytes.

    On a GPU it is the peak of the CUDA allocator, otherwise the peak of the resident set.  On Windows it is not measured, and
    0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
