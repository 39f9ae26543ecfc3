"""Progress of training and of an evaluation: a bar on a terminal, lines in a log.

Output only: nothing here changes what a run computes.  Metrics go to a file first (metrics.py).
"""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import rich.progress
from rich.console import Console
from rich.text import Text

from redistill.storage.redaction import plain

SHOWN = ("loss", "sft", "divergence", "span", "policy_gradient", "pretraining")


class Progress:
    """Progress of training: a bar on a terminal, a line every `log_every` updates in a log.

    A context manager; the bar is removed on exit.

    Args:
        total: Updates of the whole run, 0 where not known yet; `expect` corrects it.
        log_every: Updates between lines where the output is not a terminal.
        enabled: False writes nothing, for all processes but the main one.
        console: Where to write; None takes the standard error stream.
        clock: Monotonic seconds.
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
        """Set the number of updates, once it is known."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._task, total=total, line=f"step 0/{total}")

    def update(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the loss terms after `step` updates, tokens per second, and the time left.

        The time left is estimated from the time since the first call: loading, and updates before a resume, do not count.
        """
        self._first = self._first or (step, self._clock())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=self._line(step, metrics, self._first))
        elif step % self._log_every == 0 or step == self._total:
            self._print(self._line(step, metrics, self._first))

    def note(self, text: str) -> None:
        """Write a line above the bar; control characters in `text`, which may be a model's, are removed."""
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


class AnswerProgress:
    """Progress of an evaluation, a line for each tenth of it (the `progress` of evaluation.evaluate).

    Args:
        label: Whose answers.
        say: Receives each line; a bar may be on the screen at the time.
        clock: Monotonic seconds.
    """

    def __init__(self, label: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._say, self._clock = label, say, clock
        self._first: tuple[int, float] | None = None
        self._tenths = 0

    def __call__(self, done: int, total: int, tokens: int) -> None:
        """`done` of `total` answers are there; this process has generated `tokens` tokens."""
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
