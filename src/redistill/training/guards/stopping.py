"""Early stopping."""

import math
from collections.abc import Mapping
from typing import cast

from redistill.errors import ConfigError
from redistill.records import Json


class EarlyStopping:
    """Ends training after `patience` validations in a row without a better score.

    Args:
        patience: Number of validations, >= 1; if None, training is never ended early.

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
        """Return whether training ends after a validation with this score.

        Args:
            score: Score of the validation; higher is better.  NaN and infinities count as no improvement.
        """
        if math.isfinite(score) and (self.best is None or score > self.best):
            self.best, self.without_gain = score, 0
        else:
            self.without_gain += 1
        return self.patience is not None and self.without_gain >= self.patience

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state to be saved in checkpoints."""
        return {"best": self.best, "without_gain": self.without_gain}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        self.best, self.without_gain = cast(float | None, state["best"]), cast(int, state["without_gain"])
