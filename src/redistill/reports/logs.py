"""Reads the logs of a run for its report, one chunk of lines at a time.

Memory does not grow with the number of updates.  The points of a curve are combined to bins.  Events and corrections of student
text are thinned: a limited number of them is kept, evenly spaced.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from redistill.records import Json
from redistill.reports.folders import mapping, number
from redistill.reports.thinning import Curve, Spaced

CHUNK_LINES = 2048
MAX_POSITION = 4096
"""Later positions of error tokens are counted as this one."""
QUICK = {float, int, bool, type(None)}  # types that numpy converts as `number` does

Line = Mapping[str, Json]


@dataclass
class RunLog:
    """The content of metrics.jsonl that a report shows.

    Args:
        train: Curves of the training metrics over updates, by name of the metric.
        validation: Curves of the validation scores over updates, by name of the score.
        origins: For each origin of sequences, such as "student": the curve of the fraction of sequences that have this origin.
        events: The lines of the events that guards reported; evenly spaced ones if there are many.
        kinds: Number of events of each kind, by name of the kind.
    """

    train: dict[str, Curve] = field(default_factory=dict)
    validation: dict[str, Curve] = field(default_factory=dict)
    origins: dict[str, Curve] = field(default_factory=dict)
    events: Spaced[Line] = field(default_factory=Spaced)
    kinds: Counter[str] = field(default_factory=Counter)

    def __bool__(self) -> bool:
        """Whether the log has a curve or an event."""
        return any((self.train, self.validation, self.origins, self.kinds))


class Revisions(Spaced[Line]):
    """Evenly spaced lines of revisions.jsonl, and the error positions of all lines.

    Each line describes a correction of student text.

    Args:
        positions: Number of corrections by index of the error token in the text, from 0 to `MAX_POSITION`.

    Example:
        >>> revisions = Revisions()
        >>> revisions.add({"step": 1, "position": 5})
        >>> revisions.count, dict(revisions.positions)
        (1, {5: 1})
    """

    def __init__(self) -> None:
        super().__init__()
        self.positions: Counter[int] = Counter()

    def add(self, item: Line) -> None:
        """Append a line, and count its error position.

        The position is counted only if it is a number >= 0.
        """
        super().add(item)
        position = number(item.get("position"))
        if position is not None and position >= 0:
            self.positions[int(min(position, MAX_POSITION))] += 1


@dataclass
class _Chunk:
    """Lines of metrics.jsonl that have not been added to the curves of the report yet.

    Lines about training updates are reduced to the values that the report needs.
    """

    rows: list[list[Json]] = field(default_factory=list)
    origins: list[Mapping[str, Json]] = field(default_factory=list)
    validation: list[Line] = field(default_factory=list)

    def is_full(self) -> bool:
        return len(self.rows) + len(self.validation) == CHUNK_LINES


def read_log(lines: Iterable[Line], names: Iterable[str]) -> RunLog:
    """Read the lines of metrics.jsonl.

    Args:
        lines: The lines, in the order of the file.
        names: Names of the training metrics to read.  All validation scores are read.
    """
    log = RunLog()
    extend_log(log, lines, names)
    return log


def extend_log(log: RunLog, lines: Iterable[Line], names: Iterable[str]) -> None:
    """Append lines of metrics.jsonl to a log, in place; see `read_log`."""
    keys, chunk = ("step", *names), _Chunk()
    for line in lines:
        kind = line.get("kind")
        if kind == "train":
            chunk.rows.append(list(map(line.get, keys)))
            chunk.origins.append(mapping(line.get("origin")))
        elif kind == "validation":
            chunk.validation.append(line)
        elif kind == "event":
            log.events.add(line)
            log.kinds[str(line.get("event"))] += 1
        if chunk.is_full():
            _add(log, keys, chunk)
            chunk = _Chunk()
    _add(log, keys, chunk)


def read_revisions(lines: Iterable[Line]) -> Revisions:
    """Read the lines of revisions.jsonl, and keep evenly spaced ones.

    Each line describes a correction of student text.  The result also counts all lines, and all positions of error tokens.
    """
    revisions = Revisions()
    for line in lines:
        revisions.add(line)
    return revisions


def _add(log: RunLog, keys: Sequence[str], chunk: _Chunk) -> None:
    """Append the lines of a chunk to the curves."""
    if chunk.rows:
        numbers_NK = _numbers(chunk.rows)
        _extend(log.train, keys, numbers_NK)
        _extend_origins(log.origins, numbers_NK[:, 0], chunk.origins)
    if chunk.validation:
        keys = list(dict.fromkeys(["step", *(name for line in chunk.validation for name in line)]))
        _extend(log.validation, keys, _numbers([list(map(line.get, keys)) for line in chunk.validation]))


def _numbers(rows: Sequence[Sequence[Json]]) -> np.ndarray:
    """Convert N rows of K values to a float64 array [N, K].

    A value that is not a finite number becomes NaN.
    """
    try:
        if set(map(type, chain.from_iterable(rows))) <= QUICK:
            return np.array(rows, dtype=np.float64)  # None becomes NaN
    except OverflowError:  # an integer beyond the range of floats
        pass
    return np.array([[number(value) for value in row] for row in rows], dtype=np.float64)


def _extend(curves: dict[str, Curve], keys: Sequence[str], numbers_NK: np.ndarray) -> None:
    """Append columns of numbers to the curves with the names in `keys`, in place.

    The first column contains the steps.  A new curve is added only if its column has a finite number.
    """
    for name, values in zip(keys[1:], numbers_NK.T[1:], strict=True):
        if name in curves or np.isfinite(values + numbers_NK[:, 0]).any():
            curves.setdefault(name, Curve()).extend(numbers_NK[:, 0], values)


def _extend_origins(curves: dict[str, Curve], steps: np.ndarray, origins: Sequence[Mapping[str, Json]]) -> None:
    """Append a batch of updates to the curve of each origin, in place.

    An origin, such as "student", states how a sequence was created.  The curve of an origin shows the fraction of sequences
    that have this origin.  `origins` has one mapping per update, from origin to number of sequences.  An origin that is missing
    in a mapping has the fraction 0.
    """
    names = list(dict.fromkeys([*curves, *chain.from_iterable(origins)]))
    if not names:
        return
    counts_NK = np.nan_to_num(_numbers([list(map(found.get, names)) for found in origins]), posinf=0.0, neginf=0.0)
    fractions_NK = counts_NK / np.maximum(counts_NK.sum(axis=1, keepdims=True), 1)
    steps = np.where(list(map(bool, origins)), steps, np.nan)  # lines without origins are omitted
    others = next(iter(curves.values()), Curve()).zeros()  # the lines before these ones
    for name, values in zip(names, fractions_NK.T, strict=True):
        curves.setdefault(name, others.zeros()).extend(steps, values)
