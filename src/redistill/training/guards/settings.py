"""How watchful a run is."""

import math
from dataclasses import dataclass
from typing import Literal

from redistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens to updates and to text that look wrong; each event is a line of kind "event" in metrics.jsonl.

    Args:
        max_skips: Updates in a row that may be skipped; the next one ends the run.  0 ends it at the first.
        on_spike: Whether an update whose loss leaps is made and told ("warn"), or skipped.
        spike_factor: How many times the running median of |loss| is a leap at least, > 1; more where the loss varies widely.
        on_collapse: Whether a collapse of the student's text is told ("warn"), or ends the run ("stop").
        collapse_window: Updates with text of the student's own that its means are taken over, >= 1.
        min_length: Least mean length of its responses, as a share of the gold answers'; 0 looks away, as for those below.
        min_ended: Least share of responses that end by themselves, as a share of the highest so far.
        min_distinct: Least share of distinct bigrams in a response, as a share of the gold answers'.
        min_kept_mass: Least mass of the teacher that DAC-KL keeps.

    Raises:
        ConfigError: a value out of range.
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

    def __post_init__(self) -> None:
        if self.max_skips < 0:
            raise ConfigError(f"max_skips = {self.max_skips}: must be >= 0; 0 stops at the first update that is skipped")
        if self.collapse_window < 1:
            raise ConfigError(f"collapse_window = {self.collapse_window}: must be >= 1; 20 is usual")
        if not 1 < self.spike_factor < math.inf:
            raise ConfigError(f"spike_factor = {self.spike_factor}: must be > 1 and finite; 5 is usual")
        for name in ("min_length", "min_ended", "min_distinct", "min_kept_mass"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must lie in [0, 1]; 0 looks away")
