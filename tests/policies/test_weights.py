"""Weights of tokens: what policies set, and what the divergence term makes of them, compared with NumPy in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.contracts import TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.losses.divergences import ReverseKL
from redistill.policies import Buffered, Mixed, Paired, PrefixWeighted, Revised, TeacherGenerated, legacy_sequence
from redistill.policies.prefix_weighted import prefix_weights
from redistill.testing import check_policy
from redistill.training.objective import Counts, Objective, terms
from redistill.vocab_pass import Head, dense_reference, vocab_pass
from tests.policies.fixture import make_fixture
from tests.policies.test_revised_readings import ARGMAX, BUDGET, SAME, TWO_ERRORS, Script, logits_of

END = 0


def sequence(*weights: float, origin: str = "student", ids: tuple[int, ...] = (3, 4, 5)) -> TokenSequence:
    supervised = (False, False, *[True] * len(ids))
    return TokenSequence(sample=0, token_ids=(1, 2, *ids), supervised=supervised, origin=origin, weights=weights)  # type: ignore[arg-type]


# --- the divergence term ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", ["tokens", "sequences"])
def test_a_weight_multiplies_the_divergence_of_its_token_and_nothing_else(mean: str) -> None:
    sampled = [sequence(4.0, 0.0, 0.25, 2.0, ids=(3, 4, 5, 8)), sequence(ids=(6, 7))]
    batch = collate([*items_of([sequence(9.0, 9.0, 9.0)], "sft"), *items_of(sampled, "distillation")], pad_id=0)
    generator = torch.Generator().manual_seed(1)
    sizes = ((9, 4), (9, 4), (9, 9))
    hidden_ND, weight_VD, logits_NV = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in sizes)
    objective = Objective(sft_weight=2.0, divergence=ReverseKL(), divergence_weight=3.0, divergence_mean=mean)  # type: ignore[arg-type]
    found = terms(objective, Counts.of([batch]), batch, ReverseKL())
    q_NV, p_NV = (rows.softmax(-1).numpy() for rows in (hidden_ND @ weight_VD.T, logits_NV))
    kl_N = (q_NV * np.log(q_NV / p_NV)).sum(-1)[:6] * [4.0, 0.0, 0.25, 2.0, 1.0, 1.0]
    divergence = kl_N.mean() if mean == "tokens" else (kl_N[:4].mean() + kl_N[4:].mean()) / 2
    sft = -np.log(q_NV[[6, 7, 8], batch.target_N[6:].numpy()]).mean()
    for compute in (dense_reference, vocab_pass):
        total, _ = compute(hidden_ND, Head(weight_VD), lambda rows: logits_NV[rows], found)
        assert float(total) == pytest.approx(2.0 * sft + 3.0 * divergence, abs=1e-8)


def test_rows_without_weights_have_the_weight_1() -> None:
    batch = collate(items_of([sequence(2.0, 3.0, 0.5), sequence()], "distillation"), pad_id=0)
    assert batch.token_weight_N.tolist() == [2.0, 3.0, 0.5, 1.0, 1.0, 1.0]
    assert len(collate(items_of([sequence()], "sft"), pad_id=0).token_weight_N) == 0


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, float("inf"), 1.0)])
def test_weights_that_do_not_fit_are_a_fault_of_the_policy(weights: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError, match="weight"):
        sequence(*weights)


# --- the error of a revision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        (ARGMAX, ()),
        (replace(ARGMAX, error_weight=5.0), (1.0, 1.0, 5.0, 1.0)),
        (replace(ARGMAX, error_weight=5.0, rounds=2), (5.0, 1.0, 1.0, 1.0)),  # the second round removes the first error
        (replace(ARGMAX, error_weight=5.0, rounds=2, in_order=True), (1.0, 1.0, 5.0, 5.0)),
    ],
    ids=repr,
)
def test_the_errors_that_remain_in_the_text_have_the_weight(node: Revised, wanted: tuple[float, ...]) -> None:
    (revised,) = Script({0: (SAME,) * BUDGET}, {0: TWO_ERRORS}).sequences(node)
    assert revised.weights == wanted


def test_a_draft_without_an_error_has_no_weights() -> None:
    script = Script({0: (SAME, SAME)}, {0: logits_of((SAME, 9), (SAME, 1))})
    assert script.sequences(replace(ARGMAX, error_weight=5.0))[0].weights == ()


# --- weights by prefix --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-50, 0), st.floats(-50, 0)), min_size=1, max_size=12), st.floats(0, 9))
@settings(max_examples=80, deadline=None)
def test_prefix_weights_equal_a_loop_and_never_increase(pairs: list[tuple[float, float]], amplification: float) -> None:
    p_N, q_N = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    found = prefix_weights(p_N, q_N, amplification).tolist()
    gaps = [abs(p - q) for p, q in pairs]
    before = [sum(gaps[:t]) / sum(gaps) if sum(gaps) else 0.0 for t in range(len(gaps))]
    assert found == pytest.approx([1 + amplification * (1 - share) for share in before], abs=1e-8)
    assert found[0] == 1 + amplification and found == sorted(found, reverse=True) and found[-1] >= 1


def test_a_ruled_out_token_gives_finite_weights() -> None:
    assert prefix_weights(torch.tensor([-torch.inf, -1.0]), torch.tensor([-1.0, -2.0]), 0.5).tolist() == [1.5, 1.0]


def test_weights_are_those_of_the_models_on_the_students_text_alone() -> None:
    fixture = make_fixture()
    node = Mixed(source=PrefixWeighted(amplification=0.5), student_fraction=0.5)
    sampled = fixture.policy(node).draw(0).with_role("distillation")
    assert {s.origin for s in sampled} == {"dataset", "student"}
    own = [s for s in sampled if s.origin == "student"]
    assert all(not s.weights for s in sampled if s.origin == "dataset")
    found = fixture.scorer().statistics(own, ("teacher_logprob", "student_logprob"))
    for s, p_N, q_N in zip(own, found["teacher_logprob"], found["student_logprob"], strict=True):
        assert s.weights == pytest.approx(prefix_weights(p_N, q_N, 0.5).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "node", [PrefixWeighted(source=Revised(error_weight=3.0)), Buffered(source=PrefixWeighted(), capacity=8)], ids=repr
)
def test_weights_of_nested_policies_obey_the_laws(node: PrefixWeighted | Buffered) -> None:
    check_policy(node)


def test_weights_of_two_policies_are_multiplied() -> None:
    fixture = make_fixture()
    inner = Revised(error_weight=3.0)
    one = fixture.policy(inner).draw(0).with_role("distillation")
    both = fixture.policy(PrefixWeighted(source=inner, amplification=0.0)).draw(0).with_role("distillation")
    assert [s.target_weights for s in both] == [s.target_weights for s in one]
    assert any(3.0 in s.weights for s in one)


# --- settings and the reference code's targets --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, -1.0, 1e300, float("nan"), float("inf")])
def test_a_weight_of_the_error_is_above_0(value: float) -> None:
    with pytest.raises(ConfigError, match=r"error_weight = .*: must lie in \(0, 1000\]; the paper's method is 1"):
        Revised(error_weight=value)


@pytest.mark.parametrize("value", [-0.1, 1e300, float("nan"), float("inf")])
def test_an_amplification_is_not_negative(value: float) -> None:
    with pytest.raises(ConfigError, match=r"amplification = .*: must lie in \[0, 1000\]; IW-OPD uses 0.5"):
        PrefixWeighted(amplification=value)


@pytest.mark.parametrize(
    ("ids", "weights", "wanted"),
    [
        ((3, 4, END), (2.0, 3.0, 4.0), (3.0, 4.0)),
        ((3, 4), (2.0, 3.0), (3.0, 1.0)),
        ((END,), (2.0,), (2.0,)),
        ((3, 4, END), (), ()),
    ],
)
def test_targets_of_the_reference_code_keep_the_weights_of_their_rows(
    ids: tuple[int, ...], weights: tuple[float, ...], wanted: tuple[float, ...]
) -> None:
    rewritten = legacy_sequence(sequence(*weights, ids=ids), END)
    assert rewritten.weights == wanted and rewritten.num_targets == (len(wanted) or 2)


def test_the_source_of_paired_answers_is_not_the_teacher() -> None:
    with pytest.raises(ConfigError, match="source: must be a policy without text of the teacher, such as student_generated"):
        Paired(source=TeacherGenerated())
