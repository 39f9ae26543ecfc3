"""The objects that the training loop uses (`Parts`), and the state of training.

`redistill.runs.build` builds these objects.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from redistill.contracts import Divergence as DivergenceCall
from redistill.contracts import Engine, SequencePolicy, Teacher
from redistill.losses.dac_kl import DacKLConfig
from redistill.models.student import StudentModule
from redistill.processes.frozen import Frozen
from redistill.processes.memory import Halving
from redistill.processes.placement import Placement
from redistill.records import Metric
from redistill.training.curriculum import Curriculum
from redistill.training.guards import CollapseMonitor, EarlyStopping, ReportEvent, UpdateGuard
from redistill.training.metrics import Meter, MetricsLog
from redistill.training.objective import Objective
from redistill.training.progress import Progress
from redistill.training.schedule import Schedule


@dataclass(kw_only=True)
class TrainingState:
    """Progress and cost of training, as saved in checkpoints.

    Args:
        step: Number of updates done.
        best_score: Value of the metric `training.choose_by` at the best validation so far.  If lower values of the metric
            are better, `best_score` is the value multiplied by -1.
        best_cross_entropy: Cross entropy of the best validation, in nats per token; None if it was not finite.
        best_step: Number of updates done at the best validation.
        stopped: Whether early stopping has ended training.
        validation_due: Whether a validation must follow the last update and has not been done yet.
        trained_tokens: Number of trained targets of all processes; a target that two terms use counts twice.
        generated_tokens: Number of tokens that student and teacher generated for training on all processes; text generated in
            validation is not counted.
        teacher_requests: Number of requests to a served teacher, of all processes, for the updates done.
        teacher_tokens: Number of tokens that these requests sent and generated.
        seconds: Duration of training, including validation.
        peak_bytes: Largest peak memory of any process, in bytes.
    """

    step: int = 0
    best_score: float | None = None
    best_cross_entropy: float | None = None
    best_step: int | None = None
    stopped: bool = False
    validation_due: bool = False
    trained_tokens: int = 0
    generated_tokens: int = 0
    teacher_requests: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The student, and the objects that train it.

    Args:
        student: The student, whose parameters `placement` has distributed over the processes.
        placement: How the student's parameters are distributed over the processes.
        optimizer: The optimizer of these parameters.
        objective: The terms of the loss, with their weights.
        teacher: The teacher; None if neither objective nor policy uses one.
        frozen: How the parameters of the teacher are distributed over the processes.
        curriculum: Provides the training progress, which is passed to the divergence.
        max_tokens: Number of tokens of a micro-batch whose activations fit into the memory of the accelerator; None on a CPU.
    """

    student: StudentModule
    placement: Placement
    optimizer: torch.optim.Optimizer
    objective: Objective
    teacher: Teacher | None
    curriculum: Curriculum
    max_tokens: int | None = None
    frozen: Frozen = field(default_factory=Frozen)

    @property
    def divergence(self) -> DivergenceCall | nn.Module | None:
        """The callable that computes the divergence; None if the objective has none.

        For DAC-KL the callable is a trained module: it contains the network that predicts which classes are kept.  The module
        is registered as a submodule of `student`, so that it is trained with the student.
        """
        divergence = self.objective.divergence
        return self.student.clip_network if isinstance(divergence, DacKLConfig) else divergence

    @property
    def clip_parameters(self) -> list[nn.Parameter]:
        """Parameters of `student.clip_network`; empty if there is no such network.

        DAC-KL trains this network, which predicts the classes to keep.
        """
        network = self.student.clip_network
        return [] if network is None else list(network.parameters())


@dataclass(frozen=True, kw_only=True)
class Guards:
    """The guards of training, and the batch sizes that are halved if memory runs out.

    Args:
        update: The guard that skips updates that are not finite.
        collapse: The guard that detects a collapse of the generated text.
        early_stopping: The guard that ends training when validation scores no longer improve.
        micro_batch: The micro-batch size: `training.micro_batch_size`, halved when memory runs out.
        text_batch: The batch size of generation: `training.generation_batch_size`, halved when memory runs out.
        report_event: Function that is called with each event, on every process.
    """

    update: UpdateGuard
    collapse: CollapseMonitor
    early_stopping: EarlyStopping
    micro_batch: Halving
    text_batch: Halving
    report_event: ReportEvent

    @property
    def sizes(self) -> tuple[Halving, Halving]:
        """`micro_batch` and `text_batch`, in the order in which checkpoints store them."""
        return self.micro_batch, self.text_batch


@dataclass(frozen=True, kw_only=True)
class Output:
    """The outputs of training.

    Args:
        log: metrics.jsonl.
        policy_logs: Logs that the policy writes while it returns the sequences of an update: revisions.jsonl, and the
            divergences of corrections by token.
        progress: Progress and messages on the terminal.
        meter: The counter of the tokens that this process generates for training.
        checkpoints: The folder of the checkpoints.
    """

    log: MetricsLog
    policy_logs: tuple[MetricsLog, ...]
    progress: Progress
    meter: Meter
    checkpoints: Path

    @property
    def logs(self) -> tuple[MetricsLog, ...]:
        """The log files: `log` and `policy_logs`.

        A run that resumes from a checkpoint removes the lines of later updates from these files.
        """
        return self.log, *self.policy_logs


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects that the training loop uses.

    Args:
        policy: The object that returns the sequences of each update.
        engine: The object that generates the student's text; it receives the student's weights before each update.
        validate: Function that returns the scores of the current student by name.  It returns each of `metrics`,
            "cross_entropy" and possibly other scores.
        metrics: Metrics that `validate` computes from the student's responses.
        schedule: Number of updates of the run, between two validations, and between two checkpoints.
        end_ids: Ids of the end tokens.
    """

    accelerator: Accelerator
    learner: Learner
    policy: SequencePolicy
    engine: Engine
    validate: Callable[[], dict[str, float]]
    metrics: Sequence[Metric]
    guards: Guards
    output: Output
    schedule: Schedule
    pad_id: int
    end_ids: Collection[int]
    seed: int
