"""Compatibility of a method, a teacher and a generation engine.

A method declares what it needs, such as teacher logits of the whole vocabulary (`Needs`). A teacher and an engine declare what
they support (`TeacherCapabilities`, `EngineCapabilities`). Teacher and engine are compatible with the method if they support
everything that it needs. The check loads no model.
"""

from collections.abc import Iterator, Mapping

from redistill.config.decode import kind_of
from redistill.config.methods import METHODS, Method
from redistill.config.sections import StudentConfig
from redistill.contracts import EngineCapabilities, Needs, TeacherCapabilities
from redistill.generation.local import LOCAL as LOCAL_ENGINE
from redistill.generation.local import LocalEngineConfig
from redistill.generation.vllm import VllmEngineConfig
from redistill.losses.divergences import ByOrigin
from redistill.teachers.forms import Full, Sampled
from redistill.teachers.local import LOCAL as LOCAL_TEACHER
from redistill.teachers.served import ServedTeacherConfig
from redistill.training.objective import Objective
from redistill.training.schedule import TrainingConfig

TEACHERS: Mapping[str, TeacherCapabilities | None] = {
    "full vocabulary": LOCAL_TEACHER,
    "cached": Full().capabilities,
    "served, top-k with rest": ServedTeacherConfig(url=("http://127.0.0.1:8000/v1",), model="teacher").capabilities,
    "cached, sampled": Sampled().capabilities,
    "none": None,
}
"""The types of teachers that `redistill methods --matrix` lists, with their capabilities; None stands for no teacher."""
ENGINES: Mapping[str, EngineCapabilities] = {
    "local": LOCAL_ENGINE,
    "vllm": VllmEngineConfig(url=("http://127.0.0.1:8000/v1",), model="student").capabilities,
    "fixed text": EngineCapabilities(deterministic=True, samples_student=False),
}
"""The types of engines that `redistill methods --matrix` lists, with their capabilities."""


def mismatch(row: Method, teacher: TeacherCapabilities | None, engine: EngineCapabilities) -> str | None:
    """Return the reason why a method cannot run with a teacher and an engine.

    Args:
        row: The method, one row of the table of methods.
        teacher: Capabilities of the teacher; None if there is no teacher.
        engine: Capabilities of the engine.

    Returns:
        The reason and a remedy, as one line of text; None if the method can run with this teacher and engine.
    """
    needs = row.policy.needs | row.objective.needs
    if needs.teacher and teacher is None:
        return "teacher: missing; set one, or use the method sft, which needs none"
    return "; also ".join(_mismatches(row, needs, teacher, engine)) or None


def _mismatches(row: Method, needs: Needs, teacher: TeacherCapabilities | None, engine: EngineCapabilities) -> Iterator[str]:
    policy, sampling = f"policy {kind_of(type(row.policy))}", row.policy.sampling
    provided = "which the teacher does not provide"
    if teacher is not None and teacher.top_k:
        provided = f"but the teacher provides only its {teacher.top_k} most probable classes"
    elif teacher is not None and teacher.sampled:
        provided = "but the teacher provides only classes that were sampled from it"
    if needs.full_vocabulary and teacher is not None and not teacher.full_vocabulary:
        part, remedy = _part_with_remedy(row.objective)
        yield f"{part}: needs teacher logits of the whole vocabulary, {provided}; use a local teacher, or {remedy}"
    elif needs.probabilities and teacher is not None and teacher.sampled:
        part, remedy = f"objective.divergence {kind_of(type(row.objective.divergence))}", "use the divergence forward_kl"
        if row.objective.uses_spans:
            part, remedy = "objective.span_weight", "set it to 0"
        yield f"{part}: needs the teacher's probabilities, {provided}; {remedy}, or another cache_form"
    if row.evaluation.get("teacher_forced") and teacher is not None and not teacher.full_vocabulary:
        yield (
            f"evaluation.teacher_forced: needs teacher logits of the whole vocabulary, {provided}; use a local teacher, or set "
            "method to kd with the policy and the divergence of this method"
        )
    if sampling is not None and row.objective.uses_teacher and teacher is not None and not teacher.new_text:
        yield (
            f"{policy}: generates student text during training, for which the teacher has no stored hidden states; use a "
            "teacher that is not cached or has cache_new_text, set student_fraction to 0, or use the policy fixed"
        )
    elif needs.statistics and teacher is not None and not teacher.statistics:
        yield (
            f"{policy}: needs teacher statistics (such as log-probabilities) of generated text, {provided}; use a local "
            "teacher, or a policy such as student_generated"
        )
    yield from _text_mismatches(row, needs, teacher, engine)


def _text_mismatches(
    row: Method, needs: Needs, teacher: TeacherCapabilities | None, engine: EngineCapabilities
) -> Iterator[str]:
    """Yield a message for each unsupported feature of text generation.

    Only features that the method needs are examined.
    """
    policy, sampling = f"policy {kind_of(type(row.policy))}", row.policy.sampling
    if needs.teacher_text and teacher is not None and not teacher.generates:
        yield (
            f"{policy}: needs text that the teacher generates, but the teacher does not generate text; use a "
            "local teacher, or the policy fixed"
        )
    if needs.mixture and not engine.mixture:
        yield (
            f"{policy}: samples tokens from a mixture of student and teacher, which the engine does not support; "
            "use the engine local, or the source student_generated"
        )
    if needs.mixture and teacher is not None and not teacher.mixture:
        yield (
            f"{policy}: samples tokens from a mixture of student and teacher, which the teacher does not support; "
            "use a local teacher, or the source student_generated"
        )
    if needs.replacement and not engine.replacement:
        yield (
            f"{policy}: replaces tokens of the student by tokens of the teacher while the student generates, which the engine "
            "does not support; use the engine local, or the source student_generated"
        )
    if needs.replacement and teacher is not None and not teacher.mixture:
        yield (
            f"{policy}: replaces tokens of the student by tokens of the teacher while the student generates, which the teacher "
            "does not support; use a local teacher, or the source student_generated"
        )
    if needs.samples_student and not engine.samples_student:
        yield (
            f"{policy}: weights text by its probability under the student, but the text of the engine is not sampled "
            "from the student; use the engine local"
        )
    if sampling is not None and sampling.no_repeat_ngram and not engine.no_repeat_ngram:
        yield (
            f"{policy}: bans repeated n-grams, which the engine does not support; use the engine local, or set "
            "no_repeat_ngram to 0"
        )


def sharding_fault(student: StudentConfig, engine: object, training: TrainingConfig) -> str | None:
    """Return why a student cannot be sharded over processes (FSDP2).

    The result is one line with a remedy, or None if the student can be sharded.

    Args:
        student: The student of the recipe.
        engine: The settings of the engine that generates text of the student.
        training: The settings of training.

    Example:
        >>> sharding_fault(StudentConfig(model="gpt2"), None, TrainingConfig(compile="all"))
        "cannot run with training.compile = 'all'; set training.compile to rows or auto"
    """
    if student.lora is not None and (student.lora.quantise != "none" or student.lora.export == "adapter"):
        return "needs lora.quantise = 'none' and lora.export = 'merged'; set both, or set placement to auto"
    if training.compile == "all":
        return "cannot run with training.compile = 'all'; set training.compile to rows or auto"
    if isinstance(engine, LocalEngineConfig) and engine.decoder == "compiled":
        return "cannot run with engine.decoder = 'compiled'; set engine.decoder to static, or remove it"
    if isinstance(engine, VllmEngineConfig):
        return "the engine vllm cannot receive the weights of a sharded student; set placement to auto, or use the engine local"
    return None


def why_gold(row: Method) -> str:
    """Return why a method cannot train on prompts alone, with alternatives.

    Gold answers are the answers in the data. A method whose policy and objective do not need gold answers can train on
    prompts alone.

    Args:
        row: The method.

    Returns:
        One line of text that names the setting that needs gold answers, and the methods that can train on prompts alone. The
        result is "" if the method is one of them.

    Example:
        >>> why_gold(METHODS["kd"])  # doctest: +ELLIPSIS
        'policy fixed needs gold answers; of the methods, seqkd, imitkd, ... train on prompts alone'
        >>> why_gold(METHODS["seqkd"])
        ''
    """
    part = _needing_gold(row)
    if part is None:
        return ""
    *others, last = [name for name, other in METHODS.items() if _needing_gold(other) is None]
    return f"{part} needs gold answers; of the methods, {', '.join(others)} and {last} train on prompts alone"


def _needing_gold(row: Method) -> str | None:
    if row.policy.needs.gold:
        return f"policy {kind_of(type(row.policy))}"
    return "objective.sft_weight with sft_on: gold" if row.objective.needs.gold else None


def _part_with_remedy(objective: Objective) -> tuple[str, str]:
    """Return the setting that needs teacher logits of the whole vocabulary.

    The second result is an alternative that works without these logits.
    """
    kind, remedy = kind_of(type(objective.divergence)), "a method without DAC-KL and span loss, such as gkd"
    if objective.uses_spans and objective.span.needs.full_vocabulary:
        return "objective.span_weight", remedy
    single = objective.divergence.parts.values() if isinstance(objective.divergence, ByOrigin) else (objective.divergence,)
    if any(getattr(part, name, 1.0) != 1.0 for part in single for name in ("temperature", "teacher_temperature")):
        return f"objective.divergence {kind} with a temperature", "the temperature 1"
    return f"objective.divergence {kind}", remedy
