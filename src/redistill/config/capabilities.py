"""Whether a method, a teacher and an engine fit one another, by what they declare; no model is loaded for it."""

from collections.abc import Iterator, Mapping

from redistill.config.decode import kind_of
from redistill.config.methods import Method
from redistill.contracts import EngineCapabilities, Needs, TeacherCapabilities
from redistill.generation.local import LOCAL as LOCAL_ENGINE
from redistill.teachers.local import LOCAL as LOCAL_TEACHER

TEACHERS: Mapping[str, TeacherCapabilities | None] = {
    "full vocabulary": LOCAL_TEACHER,
    "top-k with rest": TeacherCapabilities(full_vocabulary=False, generates=True, top_k=64),
    "none": None,
}
"""Kinds of teachers, for `redistill methods --matrix`."""
ENGINES: Mapping[str, EngineCapabilities] = {
    "local": LOCAL_ENGINE,
    "no mixtures, no n-gram bans": EngineCapabilities(deterministic=True),
    "fixed text": EngineCapabilities(deterministic=True, samples_student=False),
}
"""Kinds of engines, for `redistill methods --matrix`."""


def mismatch(row: Method, teacher: TeacherCapabilities | None, engine: EngineCapabilities) -> str | None:
    """Why a method cannot run with this teacher and engine, with a remedy; None where it can."""
    needs = row.policy.needs | row.objective.needs
    if needs.teacher and teacher is None:
        return "teacher: missing; name one, or choose the method sft, which has none"
    found = [*_teacher_faults(row, needs, teacher), *_engine_faults(row, needs, teacher, engine)]
    return found[0] if found else None


def _teacher_faults(row: Method, needs: Needs, teacher: TeacherCapabilities | None) -> Iterator[str]:
    if teacher is None:
        return
    gives = (
        f"and the teacher gives its {teacher.top_k} most probable classes"
        if teacher.top_k
        else "which the teacher does not give"
    )
    if needs.full_vocabulary and not teacher.full_vocabulary:
        part = "objective.span_weight" if row.objective.uses_spans else "objective.divergence dac_kl"
        yield (
            f"{part}: needs the teacher's logits of the whole vocabulary, {gives}; use a local teacher, or a method without "
            "DAC-KL and span loss, such as gkd"
        )
    if needs.statistics and not teacher.statistics:
        yield (
            f"policy {_kind(row.policy)}: needs teacher statistics of generated text, {gives}; use a local teacher, or a "
            "policy such as student_generated"
        )
    if needs.teacher_text and not teacher.generates:
        yield (
            f"policy {_kind(row.policy)}: needs text that the teacher generates, and this one does not generate; use a local "
            "teacher, or the policy fixed"
        )


def _engine_faults(row: Method, needs: Needs, teacher: TeacherCapabilities | None, engine: EngineCapabilities) -> Iterator[str]:
    policy = _kind(row.policy)
    if needs.mixture and not engine.mixture:
        yield (
            f"policy {policy}: samples tokens from a mixture of student and teacher, and the engine cannot; use the engine "
            "local, or the source student_generated"
        )
    if needs.mixture and teacher is not None and not teacher.mixture:
        yield (
            f"policy {policy}: samples tokens from a mixture of student and teacher, and the teacher cannot be mixed; use a "
            "local teacher, or the source student_generated"
        )
    if needs.samples_student and not engine.samples_student:
        yield (
            f"policy {policy}: weights text by the student's probability of it, and the engine's text is not sampled from the "
            "student; use the engine local"
        )
    sampling = row.policy.sampling
    if sampling is not None and sampling.no_repeat_ngram and not engine.no_repeat_ngram:
        yield f"policy {policy}: bans repeated n-grams, and the engine cannot; use the engine local, or set the ban to 0"


def _kind(part: object) -> str:
    return kind_of(type(part))
