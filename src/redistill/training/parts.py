"""What the loop is given, all of it built by `redistill.runs.build`, and the state that it keeps."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from redistill.contracts import Divergence as DivergenceCall
from redistill.contracts import Engine, SequencePolicy, Teacher
from redistill.models.student import StudentModule
from redistill.processes.memory import Halving
from redistill.processes.placement import Placement
from redistill.training.guards import CollapseMonitor, EarlyStopping, Tell, UpdateGuard
from redistill.training.metrics import Meter, MetricsLog
from redistill.training.objective import Objective
from redistill.training.progress import Progress
from redistill.training.schedule import Schedule


@dataclass(kw_only=True)
class TrainingState:
    """Where training stands, and what it has cost; goes into checkpoints as it is.

    Args:
        best_score: Of the best validation so far: ROUGE-L, or minus the cross entropy; higher is better.
        best_step: The number of updates behind it.
        trained_tokens: Targets learned from, over all processes; one that carries two terms counts twice.
        generated_tokens: Generated for training by student or teacher, over all processes; validation is not counted.
        validation_due: True when the last update has not been validated yet.
        seconds: Of training, validation included.
        peak_bytes: Most memory that one process has held.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    stopped: bool = False
    validation_due: bool = False
    trained_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What is trained, and what it is trained with.

    Args:
        student: The student, wrapped by the placement.
        placement: How its parameters are distributed over the processes.
        optimizer: Of the wrapped student's parameters.
        objective: The terms.
        teacher: None where neither objective nor policy has one.
    """

    student: StudentModule
    placement: Placement
    optimizer: torch.optim.Optimizer
    objective: Objective
    teacher: Teacher | None

    @property
    def divergence(self) -> DivergenceCall | nn.Module | None:
        """The objective's divergence as something to call; DAC-KL's network is a part of the student module."""
        network = self.student.clip_network
        return self.objective.divergence if network is None else network  # type: ignore[return-value]  # no DacKLConfig here

    @property
    def clip_parameters(self) -> list[nn.Parameter]:
        """What DAC-KL learns; nothing where the objective has another divergence or fixed thresholds."""
        network = self.student.clip_network
        return [] if network is None else list(network.parameters())


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What watches training.

    Args:
        update: Rejects updates that are not finite.
        collapse: Watches the text.
        early_stopping: Ends training when validation no longer improves.
        micro_batch: `training.micro_batch_size`, lowered where memory runs out.
        text_batch: `training.generation_batch_size`, lowered likewise.
        tell: Called with each event, on every process.
    """

    update: UpdateGuard
    collapse: CollapseMonitor
    early_stopping: EarlyStopping
    micro_batch: Halving
    text_batch: Halving
    tell: Tell

    @property
    def sizes(self) -> tuple[Halving, Halving]:
        """Both batch sizes, in the order of checkpoints."""
        return self.micro_batch, self.text_batch


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where training writes.

    Args:
        log: metrics.jsonl.
        progress: The terminal.
        meter: Counts the tokens that this process generates for training.
        checkpoints: Their folder.
    """

    log: MetricsLog
    progress: Progress
    meter: Meter
    checkpoints: Path


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the loop is given.

    Args:
        policy: Which sequences are learned from.
        engine: Generates the student's text; synchronised before each draw.
        validate: Scores of the student as it is, with "cross_entropy" and the metrics of validation among them.
        end_ids: Tokens that end a response.
    """

    accelerator: Accelerator
    learner: Learner
    policy: SequencePolicy
    engine: Engine
    validate: Callable[[], dict[str, float]]
    guards: Guards
    output: Output
    schedule: Schedule
    pad_id: int
    end_ids: Collection[int]
    seed: int
