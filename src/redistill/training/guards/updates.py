"""Decides whether an update is applied.

A non-finite update is skipped.  An update with a loss spike is reported, and is skipped only if `on_spike` is "skip".
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from redistill.contracts import ONE_PROCESS
from redistill.errors import TrainingError
from redistill.interfaces import Gather
from redistill.records import Json
from redistill.storage import files
from redistill.training.guards.events import Event, ReportEvent, without_nan
from redistill.training.guards.settings import GuardConfig
from redistill.training.guards.spikes import SpikeDetector

LISTED_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Update:
    """An update that has not been applied yet.

    `metrics`, `norms` and `teacher_rows` are those of the global batch: all micro-batches of all processes.

    Args:
        step: Number of the update, from 1, as in metrics.jsonl.
        metrics: "loss", and the mean of each term of the loss, by name.
        norms: Gradient norms before clipping.
        teacher_rows: Number of target tokens for which the teacher's logits were not finite.
        samples: Indices of the training examples in this process's micro-batches.
        read: Function without arguments that returns statistics of the logits, as `readings.read_again` does: one mapping per
            micro-batch of this process.
    """

    step: int
    metrics: Mapping[str, float]
    norms: Mapping[str, float]
    teacher_rows: int
    samples: Sequence[int]
    read: Callable[[], list[Mapping[str, object]]]

    @property
    def is_finite(self) -> bool:
        """Whether the loss, the gradient norms and the teacher's logits are all finite."""
        return self.teacher_rows == 0 and all(map(math.isfinite, (self.metrics["loss"], *self.norms.values())))


class UpdateGuard:
    """Skips non-finite updates, and ends the run after too many consecutive skips.

    The guard also reports updates with a loss spike, and skips them if `on_spike` is "skip".

    Args:
        config: Maximum number of consecutive skips, and the handling of spikes.
        folder: The run folder.  Details of the update that ended the run are written to guard-step-N.json in this folder.
        report_event: Function that is called with each event, on every process.
        gather: Collective operation: each process passes a list, and the result on every process is the concatenation of the
            lists of all processes.
        is_main: Whether this process writes files.
        record: Function that maps the index of a training example to the id of its data record, such as "train.jsonl:318".
    """

    def __init__(
        self,
        config: GuardConfig,
        *,
        folder: Path,
        report_event: ReportEvent = lambda event: None,
        gather: Gather = ONE_PROCESS.gather,
        is_main: bool = True,
        record: Callable[[int], str] = str,
    ) -> None:
        self._config, self._folder, self._report_event, self._gather = config, folder, report_event, gather
        self._is_main, self._record = is_main, record
        self._spikes = SpikeDetector(config.spike_factor)
        self._skips_in_a_row = 0
        self._skips = 0

    def allows(self, update: Update) -> bool:
        """Return whether to apply an update; report a non-finite update or a loss spike.

        Raises:
            TrainingError: more than `max_skips` updates in a row were skipped.
        """
        loss = update.metrics["loss"]
        ratio = self._spikes.check(loss) if update.is_finite else None
        if update.is_finite and ratio is None:
            self._skips_in_a_row = 0
            return True
        samples = sorted(set(self._gather(list(update.samples))))
        what = _fault(update) if ratio is None else f"loss {loss:.4g} is {ratio:.3g} times the median of recent losses"
        skipped = ratio is None or self._config.on_spike == "skip"
        text = f"step {update.step}: {what}; samples {_listed(samples)}" + ("; update skipped" if skipped else "")
        spike = {} if ratio is None else {"times_median": ratio}
        about = {"teacher_rows_not_finite": update.teacher_rows, "samples": samples}
        facts = {**update.metrics, **update.norms, **spike, **about}
        self._report_event(Event(update.step, "not_finite" if ratio is None else "loss_spike", text, facts))
        if not skipped:
            self._skips_in_a_row = 0
            return True
        self._skips_in_a_row += 1
        self._skips += 1
        if self._skips_in_a_row > self._config.max_skips:
            self._stop(update, what, facts, samples)
        return False

    def _stop(self, update: Update, what: str, facts: Mapping[str, object], samples: Sequence[int]) -> None:
        """Write the details of an update to guard-step-N.json, and raise TrainingError."""
        path = self._folder / f"guard-step-{update.step}.json"
        readings = self._gather(update.read())
        if self._is_main:
            records = {str(sample): self._record(sample) for sample in samples}
            files.write_json(path, without_nan({**facts, "what": what, "records": records, "micro_batches": readings}))
        raise TrainingError(
            f"step {update.step}: {what}; {self._skips_in_a_row} updates in a row were skipped (guards.max_skips = "
            f"{self._config.max_skips}); samples {_listed(samples)}; check these samples and {path}, or lower the learning "
            "rate, and resume from the last checkpoint"
        )

    def state_dict(self) -> Mapping[str, Json]:
        """Return the state to be saved in checkpoints."""
        return {"skips_in_a_row": self._skips_in_a_row, "skips": self._skips, "spikes": self._spikes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Json]) -> None:
        """Restore a state that `state_dict` returned."""
        self._skips_in_a_row, self._skips = cast(int, state["skips_in_a_row"]), cast(int, state["skips"])
        self._spikes.load_state_dict(cast(Mapping[str, Json], state["spikes"]))


def _fault(update: Update) -> str:
    """Return a phrase about the numbers of an update that are not finite.

    If the teacher's logits are not finite, the phrase names them as the fault, and has the other numbers in parentheses.
    """
    numbers = f"loss {update.metrics['loss']} and gradient norm {' and '.join(map(str, update.norms.values()))}"
    if update.teacher_rows:
        return f"the teacher's logits are not finite in {update.teacher_rows} rows ({numbers})"
    return f"{numbers}, not finite"


def _listed(samples: Sequence[int]) -> str:
    more = f" and {len(samples) - LISTED_SAMPLES} more" if len(samples) > LISTED_SAMPLES else ""
    return ", ".join(map(str, samples[:LISTED_SAMPLES])) + more
