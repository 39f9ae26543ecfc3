"""The compiled core: equal to the plain one, compiled once, with a fallback; gradients in place; listed classes."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from redistill.config.capabilities import mismatch
from redistill.config.methods import METHODS
from redistill.contracts import TeacherCapabilities, TopClasses
from redistill.generation.local import LOCAL
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.losses.divergences import Divergence, ForwardKL, JensenShannon, ReverseKL
from redistill.randomness import generator
from redistill.training.objective import Objective
from redistill.vocab_pass import (
    CrossEntropyTerm,
    DivergenceTerm,
    Head,
    PolicyGradientTerm,
    SpanTerm,
    compiles,
    dense_reference,
    row_statistics,
    vocab_pass,
)

ROWS, DISTILLED, WIDTH, VOCABULARY = 23, 17, 5, 40
ROW = 4 * VOCABULARY * 4  # bytes: one row of a [rows, vocabulary] tensor in a quarter of the budget
TILE = 7 * 8 * ROW  # 8 rows in a compiled tile, all in one block
BUDGETS = [1, 5 * ROW, TILE]  # blocks of one row, of seven, and one of all

MEMBERS = [example for member in get_args(Divergence) for example in member.examples()]


def normal(*shape: int, key: str) -> torch.Tensor:
    return torch.from_numpy(generator(0, "vocab-core-test", key).normal(size=shape)).float()


def hidden_states() -> torch.Tensor:
    return normal(ROWS, WIDTH, key="hidden").requires_grad_()


def make_head(*, frozen: bool = False, bias: bool = True, **settings: float) -> Head:
    return Head(
        normal(VOCABULARY + 3, WIDTH, key="weight").requires_grad_(not frozen),
        normal(VOCABULARY + 3, key="bias").requires_grad_(not frozen) if bias else None,
        vocabulary=VOCABULARY,
        **settings,
    )


HEADS: dict[str, dict[str, Any]] = {
    "plain": {"bias": False},
    "bias": {},
    "capped": {"scale": 0.7, "softcap": 5.0},
    "frozen": {"frozen": True},
}


def target(rows: slice) -> torch.Tensor:
    return 3 * normal(DISTILLED, VOCABULARY, key="teacher")[rows]


def all_terms(divergence: object, coefficient: float = 0.5) -> tuple:
    mask_N = torch.arange(ROWS) % 3 > 0
    weight_N = torch.arange(DISTILLED) % 4 / 7.0
    weight_N[-1] = 0.0
    tokens = torch.arange(DISTILLED) * 3 % VOCABULARY
    return (
        CrossEntropyTerm(0.3 * coefficient, torch.arange(ROWS) % VOCABULARY, mask_N),
        DivergenceTerm(coefficient, divergence, DISTILLED, weight_N=weight_N),
        SpanTerm(0.7, weight_N, squared=False),
        PolicyGradientTerm(
            0.9, tokens, normal(DISTILLED, key="old") - 3, normal(DISTILLED, key="advantage"), torch.ones(DISTILLED), 0.2
        ),
    )


def assert_equal_to_dense(head: Head, target: object, terms: tuple, *, chunk_bytes: int = TILE, **settings: object) -> None:
    """Compare values and gradients, including those of the divergence's parameters."""
    modules = [term.divergence for term in terms if isinstance(getattr(term, "divergence", None), torch.nn.Module)]
    hidden = hidden_states()
    inputs = [hidden, *(t for t in (head.weight_VD, head.bias_V) if t is not None and t.requires_grad)]
    inputs += [parameter for module in modules for parameter in module.parameters()]
    wanted, wanted_sums = dense_reference(hidden, head, target, terms)
    references = torch.autograd.grad(wanted, inputs)
    for tensor in inputs:
        tensor.grad = None
    found, sums = vocab_pass(hidden, head, target, terms, chunk_bytes, **settings)
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums, wanted_sums, rtol=1e-5, atol=1e-5)
    for tensor, reference in zip(inputs, references, strict=True):
        torch.testing.assert_close(tensor.grad, reference, rtol=1e-5, atol=1e-5)


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has compiled nothing yet, on machines that have one; a fallback counts as a failure."""
    if not compiles("auto", 10**6, "cpu"):
        pytest.skip("no C++ compiler on this machine")
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training.compile")
        yield


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both graphs are traced but not compiled, which is faster; a fallback counts as a failure."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile_(function, backend="aot_eager", **settings))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="training.compile")
        yield


class Gate(torch.nn.Module):
    """A trainable divergence with a diagnostic."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_V = torch.nn.Parameter(normal(VOCABULARY, key="gate"))

    def forward(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        kept_NV = self.gate_V.sigmoid() * logp_NV.exp()
        return (kept_NV * (logp_NV - logq_NV)).sum(-1), {"kept_mass": kept_NV.sum(-1)}


# --- every divergence, plain and compiled -------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("into_grad", [False, True], ids=["returned", "in place"])
def test_every_divergence_in_chunks_equals_the_dense_one(divergence, kind, into_grad):
    for chunk_bytes in BUDGETS:
        assert_equal_to_dense(
            make_head(**HEADS[kind]), target, all_terms(divergence), chunk_bytes=chunk_bytes, into_grad=into_grad
        )


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
def test_every_divergence_compiled_equals_the_dense_one(divergence, traced):
    for kind, into_grad in (("bias", False), ("capped", True)):
        for chunk_bytes in BUDGETS:
            settings = {"chunk_bytes": chunk_bytes, "compiled": True, "into_grad": into_grad}
            assert_equal_to_dense(make_head(**HEADS[kind]), target, all_terms(divergence), **settings)


@pytest.mark.parametrize("compiled", [False, True])
def test_dac_kl_and_spans_on_what_it_keeps_equal_the_dense_ones(compiled, traced):
    for chunk_bytes in BUDGETS:
        divergence = DacKL(DacKLConfig(), VOCABULARY, 3)
        cross_entropy, dac_kl, span, _ = all_terms(divergence)
        terms = (cross_entropy, dac_kl, replace(span, keep=divergence.kept))
        assert_equal_to_dense(make_head(), target, terms, chunk_bytes=chunk_bytes, compiled=compiled, into_grad=True)


def test_compiled_terms_equal_the_dense_ones_and_are_compiled_once_for_all_tiles_and_steps(compiler):
    divergence, head = Gate(), make_head(scale=0.7, softcap=5.0)
    assert_equal_to_dense(head, target, all_terms(divergence), compiled=True)
    once = counters["stats"]["unique_graphs"]
    assert once == 2, "one for rows that have a teacher, one for rows that have none"
    assert_equal_to_dense(head, target, all_terms(divergence, coefficient=0.1), compiled=True)
    assert counters["stats"]["unique_graphs"] == once


def test_a_compiled_divergence_equals_the_dense_one_below_a_frozen_head(compiler):
    frozen = Head(normal(VOCABULARY, WIDTH, key="weight"))
    terms = (DivergenceTerm(0.5, JensenShannon(temperature=2.0), DISTILLED),)
    assert_equal_to_dense(frozen, target, terms, compiled=True)


def test_terms_that_do_not_compile_run_uncompiled_with_one_warning():
    class Breaks(torch.nn.Module):
        def forward(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return ForwardKL()(logq_NV, logp_NV)

    terms = (DivergenceTerm(0.5, Breaks(), DISTILLED),)
    with pytest.warns(UserWarning, match=r"training\.compile: the loss terms cannot be compiled") as caught:
        assert_equal_to_dense(make_head(), target, terms, compiled=True)
    assert len([warning for warning in caught if "training.compile" in str(warning.message)]) == 1


def test_many_kinds_of_terms_are_compiled_in_one_process(monkeypatch):
    """Dynamo rejects a ninth compilation of the same code, and a program may start many runs."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **settings: compile_(function, backend="eager", **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature in range(1, 12):
            terms = (DivergenceTerm(0.5, ForwardKL(temperature=float(temperature)), DISTILLED),)
            assert_equal_to_dense(make_head(), target, terms, compiled=True)


def test_auto_compiles_large_vocabularies_where_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/" + name)
    assert compiles("auto", 50257, "cpu") and not compiles("auto", 300, "cpu")
    assert compiles("rows", 300, "cpu") and compiles("all", 300, "cpu") and not compiles("none", 50257, "cpu")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not compiles("auto", 50257, "cpu")


# --- gradients in place -------------------------------------------------------------------------------------------------


def test_a_tied_weight_collects_the_gradients_of_embedding_and_head_over_micro_batches():
    def gradient(in_place: bool) -> torch.Tensor:
        weight = normal(VOCABULARY, WIDTH, key="weight").requires_grad_()
        for step in range(2):
            hidden = weight[(torch.arange(ROWS) + step) % VOCABULARY].tanh()
            terms = (DivergenceTerm(0.5, ReverseKL(), DISTILLED),)
            vocab_pass(hidden, Head(weight), target, terms, TILE, into_grad=in_place)[0].backward()
        assert weight.grad is not None
        return weight.grad

    torch.testing.assert_close(gradient(in_place=True), gradient(in_place=False), rtol=1e-6, atol=1e-6)


def test_into_grad_is_rejected_where_backward_scales():
    objective, _ = vocab_pass(
        hidden_states(), make_head(), target, (DivergenceTerm(0.5, ReverseKL(), DISTILLED),), into_grad=True
    )
    with pytest.raises(RuntimeError, match="backward needs a gradient of 1"):
        (2 * objective).backward()


@pytest.mark.parametrize("kind", ["not a leaf", "half precision"])
def test_a_weight_whose_grad_cannot_hold_the_sum_gets_its_gradient_from_backward(kind):
    leaf = normal(VOCABULARY, WIDTH, key="weight").requires_grad_()
    weight = leaf * 2 if kind == "not a leaf" else leaf.detach().bfloat16().requires_grad_()
    terms = (DivergenceTerm(0.5, ReverseKL(), DISTILLED),)
    objective, _ = vocab_pass(hidden_states(), Head(weight), target, terms, TILE, into_grad=True)
    root = leaf if kind == "not a leaf" else weight
    assert root.grad is None
    objective.backward()
    assert root.grad is not None and float(root.grad.norm()) > 0


# --- teachers that list classes -----------------------------------------------------------------------------------------


def listing(top: int):
    """The teacher that lists its `top` most probable classes."""

    def listed_target(rows: slice) -> TopClasses:
        logp_NV = target(rows).log_softmax(dim=-1)
        listed = logp_NV.topk(top)
        rest_N = logp_NV.scatter(1, listed.indices, -math.inf).logsumexp(dim=-1)
        return TopClasses(listed.indices, listed.values, rest_N)

    return listed_target


@pytest.mark.parametrize("divergence", [m for m in MEMBERS if m.temperature == 1.0], ids=repr)
def test_a_list_of_the_whole_vocabulary_equals_logits(divergence):
    terms = (DivergenceTerm(0.5, divergence, DISTILLED),)
    found, wanted = (hidden_states() for _ in range(2))
    vocab_pass(found, make_head(), listing(VOCABULARY), terms, TILE)[0].backward()
    dense_reference(wanted, make_head(), target, terms)[0].backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_listed_classes_and_one_bin_of_the_rest_are_compared(compiled, request):
    if compiled:
        request.getfixturevalue("compiler")
    head, terms = make_head(), (DivergenceTerm(1.0, ForwardKL(), DISTILLED),)
    assert_equal_to_dense(head, listing(4), terms, compiled=compiled)
    q = torch.softmax(head.logits(hidden_states())[:DISTILLED].double(), -1).detach().numpy()
    listed = listing(4)(slice(0, DISTILLED))
    p_listed, p_rest = listed.logp_NK.double().exp().numpy(), listed.log_rest_N.double().exp().numpy()
    q_listed = q[torch.arange(DISTILLED)[:, None], listed.class_NK]
    expected = (p_listed * np.log(p_listed / q_listed)).sum() + (p_rest * np.log(p_rest / (1 - q_listed.sum(1)))).sum()
    assert float(vocab_pass(hidden_states(), head, listing(4), terms)[1]["divergence"]) == pytest.approx(expected, rel=1e-5)


def test_statistics_need_the_whole_vocabulary():
    with pytest.raises(AssertionError, match="all classes are needed"):
        row_statistics(normal(DISTILLED, WIDTH, key="hidden"), make_head(), listing(4), ["forward_kl"])


@pytest.mark.parametrize(
    "objective",
    [Objective(divergence=ReverseKL(), span_weight=1.0), Objective(divergence=DacKLConfig())],
    ids=["spans", "dac_kl"],
)
def test_objectives_that_need_the_whole_vocabulary_reject_a_teacher_that_lists(objective):
    lists, whole = TeacherCapabilities(full_vocabulary=False, top_k=8), TeacherCapabilities(full_vocabulary=True)
    row = replace(METHODS["kd"], objective=objective)
    assert "whole vocabulary" in str(mismatch(row, lists, LOCAL))
    assert mismatch(row, whole, LOCAL) is None
    assert mismatch(replace(row, objective=Objective(divergence=ReverseKL())), lists, LOCAL) is None
