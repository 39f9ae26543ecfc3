"""Stages of a run: fine-tuning of its teacher or student before distillation.

A stage is a run with its own folder and the method supervised fine-tuning.  This module only returns the configurations of
the stages, and the settings for loading the fine-tuned models.
"""

import dataclasses
from pathlib import Path

from redistill.config.run import Run
from redistill.config.scoring import CROSS_ENTROPY
from redistill.config.sections import DataConfig, FinetuneConfig, StudentConfig, TeacherConfig
from redistill.evaluation.scores import EvaluationConfig
from redistill.training.optimiser import OptimiserConfig
from redistill.training.schedule import TrainingConfig


def stages(config: Run) -> dict[str, Run]:
    """Return the runs that must fine-tune the teacher or the student before a run.

    The keys are "teacher" for the fine-tuning of the teacher, and "start" for the fine-tuning of the student.  If both exist,
    "teacher" is first and must be trained first.
    """
    found: dict[str, Run] = {}
    if isinstance(config.teacher, TeacherConfig) and config.teacher.finetune is not None:
        found["teacher"] = _teacher_stage(config, config.teacher, config.teacher.finetune)
    if config.starts_finetuned and config.student.finetune is not None:
        found["start"] = _start_stage(config, config.student.finetune)
    return found


def teacher_source(config: Run) -> TeacherConfig | None:
    """Return the settings for loading the local teacher of a run, if there is one.

    If the run fine-tunes the teacher before distillation, `model` in the result is the folder of the fine-tuned teacher.
    """
    teacher = config.teacher if isinstance(config.teacher, TeacherConfig) else None
    if teacher is None or teacher.finetune is None:
        return teacher
    folder = _stage_folder(config, teacher.finetune, "teacher")
    return dataclasses.replace(teacher, model=str(folder / "model"), revision=None, adapter=None, finetune=None)


def student_source(config: Run) -> StudentConfig:
    """Return the settings for loading the student with which distillation starts.

    If the run fine-tunes the student before distillation, `model` in the result is the folder of the fine-tuned student.
    """
    if not config.starts_finetuned or config.student.finetune is None:
        return config.student
    folder = _stage_folder(config, config.student.finetune, "start")
    return dataclasses.replace(
        config.student, model=str(folder / "model"), revision=None, adapter=None, initialise=None, finetune=None, start="base"
    )


def _teacher_stage(config: Run, teacher: TeacherConfig, finetune: FinetuneConfig) -> Run:
    student = StudentConfig(
        model=teacher.model,
        revision=teacher.revision,
        adapter=teacher.adapter,
        dtype="float32" if finetune.lora is None else teacher.dtype,  # frozen weights keep their dtype
        gradient_checkpointing=teacher.gradient_checkpointing,
        lora=finetune.lora,
        start="base",
    )
    return _tuning(config, finetune, "teacher", student, None)


def _start_stage(config: Run, finetune: FinetuneConfig) -> Run:
    teacher = teacher_source(config) if config.student.model == "teacher" else None
    lora = finetune.lora or config.student.lora
    lora = None if lora is None else dataclasses.replace(lora, export="merged")  # the run starts from a whole model
    student = dataclasses.replace(config.student, finetune=None, start="base", lora=lora)
    return _tuning(config, finetune, "start", student, teacher)


def _tuning(config: Run, finetune: FinetuneConfig, name: str, student: StudentConfig, teacher: TeacherConfig | None) -> Run:
    """Return the configuration of a supervised fine-tuning.

    The fine-tuning has the data and the precision of `config`.

    Args:
        config: The run that needs the fine-tuned model.
        finetune: Settings of the fine-tuning.
        name: "teacher" or "start" (the student).
        student: The model to fine-tune.
        teacher: The teacher, if `student` is made of layers of the teacher; None for any other student.
    """
    seed, choose_by = (Run.seed, TrainingConfig.choose_by) if name == "teacher" else (config.seed, CROSS_ENTROPY)
    choose_by = finetune.choose_by or choose_by
    rate, fallback = finetune.learning_rate, OptimiserConfig.final_learning_rate
    can_shard = student.lora is None or student.lora.quantise == "none"
    # Uses the run's metrics only if `choose_by` needs them, so that runs that differ only in their metrics share stages.
    has_usual = choose_by in (*EvaluationConfig.metrics, CROSS_ENTROPY)
    folder = _stage_folder(config, finetune, name)
    return Run(
        name=folder.name,  # not the run's name: other runs may share the stage
        method="sft",
        seed=seed if finetune.seed is None else finetune.seed,
        out=str(folder),
        teacher=teacher,
        student=student,
        placement=config.placement if can_shard else "auto",
        # Includes the test sets, so that rows with their prompts are removed from the training data of the stage as well.
        data=dataclasses.replace(config.data, corpus=(), spans=DataConfig.spans),
        optimiser=OptimiserConfig(learning_rate=rate, final_learning_rate=min(rate, fallback)),
        training=TrainingConfig(
            updates=finetune.updates,
            batch_size=finetune.batch_size,
            micro_batch_size=finetune.micro_batch_size,
            evaluate_every=finetune.evaluate_every,
            choose_by=choose_by,
            precision=config.training.precision,
        ),
        tracking=dataclasses.replace(config.tracking, name=None),
        evaluation=EvaluationConfig(compare=(), metrics=EvaluationConfig.metrics if has_usual else config.evaluation.metrics),
    )


def _stage_folder(config: Run, finetune: FinetuneConfig, name: str) -> Path:
    return Path(finetune.out) if finetune.out else config.folder.with_name(f"{config.folder.name}-{name}")
