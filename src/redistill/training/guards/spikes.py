"""Detection of loss spikes."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import cast

from redistill.records import Json

WINDOW = 64
FEWEST = 10
DEVIATIONS = 8.0
LARGEST_FACTOR = 15.0
TINY = 1e-12
MAD_TO_SIGMA = 1.4826  # of a normal distribution


class SpikeDetector:
    r"""Detects a loss spike by comparison with the logarithms of recent losses.

    .. math:: \log|L| - m > \min\bigl(\max(8 \cdot 1.4826\,\mathrm{MAD},\ \log f),\ \max(\log 15,\ \log f)\bigr)

    A loss L is a spike if this inequality holds.  m is the median and MAD the median absolute deviation of log|L| over the last
    64 updates, and f is `factor`.  For a normal distribution, 1.4826 MAD is one standard deviation.  The threshold is therefore
    8 standard deviations, but at least log f and at most max(log 15, log f).

    Logarithms are used because the deviation of a loss increases with the loss.  Medians are used so that a spike does not
    raise the threshold for the next spike.  The upper bound ensures that a loss of 100 times the median is detected for f <
    100, for any deviation.  The first 10 losses are not checked.  Spikes are included in the 64 updates.  Therefore a loss
    that stays high is reported only until half of these updates have a high loss.

    Args:
        factor: Lower bound of the ratio between a spike and the median of |L|, > 1.

    Example:
        >>> detector = SpikeDetector(factor=5.0)
        >>> ratios = [detector.check(loss) for loss in [2.0] * 10 + [200.0, 2.0]]
        >>> [round(ratio) for ratio in ratios if ratio is not None]
        [100]
    """

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._recent: deque[float] = deque(maxlen=WINDOW)  # log|L|

    def check(self, loss: float) -> float | None:
        """Check whether a finite loss is a spike, and add it to the recent losses.

        Returns |loss| divided by the median of the recent |loss| values if the loss is a spike, else None.
        """
        assert math.isfinite(loss), "the loss must be finite"
        value = math.log(max(abs(loss), TINY))
        ratio = None
        if len(self._recent) >= FEWEST:
            middle = median(self._recent)
            spread = MAD_TO_SIGMA * median(abs(other - middle) for other in self._recent)
            least = math.log(self._factor)
            if value - middle > min(max(DEVIATIONS * spread, least), max(math.log(LARGEST_FACTOR), least)):
                ratio = math.exp(value - middle)
        self._recent.append(value)
        return ratio

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state to be saved in checkpoints."""
        return {"recent": list(self._recent)}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        self._recent = deque(map(float, cast(list[float], state["recent"])), maxlen=WINDOW)
