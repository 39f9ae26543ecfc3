"""Sections of a recipe that no other package declares: teacher, student, data, and the fine-tuning before a run."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from redistill.config.scoring import named_tasks
from redistill.contracts import TeacherCapabilities
from redistill.data.tasks import Task
from redistill.data.tokenize import TokenizeConfig
from redistill.errors import ConfigError
from redistill.models.initialise import InitialiseConfig
from redistill.models.load import ModelConfig
from redistill.models.lora import LoraConfig
from redistill.teachers.local import LOCAL as LOCAL_TEACHER
from redistill.training.schedule import check_length


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Supervised fine-tuning of a model before the run, on the run's own data.

    Its settings stand here and not in the run's, so that runs which differ in theirs have the same teacher and start.  The
    fine-tuned model gets a run folder of its own, and is not tuned again where that is finished.

    Args:
        updates: Optimiser steps in all; a number, or "3 epochs".
        learning_rate: At the start of its cosine.
        batch_size: Sequences of one update over all processes.
        micro_batch_size: As `training.micro_batch_size`.
        evaluate_every: Updates (or epochs) between validations; 0 validates at the end alone.
        seed: Of its order and dropout; None takes 10 for a teacher, so that all training seeds have the same one, and the
            run's for a student.
        choose_by: What makes a checkpoint the best, as `training.choose_by`; None takes rouge_l for a teacher and
            cross_entropy for a student.
        lora: Adapters that are tuned in place of all weights, and merged at the end; None tunes all weights.
        out: Its run folder; None takes `<out>-teacher` or `<out>-start`.

    Raises:
        ConfigError: updates below 1, or a rate that is not above 0.
    """

    updates: int | str = 500
    learning_rate: float = 5e-5
    batch_size: int = 8
    micro_batch_size: int | None = None
    evaluate_every: int | str = "1 epoch"
    seed: int | None = None
    choose_by: str | None = None
    lora: LoraConfig | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        check_length("updates", self.updates, 1)
        check_length("evaluate_every", self.evaluate_every, 0)
        for name in ("batch_size", "micro_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 1")
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"learning_rate = {self.learning_rate}: must be > 0 and finite")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """The model to learn from, in this process: a hub name, a folder or a GGUF file, fine-tuned first if `finetune` is given.

    Args:
        finetune: How it is fine-tuned before it teaches; None takes it as it is.
    """

    kind: ClassVar[str] = "local"
    capabilities: ClassVar[TeacherCapabilities] = LOCAL_TEACHER

    finetune: FinetuneConfig | None = None


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ModelConfig):
    """The model that learns: `model: teacher` with `initialise` takes layers of the teacher, any other name loads that model.

    Args:
        model: "teacher", or a hub name, a folder or a GGUF file as for the teacher.
        initialise: Which layers to keep, of the teacher or of the model named; None keeps all.
        finetune: How the student is fine-tuned before it is distilled (the literature's "init" checkpoint); None never is.
        start: "base" distils the student as it is, "finetuned" after `finetune`; "method" asks the method, which is base for
            sft, kd and seqkd, and leaves `finetune` out where that is so.
        lora: Adapters that learn in place of the student's own weights; None trains all weights.

    Raises:
        ConfigError: `model: teacher` without layers chosen, or `start: finetuned` without `finetune`.
    """

    model: str = "teacher"
    initialise: InitialiseConfig | None = None
    finetune: FinetuneConfig | None = None
    start: Literal["method", "base", "finetuned"] = "method"
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "teacher" and self.initialise is None:
            raise ConfigError("initialise: missing; choose layers of the teacher (layers: 8), or name a model of its own")
        is_changed = self.initialise is not None or self.adapter is not None or self.model.endswith(".gguf")
        if self.lora is not None and is_changed and (self.lora.quantise != "none" or self.lora.export == "adapter"):
            setting = "quantise" if self.lora.quantise != "none" else "export"
            raise ConfigError(
                f"lora.{setting} = {getattr(self.lora, setting)!r}: needs a student that is loaded as it is, by a name "
                f"that others can load; drop initialise, adapter or the .gguf file, or leave {setting} out"
            )
        if self.start == "finetuned" and self.finetune is None:
            raise ConfigError("start = 'finetuned': needs `finetune`, which says how; {updates: 3 epochs, learning_rate: 5e-4}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read.

    Args:
        train: Files or hub names; all their rows together are the training set.
        validation: A file or hub name; None holds out `validation_rows` rows of the training set.
        validation_rows: How many rows validation looks at.
        tests: Task -> file, or null for the task's place on the hub; `redistill methods` lists the tasks. A name of your own
            stands for a file, and `module:NAME` for a task of your own with metrics of its own.
        max_train_rows: Only the first rows, where a study wants fewer; None takes all.
        corpus: Plain text for the pre-training term: .txt, .jsonl with a "text" key, or hub names; empty leaves the term out.
        max_bad_rows: How many unusable rows a file may hold; they are listed in rejected.jsonl.  0 refuses the first.
        spans: Who finds phrases for the span loss: "auto", "simple", or a spaCy pipeline's name or folder.
        tokens: Lengths, template, which turns are supervised.

    Raises:
        ConfigError: no training data, a test set's name that cannot name a file, or a number out of range.
    """

    train: tuple[str, ...] = ("databricks/databricks-dolly-15k",)
    validation: str | None = None
    validation_rows: int = 100
    tests: dict[str, str | None] = field(default_factory=dict)
    max_train_rows: int | None = None
    corpus: tuple[str, ...] = ()
    max_bad_rows: int = 100
    spans: str = "auto"
    tokens: TokenizeConfig = field(default_factory=TokenizeConfig)

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("train: empty; name at least one file or hub data set")
        if self.validation_rows < 1:
            raise ConfigError(f"validation_rows = {self.validation_rows}: must be >= 1; validation chooses the best checkpoint")
        if self.max_train_rows is not None and self.max_train_rows < 1:
            raise ConfigError(f"max_train_rows = {self.max_train_rows}: must be >= 1, or null to take all")
        if self.max_bad_rows < 0:
            raise ConfigError(f"max_bad_rows = {self.max_bad_rows}: must be >= 0")
        _ = self.tasks  # names are checked

    @property
    def tasks(self) -> dict[Task, str | None]:
        """The test sets that `tests` names, each with its file; None stands for its place on the hub."""
        return named_tasks(self.tests)
