"""The training progress that a divergence is called with (`contracts.RowContext`)."""

import math
from collections.abc import Mapping
from typing import cast

from redistill.losses.divergences import Pace, Taid
from redistill.records import Json


class Curriculum:
    """The training progress of each update.

    The progress is 0 at the first update, 1 at the last one, and increases by equal steps.  For the divergence `Taid` with an
    adaptation, it may be ahead of this schedule, depending on the losses of earlier updates.

    Args:
        divergence: The divergence of the objective; None if it has none.
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
            step: Number of updates done before it.
        """
        return min(1.0, max(step / self._last, self._pace.progress))

    def observe(self, step: int, loss: float | None) -> None:
        """Adapt the progress of later updates to the divergence of an update.

        Args:
            step: Number of updates done before the update.
            loss: Mean divergence of the update; None, or not finite, if the update must not change the progress.
        """
        if self._taid is not None and self._adapts and loss is not None and math.isfinite(loss):
            self._pace = self._taid.paced(self._pace._replace(progress=self.progress(step)), loss)

    def metrics(self, step: int) -> Mapping[str, float]:
        """Return the metrics of an update.

        "teacher_share" is the share t of the teacher in the target of `Taid`; other divergences have no metric.
        """
        return {} if self._taid is None else {"teacher_share": self._taid.share(self.progress(step))}

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state that checkpoints contain.

        It is empty if the progress depends on the step alone.
        """
        return self._pace._asdict() if self._adapts else {}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        progress, momentum, loss = (cast("float | None", state.get(name)) for name in Pace._fields)
        self._pace = Pace(progress or 0.0, momentum or 0.0, loss)
