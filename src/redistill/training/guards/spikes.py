"""Leaps of the loss, seen at the update that has them."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

WINDOW = 64
FEWEST = 10
DEVIATIONS = 8.0
LARGEST_FACTOR = 15.0
TINY = 1e-12
MAD_TO_SIGMA = 1.4826  # of a normal distribution


class SpikeDetector:
    r"""Tells a loss that leaps above those before it, by their median and median absolute deviation in logarithms.

    .. math:: \log|L| - m > \min\bigl(\max(8 \cdot 1.4826\,\mathrm{MAD},\ \log f),\ \max(\log 15,\ \log f)\bigr)

    where m and MAD are of log|L| over the last 64 updates, and f is `factor`.  In logarithms, since the scatter of a loss grows
    with the loss; by medians, since a spike must not raise the bar for the next.  The bar ends at 15, so that 100 times a usual
    loss is seen however widely losses scatter.  The first 10 losses are not judged.  Every finite loss is remembered, a spike
    too: one that stays high is the new normal once half of the window knows it.

    Args:
        factor: How many times the median is a leap at least, > 1.

    Example:
        >>> detector = SpikeDetector(factor=5.0)
        >>> leaps = [detector.check(loss) for loss in [2.0] * 10 + [200.0, 2.0]]
        >>> [round(leap) for leap in leaps if leap is not None]
        [100]
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=WINDOW)  # log|L|

    def check(self, loss: float) -> float | None:
        """How many times the median of |loss| this one is, where that is a spike; it must be finite."""
        assert math.isfinite(loss), "what is not finite is another guard's"
        value = math.log(max(abs(loss), TINY))
        leap = None
        if len(self._recent) >= FEWEST:
            middle = median(self._recent)
            spread = MAD_TO_SIGMA * median(abs(other - middle) for other in self._recent)
            least = math.log(self._factor)
            bar = min(max(DEVIATIONS * spread, least), max(math.log(LARGEST_FACTOR), least))
            if value - middle > bar:
                leap = math.exp(value - middle)
        self._recent.append(value)
        return leap

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=WINDOW)
