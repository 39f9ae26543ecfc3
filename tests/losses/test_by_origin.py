"""A divergence for each origin: in training, each row has the divergence of its text, also where a batch has several."""

from typing import Any, cast

import numpy as np
import pytest
import torch

from redistill.config.decode import decode
from redistill.config.run import NAMES
from redistill.contracts import ORIGINS, Needs, Origin, RowContext, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.losses.divergences import ByOrigin, ForwardKL, ReverseKL, SkewForwardKL, SkewReverseKL, TotalVariation
from redistill.policies import Paired
from redistill.testing.divergences import log_rows
from redistill.training.objective import Counts, Objective, terms
from redistill.vocab_pass import Head, dense_reference, vocab_pass
from tests.policies.fixture import make_fixture
from tests.worlds import tiny_run


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return cast("np.ndarray", (a * np.log(a / b)).sum(-1))


@pytest.mark.parametrize("node", ByOrigin.examples(), ids=repr)
def test_each_row_has_the_divergence_of_its_origin_and_its_gradient(node: ByOrigin) -> None:
    logits_NV, logp_NV = log_rows(1, num_rows=len(ORIGINS)).requires_grad_(), log_rows(2, num_rows=len(ORIGINS))
    context = RowContext(torch.arange(len(ORIGINS)), torch.zeros(len(ORIGINS)))
    found_N = node(logits_NV.log_softmax(-1), logp_NV, context)
    (gradient_NV,) = torch.autograd.grad(found_N.sum(), logits_NV)
    for row, origin in enumerate(ORIGINS):
        one_V = logits_NV[row : row + 1].detach().requires_grad_()
        value = cast(Any, node.parts[origin])(one_V.log_softmax(-1), logp_NV[row : row + 1])
        torch.testing.assert_close(found_N[row : row + 1], value, atol=1e-12, rtol=0)
        torch.testing.assert_close(gradient_NV[row : row + 1], torch.autograd.grad(value.sum(), one_V)[0], atol=1e-12, rtol=0)


def test_origins_without_a_divergence_of_their_own() -> None:
    node = ByOrigin(student=ReverseKL(), teacher=ForwardKL())
    of_teacher = {origin for origin, part in node.parts.items() if part == ForwardKL()}
    assert of_teacher == {"teacher", "dataset", "corpus"} and set(node.parts) == set(ORIGINS)


def test_the_loss_of_distillm2_is_that_of_the_paper_in_float64() -> None:
    """Half the mean over the teacher's answers of skew forward KL, half that over the student's of skew reverse KL."""

    def answer(origin: Origin, *ids: int) -> TokenSequence:
        return TokenSequence(sample=0, token_ids=(1, *ids), supervised=(False, *[True] * len(ids)), origin=origin)

    batch = collate(items_of([answer("student", 3, 4), answer("teacher", 5, 6, 7, 8)], "distillation"), pad_id=0)
    generator = torch.Generator().manual_seed(1)
    sizes = ((6, 4), (9, 4), (6, 9))
    hidden_ND, weight_VD, logits_NV = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in sizes)
    node = ByOrigin(student=SkewReverseKL(alpha=0.1), teacher=SkewForwardKL(alpha=0.1))
    objective = Objective(sft_weight=0.0, divergence=node, divergence_mean="sequences")
    found = terms(objective, Counts.of([batch]), batch, objective.build_divergence(9, 0))
    q_NV, p_NV = (rows.softmax(-1).numpy() for rows in (hidden_ND @ weight_VD.T, logits_NV))
    forward, reverse = kl(p_NV, 0.1 * p_NV + 0.9 * q_NV)[2:].mean(), kl(q_NV, 0.9 * p_NV + 0.1 * q_NV)[:2].mean()
    for compute in (dense_reference, vocab_pass):
        total, _ = compute(hidden_ND, Head(weight_VD), lambda rows: logits_NV[rows], found)
        assert float(total) == pytest.approx((forward + reverse) / 2, abs=1e-8)


def test_compiled_terms_are_equal() -> None:
    rows, classes = 11, 32
    hidden_ND, weight_VD = torch.randn(rows, 8), torch.randn(classes, 8)
    logits_NV = torch.randn(rows, classes)
    sampled = [
        TokenSequence(sample=0, token_ids=(1, *range(2, 2 + n)), supervised=(False, *[True] * n), origin=origin)
        for origin, n in (("student", 4), ("teacher", 4), ("dataset", 3))
    ]
    batch = collate(items_of(sampled, "distillation"), pad_id=0)
    objective = Objective(
        sft_weight=0.0, divergence=ByOrigin(student=ReverseKL(), teacher=ForwardKL(), dataset=TotalVariation())
    )
    found = terms(objective, Counts.of([batch]), batch, objective.build_divergence(classes, 0))
    values = []
    for compiled in (False, True):
        leaf_ND = hidden_ND.clone().requires_grad_()
        total, _ = vocab_pass(leaf_ND, Head(weight_VD), lambda r: logits_NV[r], found, compiled=compiled)
        total.backward()
        values.append((total.detach(), leaf_ND.grad))
    torch.testing.assert_close(values[1], values[0], rtol=1e-5, atol=1e-6)


def test_it_needs_probabilities_and_what_each_divergence_needs() -> None:
    assert ByOrigin(student=ForwardKL(), teacher=ForwardKL()).needs == Needs(probabilities=True)
    tempered = ByOrigin(student=ForwardKL(temperature=2.0), teacher=ForwardKL())
    assert tempered.needs == Needs(probabilities=True, full_vocabulary=True)


def test_a_recipe_names_a_divergence_for_each_origin() -> None:
    tree = {"divergence": {"kind": "by_origin", "student": "rkl", "teacher": {"kind": "sfkl", "alpha": 0.2}}}
    found = decode(Objective, tree, NAMES).divergence
    assert found == ByOrigin(student=ReverseKL(), teacher=SkewForwardKL(alpha=0.2))
    for given, message in (
        ({"kind": "by_origin", "student": "rkl"}, "divergence.teacher: missing"),
        (
            {"kind": "by_origin", "student": "rkl", "teacher": "by_origin"},
            "divergence.teacher.kind = 'by_origin': no such kind",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            decode(Objective, {"divergence": given}, NAMES)


# --- the policy ---------------------------------------------------------------------------------------------------------


def test_each_prompt_has_an_answer_of_each_model() -> None:
    fixture = make_fixture()
    sampled = fixture.policy(Paired()).draw(0).with_role("distillation")
    samples = [item.example.sample for item in fixture.gold().items(0)]
    assert [(s.sample, s.origin) for s in sampled] == [(i, origin) for origin in ("student", "teacher") for i in samples]


@pytest.mark.parametrize("outer", ["mixed", "revised"])
def test_a_pair_is_the_outermost_policy(tmp_path: Any, outer: str) -> None:
    with pytest.raises(ConfigError, match=r"policy: paired cannot be the source of another policy; set policy.kind to paired"):
        tiny_run(tmp_path, "distillm2", policy={"kind": outer, "source": "paired"})
