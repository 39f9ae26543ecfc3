"""Shortens a recipe, for `redistill doctor` and `redistill run --smoke`."""

from dataclasses import replace

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.policies import (
    Adaptive,
    Buffered,
    Mixed,
    Paired,
    PolicyConfig,
    PrefixWeighted,
    Revised,
    Rollouts,
    TeacherGenerated,
)
from redistill.runs.folder import has_model
from redistill.runs.stages import stages


def without_untrained_stages(run: Run, purpose: str = "is examined") -> tuple[Run, list[str]]:
    """Return a recipe without its unfinished fine-tunings, and a note on each of them.

    A recipe can fine-tune the teacher and the student before distillation. If such a fine-tuning has produced no model yet, its
    settings are removed, and the original model is used. Each note is one line of text; it says that the model `purpose`.
    """
    missing = [name for name, stage in stages(run).items() if not has_model(stage.folder)]
    teacher, student = run.teacher, run.student
    if "teacher" in missing:
        assert isinstance(teacher, TeacherConfig)
        teacher = replace(teacher, finetune=None)
    if "start" in missing:
        student = replace(student, finetune=None, start="base")
    notes = [f"stage {name}: is not trained yet; the model {purpose} without this fine-tuning" for name in missing]
    return replace(run, teacher=teacher, student=student), notes


def with_stage_folders(run: Run) -> Run:
    """Return a recipe whose fine-tunings before distillation have an output folder.

    The default of this folder depends on the output folder of the run.
    """
    folders = {name: str(stage.folder) for name, stage in stages(run).items()}
    teacher, student = run.teacher, run.student
    if "teacher" in folders and isinstance(teacher, TeacherConfig) and teacher.finetune is not None:
        teacher = replace(teacher, finetune=replace(teacher.finetune, out=folders["teacher"]))
    if "start" in folders and student.finetune is not None:
        student = replace(student, finetune=replace(student.finetune, out=folders["start"]))
    return replace(run, teacher=teacher, student=student)


def self_contained(policy: PolicyConfig, size: int) -> PolicyConfig:
    """Return `policy`, changed to generate few sequences and to need no file.

    In the result, the policy `rollouts` generates `size` sequences, and the policy `teacher_generated` stores the teacher's
    answers in the run folder. If a policy contains another policy (`source`), the inner policy is changed in the same way.
    """
    if isinstance(policy, TeacherGenerated):
        return replace(policy, store=None)
    if isinstance(policy, Paired):
        return replace(policy, source=self_contained(policy.source, size), teacher=replace(policy.teacher, store=None))
    if isinstance(policy, Mixed | Buffered | Adaptive | Revised | PrefixWeighted):
        return replace(policy, source=self_contained(policy.source, size))
    return replace(policy, num_rollouts=size) if isinstance(policy, Rollouts) else policy
