"""Whether an update is made: it must be finite, and its loss may be held against those before it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redistill.errors import TrainingError
from redistill.storage import files
from redistill.training.guards.events import Event, Tell, without_nan
from redistill.training.guards.settings import GuardConfig
from redistill.training.guards.spikes import SpikeDetector

LISTED_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Update:
    """What is known of an update before it is made; its numbers are those of the whole global batch.

    Args:
        step: Number of the update, from 1, as in metrics.jsonl.
        metrics: "loss" and each term's mean.
        norms: Of the gradients, before clipping.
        teacher_rows: Rows at which the teacher's logits were not finite.
        samples: Training samples that this process had in it.
        read: Reads this process's micro-batches again, and tells of their logits (see `readings.read_again`).
    """

    step: int
    metrics: Mapping[str, float]
    norms: Mapping[str, float]
    teacher_rows: int
    samples: Sequence[int]
    read: Callable[[], list[dict[str, Any]]]

    @property
    def loss(self) -> float:
        return self.metrics["loss"]

    @property
    def is_finite(self) -> bool:
        """Whether nothing that is not finite could get into the weights, from this update or from a text that it marked."""
        return self.teacher_rows == 0 and all(map(math.isfinite, (self.loss, *self.norms.values())))


class UpdateGuard:
    """Keeps what is not finite out of the weights, tells of losses that leap, and ends the run after too many skips in a row.

    Args:
        config: How many skips, and what a spike means.
        folder: The run folder; what ended a run is written there, as guard-step-N.json.
        tell: Told each event, on every process.
        gather: Every process hands in a list and gets all of them, joined.
        is_main: Whether this process writes.
        record: A training sample -> the row of data that it is, such as "train.jsonl:318".
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        folder: Path,
        tell: Tell = lambda event: None,
        gather: Callable[[list[Any]], list[Any]] = lambda values: values,
        is_main: bool = True,
        record: Callable[[int], str] = str,
    ) -> None:
        self._config, self._folder, self._tell, self._gather = config, folder, tell, gather
        self._is_main, self._record = is_main, record
        self._spikes = SpikeDetector(config.spike_factor)
        self._skips_in_a_row = 0
        self._skips = 0

    def allows(self, update: Update) -> bool:
        """Whether to make this update.

        Raises:
            TrainingError: it is one skip too many in a row.
        """
        leap = self._spikes.check(update.loss) if update.is_finite else None
        if update.is_finite and leap is None:
            self._skips_in_a_row = 0
            return True
        samples = sorted(set(self._gather(list(update.samples))))
        what = _fault(update) if leap is None else f"loss {update.loss:.4g} is {leap:.3g} times the median of those before it"
        skipped = leap is None or self._config.on_spike == "skip"
        text = f"step {update.step}: {what}; samples {_listed(samples)}" + ("; not made" if skipped else "")
        self._tell(Event(update.step, "not_finite" if leap is None else "loss_spike", text, _facts(update, leap, samples)))
        if not skipped:
            self._skips_in_a_row = 0
            return True
        self._skips_in_a_row += 1
        self._skips += 1
        if self._skips_in_a_row > self._config.max_skips:
            self._stop(update, what, leap, samples)
        return False

    def _stop(self, update: Update, what: str, leap: float | None, samples: Sequence[int]) -> None:
        """Write what is known of the last update, and end the run."""
        path = self._folder / f"guard-step-{update.step}.json"
        readings = self._gather(update.read())
        if self._is_main:
            described = _facts(update, leap, samples) | {
                "what": what,
                "records": {str(sample): self._record(sample) for sample in samples},
                "micro_batches": readings,
            }
            files.write_json(path, without_nan(described))
        raise TrainingError(
            f"step {update.step}: {what}; {self._skips_in_a_row} updates in a row were not made (guards.max_skips = "
            f"{self._config.max_skips}); samples {_listed(samples)}; look at these rows and at {path}, or lower the learning "
            "rate, and resume from the last checkpoint"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skips_in_a_row": self._skips_in_a_row, "skips": self._skips, "spikes": self._spikes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._skips_in_a_row, self._skips = state["skips_in_a_row"], state["skips"]
        self._spikes.load_state_dict(state["spikes"])


def _fault(update: Update) -> str:
    """What is not finite, the teacher first, since no learning rate mends it."""
    numbers = f"loss {update.loss} and gradient norm {' and '.join(map(str, update.norms.values()))}"
    if update.teacher_rows:
        return f"the teacher's logits are not finite in {update.teacher_rows} rows ({numbers})"
    return f"{numbers}, not finite"


def _facts(update: Update, leap: float | None, samples: Sequence[int]) -> dict[str, Any]:
    facts: dict[str, Any] = {**update.metrics, **update.norms}
    if leap is not None:
        facts["times_median"] = leap
    return facts | {"teacher_rows_not_finite": update.teacher_rows, "samples": list(samples)}


def _listed(samples: Sequence[int]) -> str:
    more = f" and {len(samples) - LISTED_SAMPLES} more" if len(samples) > LISTED_SAMPLES else ""
    return ", ".join(map(str, samples[:LISTED_SAMPLES])) + more
