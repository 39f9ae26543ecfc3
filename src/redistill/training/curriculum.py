"""Computes the training progress: a number in [0, 1] for each update.

The progress is passed to divergences that depend on it (`contracts.RowContext`).
"""

import math
from collections.abc import Mapping
from typing import cast

from redistill.losses.divergences import Pace, Taid
from redistill.records import Json


class Curriculum:
    """Computes the training progress of each update.

    The progress is 0 at the first update and 1 at the last one, and increases by the same amount at each update.  For the
    divergence `Taid` with `adaptation` above 0, the progress may exceed this linear schedule, depending on earlier losses.

    Args:
        divergence: The divergence of the objective; None if the objective has none.
        updates: Number of updates of the run, >= 1.

    Example:
        >>> curriculum = Curriculum(Taid(adaptation=0.0), updates=5)
        >>> [curriculum.progress(step) for step in range(5)]
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    def __init__(self, divergence: object, updates: int) -> None:
        self._taid = divergence if isinstance(divergence, Taid) else None
        self._last, self._pace = max(1, updates - 1), Pace()

    @property
    def _adapts(self) -> bool:
        return self._taid is not None and self._taid.adaptation > 0

    def progress(self, step: int) -> float:
        """Return the progress of an update in [0, 1].

        Args:
            step: Number of updates done before this update.
        """
        return min(1.0, max(step / self._last, self._pace.progress))

    def observe(self, step: int, loss: float | None) -> None:
        """Adapt the progress of later updates to the divergence of an update.

        Args:
            step: Number of updates done before the update.
            loss: Mean divergence of the update, in nats.  If it is None or not finite, the progress does not change.
        """
        if self._taid is not None and self._adapts and loss is not None and math.isfinite(loss):
            self._pace = self._taid.paced(self._pace._replace(progress=self.progress(step)), loss)

    def metrics(self, step: int) -> Mapping[str, float]:
        """Return the metrics of an update.

        "interpolation" is the weight t of the teacher in the target of `Taid`; other divergences have no metric.
        """
        return {} if self._taid is None else {"interpolation": self._taid.interpolation(self.progress(step))}

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state that checkpoints contain.

        The state is empty if the progress depends only on the step.
        """
        return self._pace._asdict() if self._adapts else {}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        progress, momentum, loss = (cast("float | None", state.get(name)) for name in Pace._fields)
        self._pace = Pace(progress or 0.0, momentum or 0.0, loss)
