"""What a run measures while it trains: metrics.jsonl, the count of generated tokens, and peak memory."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from redistill.storage import files


class MetricsLog:
    """metrics.jsonl of a run: one JSON object a line, appended and on disk when `write` returns.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Append `line`; its "step" is the number of updates done.  JSON has no NaN: write null."""
        files.append_line(self.path, dict(line))

    def truncate_after(self, step: int) -> None:
        """Drop what an interrupted run logged beyond the checkpoint that is resumed, and a line that was cut.

        The file then continues as if there had been no interruption.
        """
        if self.path.exists():
            files.rewrite_lines(self.path, [line for line in files.read_lines(self.path) if line.get("step", 0) <= step])


class Meter:
    """Counts the tokens that are generated for training."""

    def __init__(self) -> None:
        self._tokens = 0

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def read(self) -> int:
        """Tokens since the last call."""
        tokens, self._tokens = self._tokens, 0
        return tokens


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held so far: on the accelerator where it runs on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # not measured there
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024
