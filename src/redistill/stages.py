"""What has to be trained before a run: its teacher, its student's start - each a run of its own, as supervised fine-tuning.

Nothing is trained here; the stages are described, and what the run then reads is named.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from redistill.config import FinetuneConfig, Run, StudentConfig, TeacherConfig
from redistill.models.load import ModelConfig
from redistill.optimiser import OptimiserConfig


def stages(config: Run) -> dict[str, Run]:
    """The runs that must be finished before `config`, by name ("teacher", "start"), in the order of training."""
    found: dict[str, Run] = {}
    if config.teacher is not None and config.teacher.finetune is not None:
        found["teacher"] = _teacher_stage(config, config.teacher, config.teacher.finetune)
    if config.starts_finetuned:
        assert config.student.finetune is not None
        found["start"] = _start_stage(config, config.student.finetune)
    return found


def teacher_source(config: Run) -> ModelConfig | None:
    """Where the teacher's weights are: what the config names, or the copy that was fine-tuned first."""
    teacher = config.teacher
    if teacher is None:
        return None
    plain = ModelConfig(**{f.name: getattr(teacher, f.name) for f in dataclasses.fields(ModelConfig)})
    if teacher.finetune is None:
        return plain
    folder = _stage_folder(config, teacher.finetune, "teacher")
    return dataclasses.replace(plain, model=str(folder / "model"), revision=None, adapter=None)


def student_source(config: Run) -> StudentConfig:
    """Where the student's weights are: what the config names, or the copy that was fine-tuned first."""
    if not config.starts_finetuned:
        return config.student
    assert config.student.finetune is not None
    folder = _stage_folder(config, config.student.finetune, "start")
    return dataclasses.replace(
        config.student, model=str(folder / "model"), revision=None, adapter=None, initialise=None, finetune=None, start="base"
    )


def _teacher_stage(config: Run, teacher: TeacherConfig, finetune: FinetuneConfig) -> Run:
    student = StudentConfig(
        model=teacher.model,
        revision=teacher.revision,
        adapter=teacher.adapter,
        gradient_checkpointing=teacher.gradient_checkpointing,
        lora=finetune.lora,
        start="base",
    )
    return _tuning(config, finetune, "teacher", student, None, choose_by=finetune.choose_by or "rouge_l")


def _start_stage(config: Run, finetune: FinetuneConfig) -> Run:
    source = teacher_source(config)
    teacher = None
    if config.student.model == "teacher":
        assert source is not None
        teacher = TeacherConfig(**{f.name: getattr(source, f.name) for f in dataclasses.fields(ModelConfig)})
    student = dataclasses.replace(config.student, finetune=None, start="base", lora=finetune.lora or config.student.lora)
    return _tuning(config, finetune, "start", student, teacher, choose_by=finetune.choose_by or "cross_entropy")


def _tuning(
    config: Run,
    finetune: FinetuneConfig,
    name: str,
    student: StudentConfig,
    teacher: TeacherConfig | None,
    *,
    choose_by: Literal["rouge_l", "cross_entropy"],
) -> Run:
    """Supervised fine-tuning with the run's data and batches; its optimiser is plain, so that methods can share it."""
    rate = finetune.learning_rate
    training = dataclasses.replace(config.training, updates=finetune.updates, choose_by=choose_by, patience=None)
    return Run(
        name=f"{config.name}-{name}",
        method="sft",
        seed=config.seed,
        out=str(_stage_folder(config, finetune, name)),
        teacher=teacher,
        student=student,
        data=dataclasses.replace(config.data, corpus=()),  # with the tests: what they ask is not trained on here either
        optimiser=OptimiserConfig(learning_rate=rate, final_learning_rate=min(rate, OptimiserConfig.final_learning_rate)),
        training=training,
        evaluation=dataclasses.replace(config.evaluation, compare=()),
    )


def _stage_folder(config: Run, finetune: FinetuneConfig, name: str) -> Path:
    return Path(finetune.out) if finetune.out else config.folder.with_name(f"{config.folder.name}-{name}")
