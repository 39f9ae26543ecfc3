"""Reduces streams of any length to a bounded size in one pass.

The points of a numeric series are combined to bins.  From a stream of other items, evenly spaced items are kept.  The results
depend only on the stream; a short stream is not changed.
"""

from collections.abc import Sequence
from copy import copy
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from redistill.reports.statistics import evenly

MAX_POINTS = 200
MAX_ITEMS = 1000

Item = TypeVar("Item")


class Bins(NamedTuple):
    """The bins of a series in the order of steps; each array has one number per bin.

    Args:
        counts: Number of points in the bin.
        steps: Mean step.
        means, lows, highs: Mean, minimum and maximum of the values.
    """

    counts: np.ndarray
    steps: np.ndarray
    means: np.ndarray
    lows: np.ndarray
    highs: np.ndarray


class Curve:
    """A series of points (step, value), in at most `MAX_POINTS` bins.

    The first and the last point have bins of their own.  All other bins have the same number of points, a power of two; only
    the last of these bins may have fewer.  While there are at most `MAX_POINTS` points, each point is a bin.

    Example:
        >>> curve = Curve()
        >>> curve.extend(np.arange(1000.0), np.arange(1000.0) ** 2)
        >>> bins = curve.bins()
        >>> len(bins.steps), bins.means[[0, -1]].tolist(), bins.counts[1].item()
        (127, [0.0, 998001.0], 8.0)
    """

    def __init__(self) -> None:
        self._width = 1
        self._inner = np.empty((5, 0))  # the bins, as in `_as_bins`, of all points but the first and the last
        self._ends = np.empty((5, 0))  # the first and the last point

    def __bool__(self) -> bool:
        """Whether the series has a point."""
        return self._ends.size > 0

    def extend(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Append points in the order of their steps.

        Args:
            steps, values: Float arrays of the same length.  Points with NaN or infinities are omitted.
        """
        known = np.isfinite(steps) & np.isfinite(values)
        points = np.concatenate([self._ends, _as_bins(steps[known], values[known])], axis=1)
        if points.shape[1] <= 2:
            self._ends = points
            return
        self._ends = points[:, [0, -1]]
        self._inner = _merged(np.concatenate([self._inner, points[:, 1:-1]], axis=1), self._width)
        while self._inner.shape[1] > MAX_POINTS - 2:
            self._width *= 2
            self._inner = _merged(self._inner, self._width)

    def zeros(self) -> "Curve":
        """Return a new series with the same steps, in which all values are 0."""
        other = copy(self)
        other._inner, other._ends = self._inner.copy(), self._ends.copy()
        other._inner[2:] = other._ends[2:] = 0.0
        return other

    def bins(self) -> Bins:
        """Return the bins of all points that have been appended."""
        bins = np.concatenate([self._ends[:, :1], self._inner, self._ends[:, 1:]], axis=1)
        counts, steps, values, lows, highs = bins
        return Bins(counts, steps / counts, values / counts, lows, highs)


def _as_bins(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return bins [5, N] of one point each.

    The five numbers of a bin are: count, sum of steps, sum of values, minimum and maximum.
    """
    return np.stack([np.ones_like(values), steps, values, values, values])


def _merged(bins: np.ndarray, width: int) -> np.ndarray:
    """Merge neighbouring bins into bins of `width` points.

    Points are counted from 0.  The new bins begin at the points 0, `width`, 2 * `width` and so on.  Each of these points must
    be the first point of an old bin.  The last new bin may have fewer than `width` points.
    """
    first = np.cumsum(bins[0]) - bins[0]  # number of the first point of each bin
    starts = np.flatnonzero(first % width == 0)
    sums = np.add.reduceat(bins[:3], starts, axis=1)
    lows, highs = np.minimum.reduceat(bins[3], starts), np.maximum.reduceat(bins[4], starts)
    return np.concatenate([sums, lows[None], highs[None]])


class Spaced(Generic[Item]):
    """Evenly spaced items of a stream, the first and the last included.

    All items are kept while there are at most `MAX_ITEMS`; later, at most `MAX_ITEMS` + 1 items are kept.

    Example:
        >>> spaced = Spaced[int]()
        >>> for item in range(10_000):
        ...     spaced.add(item)
        >>> spaced.count, spaced.items(3)
        (10000, [0, 4992, 9999])
    """

    def __init__(self) -> None:
        self.count = 0
        self._stride = 1
        self._kept: list[Item] = []  # every `_stride`-th item
        self._last: list[Item] = []

    def add(self, item: Item) -> None:
        """Append an item to the stream."""
        if self.count % self._stride == 0:
            if len(self._kept) == MAX_ITEMS:
                self._kept, self._stride = self._kept[::2], 2 * self._stride
            self._kept.append(item)
        self._last = [item]
        self.count += 1

    def items(self, number: int) -> Sequence[Item]:
        """Return at most `number` of the kept items, evenly spaced from first to last."""
        is_kept = (self.count - 1) % self._stride == 0
        found = self._kept if is_kept else self._kept + self._last
        return [found[index] for index in evenly(len(found), number)]
