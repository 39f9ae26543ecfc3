"""When an update is not made, and when training stops: updates that are not finite, and scores that no longer rise.

Both are told numbers that are the same on every process, so that all processes decide alike; neither looks at a model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from redistill.errors import ConfigError, TrainingError

LISTED_SAMPLES = 8


class FiniteGuard:
    """Keeps loss and gradient that are not finite out of the weights, and stops where they come in a row.

    Args:
        max_skips: How many updates in a row may be left out; the next one ends the run.  0 ends it at the first.

    Raises:
        ConfigError: `max_skips` is negative.

    Example:
        >>> guard = FiniteGuard(max_skips=1)
        >>> guard.check(2.5, 1.0, step=0, samples=[7]), guard.check(float("nan"), 1.0, step=1, samples=[3])
        (True, False)
    """

    def __init__(self, max_skips: int = 3) -> None:
        if max_skips < 0:
            raise ConfigError(f"max_skips = {max_skips}: must be >= 0; 0 stops at the first update that is not finite")
        self.max_skips = max_skips
        self.skips_in_a_row = 0
        self.skips = 0

    def check(self, loss: float, grad_norm: float, *, step: int, samples: Sequence[int]) -> bool:
        """Whether to make this update.

        Args:
            loss, grad_norm: Of the whole global batch.
            step: Updates done before this one.
            samples: Which training samples this process had in it.

        Raises:
            TrainingError: more than `max_skips` in a row were not finite.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.skips_in_a_row = 0
            return True
        self.skips_in_a_row += 1
        self.skips += 1
        if self.skips_in_a_row > self.max_skips:
            more = f" and {len(samples) - LISTED_SAMPLES} more" if len(samples) > LISTED_SAMPLES else ""
            raise TrainingError(
                f"step {step}: loss {loss} and gradient norm {grad_norm}, not finite {self.skips_in_a_row} times in a row "
                f"(max_skips = {self.max_skips}); samples {', '.join(map(str, samples[:LISTED_SAMPLES]))}{more}; "
                "look at these rows, or lower the learning rate, and resume from the last checkpoint"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"skips_in_a_row": self.skips_in_a_row, "skips": self.skips}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skips_in_a_row, self.skips = state["skips_in_a_row"], state["skips"]


class EarlyStopping:
    """Ends training when the score has not risen for `patience` validations in a row.

    Args:
        patience: How many; None never stops.

    Raises:
        ConfigError: `patience` is below 1.

    Example:
        >>> early_stopping = EarlyStopping(patience=2)
        >>> [early_stopping.stop(score) for score in (20.0, 21.0, 21.0, 20.5)]
        [False, False, False, True]
    """

    def __init__(self, patience: int | None) -> None:
        if patience is not None and patience < 1:
            raise ConfigError(f"patience = {patience}: must be >= 1, or null to train to the end")
        self.patience = patience
        self.best: float | None = None
        self.without_gain = 0

    def stop(self, score: float) -> bool:
        """Hear the score of a validation, higher is better; True ends training.  NaN is no gain."""
        if math.isfinite(score) and (self.best is None or score > self.best):
            self.best, self.without_gain = score, 0
        else:
            self.without_gain += 1
        return self.patience is not None and self.without_gain >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "without_gain": self.without_gain}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.without_gain = state["best"], state["without_gain"]
