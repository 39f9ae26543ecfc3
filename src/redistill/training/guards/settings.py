"""Configuration of the guards."""

import math
from dataclasses import dataclass
from typing import Literal

from redistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """How a run reacts to non-finite updates, loss spikes and text collapse.

    Each such event is logged as a line of metrics.jsonl.

    Args:
        max_skips: Maximum number of consecutive updates that are skipped, >= 0.  If one more update must be skipped, the
            run ends.
        on_spike: "warn" reports and applies an update whose loss spikes; "skip" reports and skips it.
        spike_factor: An update is a loss spike if its absolute loss exceeds this multiple of the running median, > 1.
            A larger multiple is required if the loss varies widely.
        on_collapse: "warn" reports a collapse of the student's text; "stop" ends the run.
        collapse_window: Number of updates, >= 1.  A collapse is detected from means over the responses of the last
            `collapse_window` updates with generated text.  For `min_kept_mass` and `min_recovered`, the means are over the last
            `collapse_window` updates with DAC-KL.  The settings `min_*` are limits of these means.
        min_length: Lower limit of the mean length of responses, as a fraction of the mean length of gold answers, in [0,
            1].  For each of the settings `min_*`, the value 0 disables the check.
        min_ended: Lower limit of the fraction of responses with an end token, relative to its largest value so far, in [0,
            1].
        min_distinct: Lower limit of the fraction of distinct bigrams in responses, relative to that in gold answers, in [0,
            1].
        min_kept_mass: Lower limit of the teacher's probability mass of the classes that the divergence DAC-KL keeps, in [0,
            1]. The most probable class alone may exceed this limit.  Therefore `min_recovered` detects a collapse earlier.
        min_recovered: Lower limit of the fraction of the teacher's probability mass outside its most probable class that
            the divergence DAC-KL keeps, in [0, 1].  This limit and `min_kept_mass` are checked only if DAC-KL learns its
            interval.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> GuardConfig(on_spike="skip").max_skips
        3
        >>> GuardConfig(spike_factor=1.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: spike_factor = 1.0: must be > 1 and finite; 5 is usual

    See also: SpikeDetector, which has the formula of a loss spike.
    """

    max_skips: int = 3
    on_spike: Literal["warn", "skip"] = "warn"
    spike_factor: float = 5.0
    on_collapse: Literal["warn", "stop"] = "warn"
    collapse_window: int = 20
    min_length: float = 0.2
    min_ended: float = 0.5
    min_distinct: float = 0.5
    min_kept_mass: float = 0.5
    min_recovered: float = 0.1

    def __post_init__(self) -> None:
        if self.max_skips < 0:
            raise ConfigError(f"max_skips = {self.max_skips}: must be >= 0; 0 stops at the first update that is skipped")
        if self.collapse_window < 1:
            raise ConfigError(f"collapse_window = {self.collapse_window}: must be >= 1; 20 is usual")
        if not 1 < self.spike_factor < math.inf:
            raise ConfigError(f"spike_factor = {self.spike_factor}: must be > 1 and finite; 5 is usual")
        for name in ("min_length", "min_ended", "min_distinct", "min_kept_mass", "min_recovered"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must lie in [0, 1]; 0 disables the check")
