"""Compatibility of methods, teachers and engines: supported combinations, and one line with a remedy for the others."""

from dataclasses import replace
from typing import get_args

import pytest

from redistill.config.capabilities import ENGINES, TEACHERS, mismatch
from redistill.config.methods import METHODS, Method
from redistill.contracts import EngineCapabilities, TeacherCapabilities
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import Divergence, ForwardKL, Taid
from redistill.losses.span import SpanConfig
from redistill.policies import Fixed, Mixed, Revised, Rollouts, StudentGenerated, TeacherGenerated, TeacherMixed
from redistill.training.objective import Objective

FULL, CACHED, TOP_K, SAMPLED, NONE = "full vocabulary", "cached", "served, top-k with rest", "cached, sampled", "none"
LOCAL, PLAIN, FIXED_TEXT = "local", "vllm", "fixed text"

MISSING = "teacher: missing; set one"
WHOLE = "objective.span_weight: needs teacher logits of the whole vocabulary"
TAID = "objective.divergence taid: needs teacher logits of the whole vocabulary"
REPLACES = "policy interleaved: replaces tokens of the student by tokens of the teacher while the student generates, which the"
STATISTICS = "policy rollouts: needs teacher statistics (such as log-probabilities) of generated text"
MIXTURE = "policy rollouts: samples tokens from a mixture of student and teacher, which the engine"

# For each method, teacher and engine: a part of the error, or None if supported.
FITS = dict.fromkeys((LOCAL, PLAIN, FIXED_TEXT))
NO_STATES, PROBABILITIES = (
    "generates student text during training, for which the teacher has no stored",
    "needs the teacher's prob",
)
NEEDS_ANY = {FULL: FITS, CACHED: FITS, TOP_K: FITS, SAMPLED: FITS, NONE: dict.fromkeys(FITS, MISSING)}
NEEDS_NEW = {**NEEDS_ANY, CACHED: dict.fromkeys(FITS, NO_STATES), SAMPLED: dict.fromkeys(FITS, NO_STATES)}
NEEDS_NUMBERS = {**NEEDS_NEW, SAMPLED: dict.fromkeys(FITS, PROBABILITIES)}
NEEDS_ALL = {
    **NEEDS_ANY,
    CACHED: dict.fromkeys(FITS, NO_STATES),
    TOP_K: dict.fromkeys(FITS, WHOLE),
    SAMPLED: dict.fromkeys(FITS, WHOLE),
}
EXPECTED = {
    "sft": {**NEEDS_ANY, NONE: FITS},
    "kd": NEEDS_ANY,
    "todi": {**NEEDS_ANY, SAMPLED: dict.fromkeys(FITS, PROBABILITIES)},
    "seqkd": NEEDS_ANY,
    "imitkd": NEEDS_NEW,
    "gkd": NEEDS_NUMBERS,
    "opd": NEEDS_NUMBERS,
    "eopd": NEEDS_NUMBERS,
    "iwopd": {
        **NEEDS_NUMBERS,
        CACHED: dict.fromkeys(FITS, NO_STATES),
        TOP_K: dict.fromkeys(FITS, "policy prefix_weighted: needs teacher statistics"),
    },
    "minillm": {
        FULL: {LOCAL: None, PLAIN: MIXTURE, FIXED_TEXT: MIXTURE},
        CACHED: dict.fromkeys(FITS, NO_STATES),
        TOP_K: dict.fromkeys(FITS, STATISTICS),
        SAMPLED: dict.fromkeys(FITS, PROBABILITIES),
        NONE: dict.fromkeys(FITS, MISSING),
    },
    "distillm": NEEDS_NUMBERS,
    "distillm2": NEEDS_NUMBERS,
    "skd": {
        **NEEDS_NEW,
        FULL: {LOCAL: None, PLAIN: REPLACES, FIXED_TEXT: REPLACES},
        TOP_K: dict.fromkeys(FITS, REPLACES),
    },
    "taid": {**NEEDS_ANY, TOP_K: dict.fromkeys(FITS, TAID), SAMPLED: dict.fromkeys(FITS, TAID)},
    "mgsr": NEEDS_ALL,
    "mgsr-robust": NEEDS_ALL,
    "draft": {
        **NEEDS_ANY,
        TOP_K: dict.fromkeys(FITS, WHOLE.replace("objective.span_weight", "evaluation.teacher_forced")),
        SAMPLED: dict.fromkeys(FITS, PROBABILITIES),
    },
}


def found(method: Method, teacher: str = FULL, engine: str = LOCAL) -> str | None:
    return mismatch(method, TEACHERS[teacher], ENGINES[engine])


def of(policy: object, **objective: object) -> Method:
    """A method with this policy, and forward KL by default."""
    terms = {"sft_weight": 0.0, "divergence": ForwardKL(), **objective}
    return replace(METHODS["gkd"], policy=policy, objective=Objective(**terms))


def test_the_table_has_every_method_teacher_and_engine() -> None:
    assert set(EXPECTED) == set(METHODS)
    for by_teacher in EXPECTED.values():
        assert set(by_teacher) == set(TEACHERS)
        assert all(set(by_engine) == set(ENGINES) for by_engine in by_teacher.values())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", METHODS)
def test_each_combination_is_supported_or_has_a_reason_with_a_remedy(name: str, teacher: str, engine: str) -> None:
    line, expected = found(METHODS[name], teacher, engine), EXPECTED[name][teacher][engine]
    if expected is None:
        assert line is None
    else:
        assert line is not None and expected in line
        assert "\n" not in line and ("; use " in line or "; set one" in line)


def test_mgsr_needs_the_whole_vocabulary_of_the_teacher() -> None:
    assert found(METHODS["mgsr"], TOP_K) == (
        "objective.span_weight: needs teacher logits of the whole vocabulary, but the teacher provides only its 64 most "
        "probable classes; use a local teacher, or a method without DAC-KL and span loss, such as gkd; also policy mixed: "
        "needs teacher statistics (such as log-probabilities) of generated text, but the teacher provides only its 64 most "
        "probable classes; use a local teacher, or a policy such as student_generated"
    )
    without_spans = of(StudentGenerated(), divergence=DacKLConfig())
    assert (found(without_spans, TOP_K) or "").startswith("objective.divergence dac_kl: needs teacher logits of the whole")
    without_weight = of(StudentGenerated(), sft_weight=1.0, divergence=DacKLConfig(), divergence_weight=0.0)
    assert found(without_weight, TOP_K) is None
    assert found(of(StudentGenerated()), TOP_K) is None


def test_the_likelihood_of_a_phrase_needs_no_whole_vocabulary_but_probabilities() -> None:
    row = of(StudentGenerated(), span_weight=1.0, span=SpanConfig(form="likelihood"))
    assert found(row, TOP_K) is None
    sampled = TeacherCapabilities(full_vocabulary=False, generates=True, sampled=True)
    line = mismatch(row, sampled, ENGINES[LOCAL])
    assert line is not None and line.startswith("objective.span_weight: needs the teacher's probabilities")


def test_a_temperature_needs_the_whole_vocabulary() -> None:
    line = found(of(StudentGenerated(), divergence=ForwardKL(temperature=2.0)), TOP_K)
    assert line == (
        "objective.divergence forward_kl with a temperature: needs teacher logits of the whole vocabulary, but the teacher "
        "provides only its 64 most probable classes; use a local teacher, or the temperature 1"
    )


@pytest.mark.parametrize("cls", get_args(Divergence))
def test_sampled_classes_are_sufficient_for_forward_kl_alone(cls: type[Divergence]) -> None:
    sampled = TeacherCapabilities(full_vocabulary=False, generates=True, sampled=True)
    line = mismatch(of(Fixed(), divergence=cls()), sampled, ENGINES[LOCAL])
    if cls is ForwardKL:
        assert line is None
    elif cls is Taid:
        assert line is not None and line.startswith(TAID)
    else:
        assert line is not None and "needs the teacher's probabilities, but the teacher provides only classes" in line
        assert line.endswith("; use the divergence forward_kl, or another cache_form")
    for method in ("kd", "seqkd", "sft"):
        assert mismatch(METHODS[method], sampled, ENGINES[LOCAL]) is None
    for method in ("mgsr", "minillm", "distillm"):
        assert mismatch(METHODS[method], sampled, ENGINES[LOCAL]) is not None


def test_minillm_needs_mixtures_unless_its_source_is_the_student() -> None:
    assert found(METHODS["minillm"], engine=PLAIN) == (
        "policy rollouts: samples tokens from a mixture of student and teacher, which the engine does not support; use "
        "the engine local, or the source student_generated"
    )
    assert found(of(Rollouts(source=StudentGenerated())), engine=PLAIN) is None
    assert found(of(TeacherMixed(teacher_share=0.0)), engine=PLAIN) is None, "a share of 0 samples from the student only"


def test_roll_outs_need_text_that_is_sampled_from_the_student() -> None:
    assert found(of(Rollouts(source=StudentGenerated())), engine=FIXED_TEXT) == (
        "policy rollouts: weights text by its probability under the student, but the text of the engine is not sampled "
        "from the student; use the engine local"
    )
    assert found(of(StudentGenerated()), engine=FIXED_TEXT) is None


def test_a_wrapping_policy_has_the_needs_of_its_source() -> None:
    inner = of(Mixed(source=Revised(source=TeacherMixed()), student_fraction=0.5))
    assert (found(inner, TOP_K) or "").startswith(
        "policy mixed: needs teacher statistics (such as log-probabilities) of generated text"
    )
    assert (found(inner, engine=PLAIN) or "").startswith("policy mixed: samples tokens from a mixture")


def test_a_mixture_needs_a_teacher_that_supports_it() -> None:
    remote = TeacherCapabilities(full_vocabulary=True, statistics=True, generates=True)
    line = mismatch(METHODS["minillm"], remote, ENGINES[LOCAL])
    assert (
        line is not None and line.startswith("policy rollouts: ") and "which the teacher does not support; use a local" in line
    )
    assert mismatch(METHODS["mgsr"], remote, ENGINES[LOCAL]) is None


def test_seqkd_needs_a_teacher_that_generates_text() -> None:
    without_text = TeacherCapabilities(full_vocabulary=True, statistics=True)
    line = mismatch(METHODS["seqkd"], without_text, ENGINES[LOCAL])
    assert line is not None and line.startswith("policy teacher_generated: needs text that the teacher generates")
    assert mismatch(of(TeacherGenerated()), without_text, ENGINES[LOCAL]) == line


def test_the_error_omits_an_unknown_number_of_classes() -> None:
    plain = TeacherCapabilities(full_vocabulary=False)
    line = mismatch(METHODS["mgsr"], plain, ENGINES[LOCAL])
    assert line is not None and "which the teacher does not provide; use a local teacher" in line


def test_a_ban_of_n_grams_needs_an_engine_that_supports_it() -> None:
    class Banning(StudentGenerated):
        """Text without a repeated 4-gram."""

        @property
        def sampling(self):  # type: ignore[no-untyped-def]
            return replace(super().sampling, no_repeat_ngram=4)

    line = mismatch(of(Banning()), TEACHERS[FULL], EngineCapabilities())
    assert line is not None and "bans repeated n-grams, which the engine does not support; use the engine local" in line
    assert found(of(Banning())) is None
