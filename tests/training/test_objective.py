"""Objectives: the terms of a batch, their counts, and that splitting a batch does not change them."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from redistill.contracts import Draw, Needs, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.losses.divergences import Divergence, ForwardKL, ReverseKL
from redistill.losses.span import SpanConfig
from redistill.training.objective import Counts, Objective, PretrainingConfig, averages, corpus_items, terms
from redistill.vocab_pass import CrossEntropyTerm, DivergenceTerm, PhraseTerm, SpanTerm

FULL = Objective(sft_weight=2.0, divergence=ForwardKL(), divergence_weight=3.0, span_weight=5.0)
COUNTS = Counts(sft_tokens=10, sampled_tokens=20, sampled_sequences=5, span_samples=4, corpus_tokens=8)


def sequence(num_targets, *, origin="student", spans=()):
    ids = tuple(range(1, num_targets + 3))
    supervised = (False, False, *([True] * num_targets))
    return TokenSequence(sample=0, token_ids=ids, supervised=supervised, origin=origin, spans=spans)


def batch(gold=(), sampled=(), both=(), span_config=SpanConfig()):  # noqa: B008
    items = [*items_of(gold, "sft"), *items_of(sampled, "distillation"), *items_of(both, "sft", "distillation")]
    return collate(items, pad_id=0, span_config=span_config)


def full_batch():
    return batch([sequence(2, origin="dataset")], [sequence(3, spans=((0, 2),)), sequence(4)])


# --- counts -------------------------------------------------------------------------------------------------------------


def test_counts_are_sums_over_all_micro_batches():
    assert Counts.of([full_batch(), full_batch()]) == Counts(4, 14, sampled_sequences=4, span_samples=2)


def test_rows_with_two_roles_are_counted_in_both():
    both = sequence(3, origin="dataset")
    assert Counts.of([batch(both=[both])]) == Counts(3, 3, sampled_sequences=1)


def test_counts_of_no_batches_are_zero():
    assert Counts.of([]) == Counts()


# --- terms --------------------------------------------------------------------------------------------------------------


def test_a_terms_coefficient_is_its_weight_over_its_own_count():
    sft, divergence, span = terms(FULL, COUNTS, full_batch(), FULL.build_divergence(8, 0))
    assert isinstance(sft, CrossEntropyTerm) and sft.coefficient == 2.0 / 10
    assert isinstance(divergence, DivergenceTerm) and divergence.coefficient == 3.0 / 20
    assert isinstance(span, SpanTerm) and span.coefficient == 5.0 / 4


def test_the_likelihood_form_has_a_term_of_its_own_with_the_same_coefficient():
    objective = Objective(span_weight=5.0, span=SpanConfig(form="likelihood"))
    term = terms(objective, COUNTS, full_batch(), None)[-1]
    assert isinstance(term, PhraseTerm) and (term.coefficient, term.phrases) == (5.0 / 4, ((0, 2, 1.0),))
    assert len(term.token_N) == 7 and not objective.needs.full_vocabulary


def test_terms_use_only_their_rows():
    made = full_batch()
    sft, divergence, span = terms(FULL, COUNTS, made, ForwardKL())
    assert sft.mask_N.tolist() == [False] * 7 + [True] * 2 and torch.equal(sft.target_N, made.target_N)
    assert divergence.num_rows == 7 and len(span.pair_weight_N) == 7


def test_a_micro_batch_without_rows_of_a_term_keeps_the_global_coefficients():
    """Another process may have the rows; what this one does must not change the weights."""
    only_gold = batch([sequence(2, origin="dataset")])
    sft, divergence, span = terms(FULL, COUNTS, only_gold, ForwardKL())
    assert (sft.coefficient, divergence.coefficient, divergence.num_rows, span.coefficient) == (0.2, 0.15, 0, 1.25)


def test_counts_of_zero_do_not_divide():
    empty = Counts()
    (divergence,) = terms(FULL, empty, batch([sequence(1)]), ForwardKL())
    assert isinstance(divergence, DivergenceTerm) and divergence.num_rows == 0 and divergence.coefficient == 3.0
    assert terms(Objective(), empty, batch([sequence(1)]), None) == ()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective(), [CrossEntropyTerm]),
        (Objective(sft_weight=0, divergence=ReverseKL()), [DivergenceTerm]),
        (Objective(sft_weight=0, span_weight=1), [SpanTerm]),
        (Objective(divergence=ReverseKL(), divergence_weight=0), [CrossEntropyTerm]),
        (FULL, [CrossEntropyTerm, DivergenceTerm, SpanTerm]),
    ],
)
def test_a_term_without_weight_is_omitted(objective, expected):
    assert [type(term) for term in terms(objective, COUNTS, full_batch(), ForwardKL())] == expected


def test_the_squared_norm_reaches_the_span_term():
    objective = Objective(span_weight=1.0, span=SpanConfig(squared=True))
    assert terms(objective, COUNTS, full_batch(), None)[-1].squared is True


# --- selection of sequences ---------------------------------------------------------------------------------------------


def test_select_keeps_only_the_sequences_that_a_term_uses():
    gold, sampled = items_of([sequence(1)], "sft"), items_of([sequence(2)], "distillation")
    draw = Draw(items=(*sampled, *gold), corpus=(sequence(3, origin="corpus"),))
    assert Objective().select(draw) == Draw(items=gold)
    assert Objective(sft_weight=0, divergence=ForwardKL()).select(draw) == Draw(items=sampled)
    assert FULL.select(draw) == replace(draw, corpus=())
    assert replace(FULL, pretraining=PretrainingConfig()).select(draw) == draw


def test_cross_entropy_on_sampled_answers_uses_no_gold_ones():
    gold, sampled, both = (items_of([sequence(1)], *roles) for roles in (["sft"], ["distillation"], ["sft", "distillation"]))
    draw = Draw(items=(*sampled, *both, *gold))
    answers = draw.with_role("distillation")
    assert Objective(sft_on="sampled").select(draw) == Draw(items=items_of(answers, "sft"))
    found = Objective(sft_on="sampled", divergence=ForwardKL()).select(draw)
    assert found == Draw(items=items_of(answers, "sft", "distillation"))


def test_an_item_keeps_only_the_roles_of_the_terms():
    draw = Draw(items=items_of([sequence(1)], "sft", "distillation"))
    assert Objective().select(draw) == Draw(items=items_of(draw.with_role("sft"), "sft"))
    only = Objective(sft_weight=0, divergence=ForwardKL()).select(draw)
    assert only == Draw(items=items_of(draw.with_role("sft"), "distillation"))
    assert FULL.select(draw) == draw


def test_the_corpus_has_a_divergence_only_if_it_is_distilled():
    draw = Draw(items=(), corpus=(sequence(3, origin="corpus"),))
    assert corpus_items(draw, PretrainingConfig()) == items_of(draw.corpus, "sft")
    assert corpus_items(draw, PretrainingConfig(divergence_share=0.5)) == items_of(draw.corpus, "sft", "distillation")


@pytest.mark.parametrize(
    ("objective", "needs"),
    [
        (Objective(), Needs(gold=True)),
        (Objective(sft_on="sampled"), Needs()),
        (Objective(divergence=ForwardKL()), Needs(teacher=True, gold=True)),
        (Objective(sft_weight=0.0, divergence=ForwardKL()), Needs(teacher=True)),
        (Objective(divergence=ForwardKL(), divergence_weight=0), Needs(gold=True)),
        (Objective(divergence=ForwardKL(temperature=2.0)), Needs(teacher=True, full_vocabulary=True, gold=True)),
        (Objective(divergence=ReverseKL()), Needs(teacher=True, probabilities=True, gold=True)),
        (Objective(divergence=DacKLConfig()), Needs(teacher=True, full_vocabulary=True, probabilities=True, gold=True)),
        (Objective(divergence=DacKLConfig(), divergence_weight=0), Needs(gold=True)),
        (Objective(span_weight=1), Needs(teacher=True, full_vocabulary=True, probabilities=True, gold=True)),
        (Objective(pretraining=PretrainingConfig()), Needs(gold=True)),
        (Objective(pretraining=PretrainingConfig(divergence_share=0.5)), Needs(teacher=True, gold=True)),
    ],
    ids=repr,
)
def test_an_objective_needs_what_its_terms_use(objective, needs):
    assert objective.needs == needs


# --- logging ------------------------------------------------------------------------------------------------------------


def test_averages_are_means_over_each_terms_own_count_and_their_weighted_total():
    found = averages(FULL, COUNTS, {"sft": 20.0, "divergence": 10.0, "span": 2.0, "kept_mass": 5.0})
    assert found == {"loss": 2 * 2.0 + 3 * 0.5 + 5 * 0.5, "sft": 2.0, "divergence": 0.5, "span": 0.5, "kept_mass": 0.25}


def test_the_recovered_mass_is_the_kept_fraction_of_the_mass_beside_the_arg_max():
    def recovered(kept: float, top: float) -> float:
        sums = {"kept_mass": kept * COUNTS.sampled_tokens, "top_mass": top * COUNTS.sampled_tokens}
        return averages(FULL, COUNTS, sums)["recovered"]

    assert recovered(0.9, 0.6) == pytest.approx(0.75)
    assert recovered(0.6, 0.6) == pytest.approx(0.0)  # the arg max alone: the kept mass of a sure teacher is high all the same
    assert recovered(1.0, 1.0) == 1.0


def test_the_recovered_mass_does_not_assume_that_the_arg_max_is_kept():
    """With keep_target: false and the interval [0.001, 0.5], a class of 0.7 is dropped and classes of 0.2 are kept."""
    logp_NV = torch.tensor([[0.7, 0.2, 0.0999, 0.0001], [0.4, 0.3, 0.2999, 0.0001]]).log()
    dac = DacKL(DacKLConfig(fixed_interval=(0.001, 0.5), keep_target=False), 4)
    sums = {name: float(row_N.sum()) for name, row_N in dac(logp_NV.flip(-1), logp_NV)[1].items()}
    p_NV, kept_NV = logp_NV.double().exp().numpy(), np.array([[0, 1, 1, 0], [1, 1, 1, 0]])
    others_NV = np.arange(4) > 0
    found = averages(FULL, Counts(sampled_tokens=2), sums)
    expected = (p_NV * kept_NV * others_NV).sum() / (p_NV * others_NV).sum()
    assert found["recovered"] == pytest.approx(expected, abs=1e-6) and expected > 0.99
    assert found["kept_top_mass"] == pytest.approx(0.2) and found["top_mass"] == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("divergence", "is_trained"),
    [
        (DacKLConfig(), True),
        (DacKLConfig(gate="none"), False),
        (DacKLConfig(fixed_interval=(1.0, 1.0)), False),
        (DacKLConfig(mode="entry_quantile", fixed_top=3), False),
        (ForwardKL(), False),
    ],
)
def test_only_dac_kl_with_a_trained_network_can_collapse(divergence, is_trained):
    assert Objective(divergence=divergence).trains_clip_network == is_trained


def test_a_term_with_a_count_of_zero_is_not_logged():
    found = averages(FULL, Counts(sft_tokens=10, sampled_tokens=0, span_samples=0), {"sft": 20.0, "divergence": 0.0})
    assert found == {"loss": 4.0, "sft": 2.0}


# --- building -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", Objective.examples(), ids=repr)
def test_examples_build_their_divergence(objective):
    built = objective.build_divergence(vocabulary=16, seed=1)
    assert (built is not None) == objective.uses_divergence
    assert isinstance(built, DacKL) == isinstance(objective.divergence, DacKLConfig)


@pytest.mark.parametrize("divergence", [node for member in get_args(Divergence) for node in member.examples()], ids=repr)
def test_a_divergence_is_its_own_callable(divergence):
    assert Objective(divergence=divergence).build_divergence(16, 0) is divergence


def test_the_clip_network_depends_only_on_the_seed():
    weights = [
        torch.cat([p.flatten() for p in Objective(divergence=DacKLConfig()).build_divergence(16, seed).parameters()])
        for seed in (1, 1, 2)
    ]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "fields", [{"sft_weight": 0.0}, {"sft_weight": 0.0, "divergence": ForwardKL(), "divergence_weight": 0.0}]
)
def test_an_objective_without_terms_is_rejected(fields):
    with pytest.raises(ConfigError, match="no term has a weight"):
        Objective(**fields)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["sft_weight", "divergence_weight", "span_weight"])
def test_weights_are_finite_and_not_negative(name, value):
    with pytest.raises(ConfigError, match=f"{name} = "):
        Objective(**{name: value})
