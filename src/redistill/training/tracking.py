"""What a run tells while it goes on - a file of metrics, a bar or log lines - and what it notes about where it ran.

Metrics go to a file first; nothing here decides anything, and nothing leaves the machine.
"""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import rich.progress
import torch
from rich.console import Console
from rich.text import Text

import redistill
from redistill.storage import files
from redistill.storage.redaction import plain

SHOWN = ("loss", "sft", "divergence", "span", "policy_gradient", "pretraining")
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
    "rouge-score",
    "spacy",
)


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

        The file then goes on as if there had been no interruption.
        """
        if self.path.exists():
            files.rewrite_lines(self.path, [line for line in files.read_lines(self.path) if line.get("step", 0) <= step])


class Progress:
    """How far training is: a bar on a terminal, a line now and then in a log.

    A context manager; the bar vanishes from the screen's foot when it is left.

    Args:
        total: Updates of the whole run, as far as that is known; `expect` mends it.
        log_every: Updates between lines where the output is no terminal.
        enabled: False says nothing at all, for all processes but the main one.
        console: Where to write; None takes the standard error stream.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        total: int = 0,
        *,
        log_every: int = 10,
        enabled: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total, self._log_every, self._clock = total, log_every, clock
        self._console = console or Console(stderr=True, quiet=not enabled)
        self._first: tuple[int, float] | None = None
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            columns = (rich.progress.BarColumn(bar_width=24), rich.progress.TextColumn("{task.fields[line]}", markup=False))
            self._bar = rich.progress.Progress(*columns, console=self._console, disable=not enabled)
            self._task = self._bar.add_task("", total=total, line=f"step 0/{total}")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def expect(self, total: int) -> None:
        """Say how many updates there are, once that is known."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total, line=f"step 0/{total}")

    def update(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show where training stands after `step` updates: the loss terms, tokens per second, and the time left.

        The time left is judged by what has passed since the first call, so loading and a resumed run's past do not count.
        """
        self._first = self._first or (step, self._clock())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=self._line(step, metrics, self._first))
        elif step % self._log_every == 0 or step == self._total:
            self._print(self._line(step, metrics, self._first))

    def note(self, text: str) -> None:
        """Write a line above the bar; `text` may hold a model's words, which reach the terminal as plain characters only."""
        self._print(plain(text))

    def _line(self, step: int, metrics: Mapping[str, float | None], first: tuple[int, float]) -> str:
        values = ((name, metrics.get(name)) for name in SHOWN)
        parts = [f"step {step}/{self._total}", *(f"{name} {value:.4g}" for name, value in values if value is not None)]
        speed = metrics.get("tokens_per_s")
        if speed is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if step > first[0]:
            seconds = (self._clock() - first[1]) / (step - first[0]) * (self._total - step)
            parts.append(f"{duration(seconds)} left")
        return "  ".join(parts)

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class Meter:
    """Counts the tokens that are written for training."""

    def __init__(self) -> None:
        self._tokens = 0

    def add(self, tokens: int) -> None:
        self._tokens += tokens

    def read(self) -> int:
        """What was counted since it was last read."""
        tokens, self._tokens = self._tokens, 0
        return tokens


class AnswerProgress:
    """How far an evaluation is, a line for each tenth of it (the `progress` of evaluation.evaluate).

    Args:
        label: Whose answers.
        say: Told each line; a bar may be on the screen at the time.
        clock: Seconds, rising.
    """

    def __init__(self, label: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._say, self._clock = label, say, clock
        self._first: tuple[int, float] | None = None
        self._tenths = 0

    def __call__(self, done: int, total: int, tokens: int) -> None:
        """`done` of `total` answers stand, with `tokens` tokens in those written by this process."""
        self._first = self._first or (done, self._clock())
        passed, written = self._clock() - self._first[1], done - self._first[0]
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths and written and passed > 0:
            left = duration(passed / written * (total - done))
            self._say(f"{self._label}: {done}/{total} answers  {tokens / passed:,.0f} tokens/s  {left} left")
        self._tenths = max(tenths, self._tenths)


def say(line: str) -> None:
    """A plain line on the standard error stream."""
    Console(stderr=True).print(Text(plain(line)), soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    Example:
        >>> duration(59.6), duration(3661)
        ('1:00', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# --- where a run ran ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The machine in plain words for run.json: processor, cores, memory, accelerators, Python, platform, torch's threads."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "accelerators": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
    }


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held so far: on the accelerator where it runs on one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # not measured there
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else kilobytes * 1024


def versions() -> dict[str, str]:
    """Versions of redistill and of the packages whose releases can change a result; those not installed are left out."""
    found = {"redistill": redistill.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path | None = None) -> str | None:
    """The git commit checked out in `folder` (else where redistill itself is), "-dirty" behind it where tracked files differ.

    None outside a git checkout, or without git.
    """
    place = folder or Path(redistill.__file__).parent
    head = _git(place, "rev-parse", "--verify", "HEAD")
    changes = _git(place, "status", "--porcelain", "--untracked-files=no") if head else None
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
