"""The verdict in words, and the sample that would settle a difference."""

import math
from dataclasses import replace

import numpy as np
import pytest

from redistill.records import PROPOSALS
from redistill.reports.comparison import Estimate, Row
from redistill.reports.folders import Measure
from redistill.reports.inference import Variance, contrast
from redistill.reports.statistics import Interval
from redistill.reports.verdict import acceptance_sentences, difference_sentence, is_settled, kept_sentence, needed

ROUGE = Measure("rouge_l", "ROUGE-L", "%", "higher")
EXACT = Measure("exact_match", "exact match", "fraction", "higher")
WORDS = Measure("words", "length", "words", "lower")


def row(strata: list[np.ndarray] | None, num_seeds: int = 1, primary: Measure = ROUGE, mean: float | None = 26.5) -> Row:
    estimate = Estimate(mean=mean, deviation=None, over="evaluation seeds", num_trainings=num_seeds, num_seeds=1)
    found = None if strata is None else contrast(strata, num_seeds, primary.sign)
    texts = {"column": "dolly", "model": "mgsr", "role": "student", "versus": "sft", "note": "different prompts"}
    prompts = 50 if strata is None else sum(stratum.shape[1] for stratum in strata)
    return Row(measures=(primary,), primary=estimate, num_prompts=prompts, contrast=found, others={}, scores={}, **texts)


def differences(mean: float, num_prompts: int = 50, num_seeds: int = 1, of_seeds: float = 0.0, of_prompts: float = 6.0):
    rng = np.random.default_rng(1)
    drawn = rng.normal(0, of_prompts, (1, num_prompts)) + of_seeds * rng.normal(0, 1, (num_seeds, 1))
    drawn = drawn + rng.normal(0, 1, (num_seeds, num_prompts))
    return [drawn - drawn.mean() + mean]


# --- how much would settle it -------------------------------------------------------------------------------------------


def test_with_the_needed_prompts_the_difference_is_the_detectable_one():
    """For trained students the detectable difference falls with the square root of the number of prompts."""
    found = row(differences(1.0))
    enough = needed(found)
    assert enough.unit == "prompts"
    assert found.contrast.detectable * math.sqrt(50 / enough.count) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(("of_seeds", "of_prompts", "unit"), [(0.1, 6.0, "prompts"), (2.0, 0.5, "training seeds")])
def test_the_larger_source_of_variance_is_the_one_to_enlarge(of_seeds, of_prompts, unit):
    found = row(differences(0.9, num_seeds=4, of_seeds=of_seeds, of_prompts=of_prompts), num_seeds=4)
    assert not is_settled(found)
    enough, parts = needed(found), found.contrast.variance
    assert enough.unit == unit
    factor = (50 if unit == "prompts" else 4) / enough.count
    one, other = (parts.prompts, parts.seeds) if unit == "prompts" else (parts.seeds, parts.prompts)
    detectable = found.contrast.detectable * math.sqrt((other + factor * (one + parts.residual)) / parts.total)
    assert detectable == pytest.approx(0.9, rel=0.03) or enough.count <= 20  # small numbers are rounded up to the next integer
    assert detectable <= 0.9 * 1.0001


def test_no_number_is_stated_if_the_other_source_alone_leaves_too_much_variance():
    found = row(differences(0.5, num_seeds=3), num_seeds=3)
    both = replace(
        found, contrast=replace(found.contrast, variance=Variance(seeds=0.4, prompts=0.6, residual=0.0), detectable=3.0)
    )
    assert needed(both) is None
    assert "both more prompts and more training seeds are needed" in difference_sentence(both)


@pytest.mark.parametrize("mean", [0.0, 1e-6])
def test_no_number_is_stated_for_a_difference_of_almost_nothing(mean):
    assert needed(row(differences(mean))) is None
    assert "not even 100,000 prompts would settle it" in difference_sentence(row(differences(mean)))


def test_a_settled_difference_needs_nothing():
    assert needed(row(differences(5.0))) is None and needed(row(None)) is None


def test_equal_scores_are_no_difference():
    assert difference_sentence(row([np.zeros((1, 50))])).startswith("mgsr shows no difference to sft on dolly: +0.00 ROUGE-L")


# --- sentences ----------------------------------------------------------------------------------------------------------


def shown(
    lower: float, middle: float, upper: float, primary: Measure = ROUGE, p: float = 0.01, p_holm: float | None = None
) -> str:
    found = row(differences(middle), primary=primary)
    told = replace(found.contrast, interval=Interval(middle, lower, upper), p=p, p_holm=p if p_holm is None else p_holm)
    return difference_sentence(replace(found, contrast=told))


def test_a_difference_is_stated_with_its_interval_and_whether_it_is_settled():
    assert shown(1.2, 2.0, 2.8) == (
        "mgsr is better than sft on dolly: +2.00 ROUGE-L (95 % interval +1.20 to +2.80), settled with 50 prompts."
    )
    assert shown(-0.3, 1.0, 3.0).startswith(
        "mgsr may be better than sft on dolly: +1.00 ROUGE-L (95 % interval −0.30 to +3.00), not settled with 50 prompts; about"
    )
    assert shown(-3.0, -2.0, -1.0).startswith("mgsr is worse than sft")


def test_a_difference_is_not_settled_if_holms_p_value_is_above_5_percent():
    """The interval is that of one comparison; the p-value after the correction is that of all compared methods."""
    assert shown(1.2, 2.0, 2.8, p=0.02, p_holm=0.05).endswith("settled with 50 prompts.")
    assert shown(1.2, 2.0, 2.8, p=0.02, p_holm=0.196) == (
        "mgsr may be better than sft on dolly: +2.00 ROUGE-L (95 % interval +1.20 to +2.80), not settled with 50 prompts: the "
        "interval excludes 0, but p = 0.196 after Holm's correction for several methods."
    )
    assert shown(-2.8, -2.0, -1.2, p=0.06).endswith("not settled with 50 prompts: the interval excludes 0, but p = 0.060.")


def test_a_settled_difference_has_an_interval_without_0_and_a_small_corrected_p_value():
    found = row(differences(5.0))
    assert is_settled(found) and is_settled(replace(found, contrast=replace(found.contrast, p_holm=0.05)))
    assert not is_settled(replace(found, contrast=replace(found.contrast, p_holm=0.051)))
    assert not is_settled(row(differences(0.1))) and not is_settled(row(None))


def test_units_and_directions_of_other_metrics():
    exact = shown(0.01, 0.02, 0.03, EXACT)
    assert "+2.00 percentage points of exact match (95 % interval +1.00 to +3.00), settled" in exact
    assert shown(1.0, 2.0, 3.0, WORDS).startswith("mgsr is worse than sft on dolly: +2.00 words of length")


def test_a_model_that_is_not_compared_has_a_reason():
    assert difference_sentence(row(None)) == "mgsr is not compared with sft on dolly: different prompts."


def test_a_draft_model_is_rated_by_the_tokens_that_the_teacher_accepts():
    assert acceptance_sentences(row(None)) == []
    rated = replace(row(None), scores={"acceptance": 0.7125, f"accepted_length_{PROPOSALS}": 2.25})
    (sentence,) = acceptance_sentences(rated)
    assert "accepts 71.2 % of the tokens that mgsr proposes" in sentence and f"2.25 of {PROPOSALS} proposed" in sentence


def test_what_a_student_keeps_of_its_teacher():
    student, teacher = row(None, mean=13.25), replace(row(None, mean=25.0), model="teacher")
    assert kept_sentence(student, teacher, {"parameters": 0.42, "tokens_per_s": 3.0}) == (
        "mgsr has 53 % of the teacher's quality (ROUGE-L) at 42 % of its size and 3.0 times its throughput in batches."
    )
    assert kept_sentence(student, teacher, {}) == "mgsr has 53 % of the teacher's quality (ROUGE-L)."
    unknown = kept_sentence(row(None, mean=None), teacher, {"tokens_per_s": 0.5})
    assert unknown == "mgsr has an unknown fraction of the teacher's quality (ROUGE-L) at 0.5 times its throughput in batches."
    both = kept_sentence(student, teacher, {"parameters": 0.42, "tokens_per_s": 3.0, "p50_s": 0.25})
    assert both.endswith(
        "42 % of its size, 3.0 times its throughput in batches and 0.25 times its latency (median of single answers)."
    )
    words = kept_sentence(row(None, mean=3, primary=WORDS), row(None, mean=2, primary=WORDS), {})
    assert words == "mgsr has length, words 3.00 (teacher: 2.00)."
