"""Progress of training and evaluation: a bar on a terminal, lines in a log.

This module only prints; it does not affect the results of a run.  metrics.py stores the metrics.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Self

import rich.progress
from rich.console import Console, RenderableType
from rich.text import Text

from redistill.processes import streams
from redistill.records import rate
from redistill.storage.redaction import plain_line

_BAR_WIDTH, _ELAPSED_WIDTH, _MIN_WIDTH = 16, 9, 16
"""Widths in characters: of the bar; of the elapsed time with spaces; and the smallest width of the text beside the bar."""
SHOWN = ("loss", "sft", "divergence", "span", "policy_gradient", "pretraining")


class _Bar(rich.progress.Progress):
    """A progress bar below something else, such as a table."""

    above: RenderableType | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.above is not None:
            yield self.above
        yield from super().get_renderables()


class TerminalBar:
    """A progress bar with a line of text; shown only if the output is a terminal.

    The object is a context manager, and the bar is updated until the context ends.  Inside the context, lines that
    libraries write are printed above the bar.

    Args:
        console: The output.
        total: Number of steps.
        line: The text beside the bar.
        enabled: Whether to show the bar if the output is a terminal.
        above: What is shown above the bar, such as a table; None for the bar alone.
    """

    def __init__(
        self, console: Console, total: int, line: str, *, enabled: bool = True, above: RenderableType | None = None
    ) -> None:
        self._console = console
        self._bar: _Bar | None = None
        if console.is_terminal:
            columns = (
                rich.progress.BarColumn(bar_width=_BAR_WIDTH),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("{task.fields[line]}", markup=False),
            )
            through_streams = isinstance(sys.stderr, streams.TolerantStream)  # otherwise rich redirects the streams itself
            self._bar = _Bar(
                *columns,
                console=console,
                disable=not enabled,
                redirect_stdout=not through_streams,
                redirect_stderr=not through_streams,
            )
            self._bar.above = above
            self._task = self._bar.add_task("", total=total or None, line=line)
        self._open = ExitStack()

    @property
    def is_shown(self) -> bool:
        """Whether the output is a terminal, so that there is a bar."""
        return self._bar is not None and not self._bar.disable

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._open.enter_context(self._bar)
            if self.is_shown:
                self._open.enter_context(streams.above_bar(self._console))
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()

    def show(self, line: str, *, completed: int | None = None, total: int | None = None) -> None:
        """Change the text beside the bar, and the numbers of steps if they are given."""
        if self._bar is not None:
            text = Text(line)
            text.truncate(max(_MIN_WIDTH, self._console.width - _BAR_WIDTH - _ELAPSED_WIDTH), overflow="ellipsis")
            self._bar.update(self._task, completed=completed, total=total, line=text.plain)

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


class Progress(TerminalBar):
    """Progress of a run: a bar on a terminal, lines in a log.

    The object is a context manager; the bar is updated until the context ends.  The bar always names the phase, such as
    "loading models", "generating" or "validating".

    Args:
        total: Number of updates of the whole run.  If it is not known yet, 0; the method `expect` then sets it later.
        log_every: Updates between lines if the output is not a terminal.
        enabled: Whether to print; True on the main process only.
        console: The output; if None, the standard error stream is used.
        clock: Monotonic clock, in seconds.
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
        self._first: tuple[int, float] | None = None
        self._phase, self._rest = "loading", ""
        super().__init__(console or streams.console("stderr", quiet=not enabled), total, self._phase, enabled=enabled)

    @contextmanager
    def phase(self, name: str, *, in_log: bool = False) -> Iterator[None]:
        """Context in which the bar shows the phase `name`.

        Args:
            name: The phase, such as "validating".
            in_log: Whether the name of the phase is printed as a line if the output is not a terminal.
        """
        if in_log and self._bar is None:
            self._print(name)
        before, self._phase = self._phase, name
        self.show(self._shown())
        if self._bar is not None:
            self._bar.refresh()
        try:
            yield
        finally:
            self._phase = before
            self.show(self._shown())

    def expect(self, total: int) -> None:
        """Set the number of updates of the run, after the run has been loaded."""
        self._total, self._phase, self._rest = total, "", f"step 0/{total}"
        self.show(self._shown(), total=total)

    def update(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show the loss terms after `step` updates, the speed and the remaining time.

        The remaining time is estimated from the time since the first call.  Loading, and updates before a resume, do not affect
        the estimate.
        """
        self._first = self._first or (step, self._clock())
        if self._bar is not None:
            count, *terms = self._parts(step, metrics)
            self._rest = "  ".join([count, *self._left(step), *terms])  # the end may be truncated
            self.show(self._shown(), completed=step, total=self._total)
        elif step % self._log_every == 0 or step == self._total:
            self._print("  ".join([*self._parts(step, metrics), *self._left(step)]))

    def note(self, text: str) -> None:
        """Print a line above the bar, without control characters.

        `text` may be generated by a model.
        """
        self._print(plain_line(text))

    def _shown(self) -> str:
        return "  ".join(filter(None, (self._phase, self._rest)))

    def _parts(self, step: int, metrics: Mapping[str, float | None]) -> list[str]:
        """Return the number of updates, the loss terms and the speed, as texts."""
        values = ((name, metrics.get(name)) for name in SHOWN)
        parts = [f"step {step}/{self._total}", *(f"{name} {value:.4g}" for name, value in values if value is not None)]
        if (speed := metrics.get("tokens_per_s")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        return parts

    def _left(self, step: int) -> list[str]:
        """Return a list with the remaining time as text; empty if the time is unknown."""
        if self._first is None or step <= self._first[0]:
            return []
        seconds = (self._clock() - self._first[1]) / (step - self._first[0]) * (self._total - step)
        return [f"{duration(seconds)} left"]


class AnswerProgress:
    """Progress of an evaluation: a line per 10 % of the answers, or a bar.

    An instance is passed as the argument `progress` of `Evaluator.evaluate`.

    Args:
        label: The name of the evaluated model, or of other work.
        report: Function that is called with each line.
        clock: Monotonic clock, in seconds.
        unit: Name of the items that are counted.
        bar: Bar that shows the progress instead of lines, if the output is a terminal.
    """

    def __init__(
        self,
        label: str,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        unit: str = "answers",
        bar: TerminalBar | None = None,
    ) -> None:
        self._bar = bar
        self._label, self._report, self._clock, self._unit = label, report, clock, unit
        self._first: tuple[int, float] | None = None
        self._tenths = 0

    def __call__(self, done: int, total: int, tokens: int) -> None:
        """Report progress.

        Args:
            done: Number of answers of this process that are done.
            total: Number of all answers of this process.
            tokens: Number of tokens that this process has generated.
        """
        self._first = self._first or (done, self._clock())
        passed, answered = self._clock() - self._first[1], done - self._first[0]
        tenths = 10 * done // total if total else 10
        if answered and (speed := rate(tokens, passed)) is not None:
            count, left = f"{self._label}: {done}/{total} {self._unit}", f"{duration(passed / answered * (total - done))} left"
            if self._bar is not None and self._bar.is_shown:
                self._bar.show(f"{count}  {left}  {speed:,.0f} tokens/s", completed=done, total=total)
            elif tenths > self._tenths:
                self._report(f"{count}  {speed:,.0f} tokens/s  {left}")
        self._tenths = max(tenths, self._tenths)


def report(line: str) -> None:
    """Print a line to the standard error stream."""
    streams.console("stderr").print(Text(plain_line(line)), soft_wrap=True)


def duration(seconds: float) -> str:
    """Return seconds as text of the form [hours:]minutes:seconds.

    A negative duration, which occurs if the clock was set back, gives 0:00.

    Example:
        >>> duration(59.6), duration(3661)
        ('1:00', '1:01:01')
    """
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
