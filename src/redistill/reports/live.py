"""The state of a run that may be in progress, read from the files of its folder.

The logs are read incrementally: each call reads only the lines that were appended since the previous call.  The run may
truncate its logs when it resumes, and the folder need not exist yet.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redistill.errors import CheckpointError, ConfigError, DataError
from redistill.records import Json
from redistill.reports.folders import at, number, read_object
from redistill.reports.logs import Line, RunLog, extend_log
from redistill.storage.json_text import JsonError, parse_json
from redistill.storage.lock import LOCK
from redistill.training.lengths import check_length, in_updates

CURVES = ("loss", "sft", "divergence", "span", "policy_gradient", "recovered", "response_length")
"""Training metrics that have a curve."""
_PROBE = 256  # bytes before the offset that must be unchanged
_BLOCK = 1 << 22  # bytes that are read at once
_RECENT = 50  # updates from which the remaining time is estimated
_EVENTS = 5


class LogTail:
    """Reads the lines that are appended to a JSON Lines file.

    Args:
        path: The file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset, self._before = 0, b""

    def has_changed(self) -> bool:
        """Return whether lines that were already read have been removed or replaced.

        If so, the next call of `lines` returns all lines of the file again.
        """
        if not self._offset:
            return False
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset - len(self._before))
                if file.read(len(self._before)) == self._before:
                    return False
        except OSError:
            pass
        self._offset, self._before = 0, b""
        return True

    def lines(self) -> Iterator[Line]:
        """Yield the complete lines that were not returned before.

        A line that is not a JSON object is skipped.
        """
        while block := self._block():
            for text in block.splitlines():
                try:
                    value = parse_json(text)
                except JsonError:
                    continue
                if isinstance(value, Mapping):
                    yield value

    def _block(self) -> bytes:
        """Return the next complete lines of the file; b"" if there are none."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                block = file.read(_BLOCK)
                while block and b"\n" not in block and (more := file.read(_BLOCK)):
                    block += more
        except OSError:
            return b""
        block = block[: block.rfind(b"\n") + 1]
        self._offset += len(block)
        self._before = (self._before + block)[-_PROBE:]
        return block


@dataclass
class _Read:
    """Content of the lines of metrics.jsonl that have been read so far.

    Args:
        log: The curves and the events.
        train: The last line about an update; empty if there is no such line.
        validation: The last line about a validation; empty if there is no such line.
        seconds: Durations of the last updates.
        events: The last events, the newest last.
    """

    log: RunLog = field(default_factory=RunLog)
    train: Line = field(default_factory=dict)
    validation: Line = field(default_factory=dict)
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    events: deque[str] = field(default_factory=lambda: deque(maxlen=_EVENTS))

    def add(self, line: Line) -> None:
        """Store the values of a line that `redistill watch` shows."""
        if line.get("kind") == "train":
            self.train = line
            if (seconds := number(line.get("seconds"))) is not None:
                self.seconds.append(seconds)
        elif line.get("kind") == "validation":
            self.validation = line
        elif line.get("kind") == "event":
            self.events.append(str(line.get("text")))


@dataclass(frozen=True, kw_only=True)
class LiveState:
    """The state of a run at one moment.

    Args:
        folder: The run folder.
        phase: "waiting" (there is no run.json yet), "training", "evaluating" or "finished".  If no process uses the folder of
            an unfinished run, the phase is "stopped" before the end of training, and "trained" after it.
        name: Name of the run.
        method: Name of the run's method.
        step: Number of updates done.
        updates: Number of updates of the run; None if it is unknown.
        left_s: Estimate of the remaining seconds of training; None if it is unknown.
        train: The last line of metrics.jsonl about an update; empty if there is no such line.
        validation: The last line of metrics.jsonl about a validation; empty if there is no such line.
        events: The last events, the newest last.
        answers: Number of test answers of the student.
        curves: Values of the curves, by name.
    """

    folder: Path
    phase: str
    name: str
    method: str
    step: int
    updates: int | None
    left_s: float | None
    train: Line
    validation: Line
    events: Sequence[str]
    answers: int
    curves: Mapping[str, Sequence[float]]

    def as_json(self) -> dict[str, object]:
        """Return the state as JSON values."""
        return {**vars(self), "folder": str(self.folder), "events": list(self.events)}


class LiveRun:
    """A run folder that is read repeatedly.

    Args:
        folder: The run folder; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._tail, self._read = folder, LogTail(folder / "metrics.jsonl"), _Read()

    def state(self) -> LiveState:
        """Read what was written since the last call, and return the state of the run.

        Raises:
            CheckpointError: run.json is damaged, or has a newer schema.
        """
        description = self._description()
        if self._tail.has_changed():
            self._read = _Read()
        read = self._read
        extend_log(read.log, self._kept(), CURVES)
        step = int(number(read.train.get("step")) or 0)
        updates = _updates(description)
        left = None
        if updates is not None and read.seconds:
            left = max(0, updates - step) * sum(read.seconds) / len(read.seconds)
        phase = self._phase(description)
        bins = {**read.log.train, **{f"validation {name}": curve for name, curve in read.log.validation.items()}}
        return LiveState(
            folder=self._folder,
            phase=phase,
            name=str(description.get("name") or self._folder.name),
            method=str(description.get("method") or ""),
            step=step,
            updates=updates,
            left_s=left if phase == "training" else None,
            train=read.train,
            validation=read.validation,
            events=tuple(read.events),
            answers=self._num_answers() if phase in ("trained", "evaluating", "finished") else 0,
            curves={name: curve.bins().means.tolist() for name, curve in bins.items()},
        )

    def _kept(self) -> Iterator[Line]:
        for line in self._tail.lines():
            self._read.add(line)
            yield line

    def _description(self) -> Mapping[str, Json]:
        """Return the content of run.json; an empty mapping if it does not exist."""
        path = self._folder / "run.json"
        try:
            return read_object(path) if path.is_file() else {}
        except DataError as error:
            if not path.is_file():  # it was removed meanwhile
                return {}
            raise CheckpointError(f"{error}; restore the file, or rerun the command that wrote it") from error

    def _phase(self, description: Mapping[str, Json]) -> str:
        if not description:
            return "waiting"
        status = description.get("status")
        if status == "finished":
            return "finished"
        if (self._folder / LOCK).exists():
            return "evaluating" if status == "trained" else "training"
        return "trained" if status == "trained" else "stopped"

    def _num_answers(self) -> int:
        """Return the number of lines in the responses files of the student."""
        total = 0
        for path in (self._folder / "responses").glob("*.jsonl"):
            try:
                total += path.read_bytes().count(b"\n")
            except OSError:  # a file of one process is removed when all answers are in one file
                continue
        return total


def _updates(description: Mapping[str, Json]) -> int | None:
    """Return the number of updates of a run; None if run.json does not contain it."""
    length = at(description, "config", "training", "updates")
    size, examples = (
        number(at(description, *path)) for path in (("config", "training", "batch_size"), ("data", "kept", "train"))
    )
    if isinstance(length, bool) or not isinstance(length, int | str):
        return None
    try:
        check_length("updates", length, 1)
    except ConfigError:
        return None
    if isinstance(length, str) and (not size or examples is None):
        return None
    return in_updates(length, int(examples or 0), int(size or 1))
