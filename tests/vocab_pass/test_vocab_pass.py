"""The vocabulary pass: equal to plain autograd for every cut, in fp32 for any input; and row statistics."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from redistill.losses.clip_network import ClipNetworkConfig
from redistill.losses.clip_ranks import Mode
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.losses.divergences import ForwardKL, ReverseKL
from redistill.losses.span import SpanConfig, pair_weights
from redistill.randomness import generator
from redistill.vocab_pass import (
    NUMBERS_PER_DRAW,
    CrossEntropyTerm,
    DivergenceTerm,
    Head,
    PolicyGradientTerm,
    SpanTerm,
    chunk_budget,
    cutting,
    dense_reference,
    row_statistics,
    sample_rows,
    vocab_pass,
)
from redistill.vocab_pass.cutting import TILE_TENSORS

ROWS, DISTILLED, WIDTH, VOCABULARY, PADDED = 17, 12, 6, 11, 13

# Rows x [vocabulary] in a quarter of the budget: a block has half as many again, a tile a tenth.
BUDGETS = [1, 2, 5, 10, 20, 10_000]


def normal(*shape: int, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(generator(0, "vocab-pass-test", key).normal(size=shape)).to(dtype)


def forward_kl(logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
    return (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)


class Gated(torch.nn.Module):
    """A trainable divergence like DAC-KL: one gate per class, and diagnostics by row."""

    def __init__(self, vocabulary: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate_V = torch.nn.Parameter(normal(vocabulary, key="gate", dtype=dtype))
        self.unused = torch.nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, logq_NV, logp_NV):
        gate_V = self.gate_V.sigmoid()
        kept_mass_N = (logp_NV.exp() * gate_V).sum(-1)
        return (gate_V * logp_NV.exp() * (logp_NV - logq_NV)).sum(-1), {
            "kept_mass": kept_mass_N,
            "rows": torch.ones(len(logq_NV)),
        }


class Teacher:
    """A target that records the rows of each call."""

    def __init__(self, logp_NV: torch.Tensor) -> None:
        self.logp_NV = logp_NV
        self.asked: list[slice] = []

    def __call__(self, rows: slice) -> torch.Tensor:
        self.asked.append(rows)
        return self.logp_NV[rows]


def teacher(num_rows: int = DISTILLED, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float64) -> Teacher:
    return Teacher(torch.log_softmax(normal(num_rows, vocabulary, key="teacher", dtype=dtype), dim=-1))


def cross_entropy_term() -> CrossEntropyTerm:
    random = generator(0, "vocab-pass-test", "targets")
    target_N = torch.from_numpy(random.integers(0, VOCABULARY, ROWS))
    return CrossEntropyTerm(0.3, target_N, torch.from_numpy(random.random(ROWS) < 0.6))


def span_term(squared: bool = False) -> SpanTerm:
    # Two samples of 7 and 5 rows: no pair across them, and a span across nearly every cut.
    first, second = pair_weights([(0, 7), (2, 4)], 7, SpanConfig()), pair_weights([(1, 5), (0, 1)], 5, SpanConfig())
    return SpanTerm(0.7, torch.cat([first, second]), squared)


def policy_gradient_term() -> PolicyGradientTerm:
    """A term on the distilled rows, with ratios on both sides of the clip and advantages of both signs."""
    return PolicyGradientTerm(
        0.9,
        token_N=torch.arange(DISTILLED) * 3 % VOCABULARY,
        old_logprob_N=normal(DISTILLED, key="old") - 3.0,
        advantage_N=normal(DISTILLED, key="advantage"),
        importance_N=normal(DISTILLED, key="importance").exp(),
        clip=0.2,
    )


def all_terms(divergence) -> tuple:
    return cross_entropy_term(), DivergenceTerm(0.5, divergence, DISTILLED), span_term()


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"softcap": 3.0},
    "scale": {"scale": 0.4},
    "sliced": {"padded": True, "bias": True},
    "everything": {"bias": True, "softcap": 3.0, "scale": 1.7, "padded": True},
}


def make_head(dtype, *, bias=False, softcap=None, scale=1.0, padded=False) -> Head:
    classes = PADDED if padded else VOCABULARY
    return Head(
        normal(classes, WIDTH, key="weight", dtype=dtype).requires_grad_(),
        normal(classes, key="bias", dtype=dtype).requires_grad_() if bias else None,
        softcap=softcap,
        scale=scale,
        vocabulary=VOCABULARY if padded else None,
    )


def hidden_states(dtype=torch.float64, num_rows=ROWS) -> torch.Tensor:
    return normal(num_rows, WIDTH, key="hidden", dtype=dtype).requires_grad_()


def gradients(objective: torch.Tensor, inputs) -> list[torch.Tensor]:
    return list(torch.autograd.grad(objective * 3.0, inputs, allow_unused=True, materialize_grads=True))


def chunk_bytes(budget: int, dtype: torch.dtype) -> int:
    return 4 * VOCABULARY * dtype.itemsize * budget


# --- equal to the dense reference ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_every_cut_equals_plain_autograd_in_values_and_gradients(kind, budget, dtype, tolerance):
    hidden, head, target = hidden_states(dtype), make_head(dtype, **HEADS[kind]), teacher(dtype=dtype)
    divergence = Gated(VOCABULARY, dtype)
    inputs = [hidden, head.weight_VD, *divergence.parameters(), *([] if head.bias_V is None else [head.bias_V])]

    objective, sums = vocab_pass(hidden, head, target, all_terms(divergence), chunk_bytes(budget, dtype))
    expected, expected_sums = dense_reference(hidden, head, target, all_terms(divergence))

    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(objective, expected, **close)
    assert sums.keys() == expected_sums.keys() == {"sft", "divergence", "span", "kept_mass", "rows"}
    for name, value in sums.items():
        torch.testing.assert_close(value, expected_sums[name].to(value), **close)
        assert not value.requires_grad
    for found, wanted in zip(gradients(objective, inputs), gradients(expected, inputs), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, wanted, **close)


@pytest.mark.parametrize("budget", BUDGETS)
def test_tied_embeddings_get_both_gradients(budget):
    weight = normal(VOCABULARY, WIDTH, key="weight").requires_grad_()
    ids = torch.arange(ROWS) % VOCABULARY
    terms = all_terms(forward_kl)
    found = vocab_pass(weight[ids].tanh(), Head(weight), teacher(), terms, chunk_bytes(budget, torch.float64))[0]
    wanted = dense_reference(weight[ids].tanh(), Head(weight), teacher(), terms)[0]
    torch.testing.assert_close(gradients(found, [weight]), gradients(wanted, [weight]), rtol=1e-10, atol=1e-10)


def test_larger_budgets_enlarge_blocks_and_not_tiles(monkeypatch):
    row = VOCABULARY * 8  # bytes in float64
    monkeypatch.setattr(cutting, "LEAST_CHUNK_BYTES", 4 * TILE_TENSORS * 2 * row)
    monkeypatch.setattr(cutting, "MOST_CHUNK_BYTES", 4 * TILE_TENSORS * 4 * row)
    inside, above = (cutting.cut_rows(cutting.chunk_budget(size), row, compiled=False) for size in (1, 2**40))
    assert (inside.tile, above.tile) == (2, 2) and above.block == 2 * inside.block
    hidden, head, target = hidden_states(), make_head(torch.float64, **HEADS["everything"]), teacher()
    found, wanted = (each(hidden, head, target, all_terms(forward_kl))[0] for each in (vocab_pass, dense_reference))
    inputs = [hidden, head.weight_VD, head.bias_V]
    torch.testing.assert_close(gradients(found, inputs), gradients(wanted, inputs), rtol=1e-10, atol=1e-10)


def test_values_equal_equations_in_numpy():
    hidden, head, target = hidden_states(), make_head(torch.float64), teacher()
    sft, divergence, span = all_terms(forward_kl)
    objective, sums = vocab_pass(hidden, head, target, (sft, divergence, span), chunk_bytes(10, torch.float64))

    logits = hidden.detach().numpy() @ head.weight_VD.detach().numpy().T
    logq = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    logp, q, p = target.logp_NV.numpy(), np.exp(logq), target.logp_NV.exp().numpy()
    expected = {
        "sft": -logq[np.arange(ROWS), sft.target_N][sft.mask_N.numpy()].sum(),
        "divergence": (p * (logp - logq[:DISTILLED])).sum(),
        "span": sum(
            float(span.pair_weight_N[n]) * np.linalg.norm(q[n] * q[n + 1] - p[n] * p[n + 1]) for n in range(DISTILLED - 1)
        ),
    }
    assert {name: float(value) for name, value in sums.items()} == pytest.approx(expected, rel=1e-10)
    assert float(objective.detach()) == pytest.approx(
        0.3 * expected["sft"] + 0.5 * expected["divergence"] + 0.7 * expected["span"]
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_spans_alone_take_their_rows_from_their_weights(budget):
    hidden, head, target = hidden_states(), make_head(torch.float64), teacher()
    found, sums = vocab_pass(hidden, head, target, [span_term(squared=True)], chunk_bytes(budget, torch.float64))
    wanted, _ = dense_reference(hidden, head, target, [span_term(squared=True)])
    inputs = [hidden, head.weight_VD]
    torch.testing.assert_close(gradients(found, inputs), gradients(wanted, inputs), rtol=1e-10, atol=1e-10)
    assert sums.keys() == {"span"}
    assert max(rows.stop for rows in target.asked) == DISTILLED


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize(
    "others",
    [
        (),
        (DivergenceTerm(0.5, ReverseKL(), DISTILLED),),
        (cross_entropy_term(), DivergenceTerm(0.5, forward_kl, DISTILLED), span_term()),
    ],
    ids=["alone", "reverse_kl", "all"],
)
def test_a_policy_gradient_equals_plain_autograd_for_every_cut_and_other_terms(budget, others):
    hidden, head, target = hidden_states(), make_head(torch.float64, **HEADS["everything"]), teacher()
    terms = (*others, policy_gradient_term())
    objective, sums = vocab_pass(hidden, head, target, terms, chunk_bytes(budget, torch.float64))
    expected, expected_sums = dense_reference(hidden, head, target, terms)

    torch.testing.assert_close(objective, expected, rtol=1e-10, atol=1e-10)
    assert sums.keys() == expected_sums.keys() == {term.name for term in terms} | {"ratio", "clipped"}
    torch.testing.assert_close(sums, expected_sums, rtol=1e-10, atol=1e-10)
    assert 0 < float(sums["clipped"]) < DISTILLED, "the case must have rows that are clipped and rows that are not"
    inputs = [hidden, head.weight_VD, head.bias_V]
    torch.testing.assert_close(gradients(objective, inputs), gradients(expected, inputs), rtol=1e-10, atol=1e-10)


def test_a_policy_gradient_needs_no_teacher_and_affects_its_own_rows_only():
    hidden, head, term = hidden_states(), make_head(torch.float64), policy_gradient_term()
    objective, sums = vocab_pass(hidden, head, None, [term], chunk_bytes(5, torch.float64))
    objective.backward()

    logits = hidden.detach().numpy()[:DISTILLED] @ head.weight_VD.detach().numpy().T
    logq = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(DISTILLED), term.token_N]
    ratio = np.exp(logq - term.old_logprob_N.numpy()) * term.importance_N.numpy()
    loss = np.maximum(-term.advantage_N.numpy() * ratio, -term.advantage_N.numpy() * np.clip(ratio, 0.8, 1.2))
    assert float(objective.detach()) == pytest.approx(0.9 * loss.sum())
    assert float(sums["policy_gradient"]) == pytest.approx(loss.sum())
    assert float(sums["ratio"]) == pytest.approx(ratio.sum())
    clipped = (term.advantage_N.numpy() * (np.clip(ratio, 0.8, 1.2) - ratio)) < 0
    assert float(sums["clipped"]) == clipped.sum()
    still = hidden.grad.abs().sum(1).numpy() == 0
    assert np.array_equal(still, np.concatenate([clipped, np.ones(ROWS - DISTILLED, dtype=bool)]))


def test_without_rows_of_roll_outs_the_sum_is_zero():
    none = torch.zeros(0)
    term = PolicyGradientTerm(1.0, none.long(), none, none, none, 0.2)
    objective, sums = vocab_pass(hidden_states(), make_head(torch.float64), None, [term])
    assert float(objective.detach()) == 0.0 and sums.keys() == {"policy_gradient"}


def test_sums_have_the_names_of_their_terms():
    target_N, mask_N = torch.arange(ROWS) % VOCABULARY, torch.ones(ROWS, dtype=torch.bool)
    terms = (
        CrossEntropyTerm(0.5, target_N, mask_N, name="pretraining"),
        DivergenceTerm(0.5, forward_kl, ROWS, name="pretraining_kl"),
    )
    _, sums = vocab_pass(hidden_states(), make_head(torch.float64), teacher(ROWS), terms)
    assert sums.keys() == {"pretraining", "pretraining_kl"}
    with pytest.raises(AssertionError, match="each with its own name"):
        vocab_pass(hidden_states(), make_head(torch.float64), teacher(ROWS), [replace(term, name="same") for term in terms])
    with pytest.raises(AssertionError, match="two terms have the same class or name"):
        vocab_pass(hidden_states(), make_head(torch.float64), None, [terms[0], replace(terms[0], name="other")])


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("mode", get_args(Mode))
def test_spans_clipped_by_what_the_divergence_keeps_equal_plain_autograd(mode, budget):
    config = DacKLConfig(network=ClipNetworkConfig(hidden=3, upper_bias=2.0, lower_bias=-2.0), mode=mode)
    divergence = DacKL(config, VOCABULARY, seed=1).double()
    hidden, head, target = hidden_states(), make_head(torch.float64), teacher()
    terms = cross_entropy_term(), DivergenceTerm(0.5, divergence, DISTILLED), replace(span_term(), keep=divergence.kept)
    found, sums = vocab_pass(hidden, head, target, terms, chunk_bytes(budget, torch.float64))
    wanted, wanted_sums = dense_reference(hidden, head, target, terms)
    inputs = [hidden, head.weight_VD, *divergence.parameters()]
    torch.testing.assert_close(gradients(found, inputs), gradients(wanted, inputs), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sums["span"], wanted_sums["span"], rtol=1e-10, atol=1e-10)

    logq_NV = head.logits(hidden).log_softmax(-1).detach()
    keep_NV = divergence.kept(logq_NV[:DISTILLED], target.logp_NV)
    q_NV, p_NV = (rows[:DISTILLED].exp() * keep_NV for rows in (logq_NV, target.logp_NV))
    distance = (q_NV[:-1] * q_NV[1:] - p_NV[:-1] * p_NV[1:]).norm(dim=-1)
    assert float(sums["span"]) == pytest.approx(float((span_term().pair_weight_N[:-1] * distance).sum()), abs=1e-10)
    assert float(sums["span"]) != pytest.approx(float(dense_reference(hidden, head, target, [span_term()])[1]["span"]))


# --- calls of the target, and gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_target_is_called_for_distilled_rows_only_and_block_by_block(budget):
    target = teacher()
    vocab_pass(hidden_states(), make_head(torch.float64), target, all_terms(forward_kl), chunk_bytes(budget, torch.float64))
    assert sorted({n for rows in target.asked for n in range(rows.start, rows.stop)}) == list(range(DISTILLED))
    assert max(rows.stop - rows.start for rows in target.asked) <= 3 * budget // 2 + 1


def test_cross_entropy_alone_needs_no_teacher():
    hidden, head = hidden_states(), make_head(torch.float64)
    objective, sums = vocab_pass(hidden, head, None, [cross_entropy_term()])
    torch.testing.assert_close(objective, dense_reference(hidden, head, None, [cross_entropy_term()])[0])
    assert sums.keys() == {"sft"}


def test_a_masked_impossible_target_does_not_count():
    head = Head(torch.zeros(2, WIDTH, dtype=torch.float64), torch.tensor([0.0, -math.inf], dtype=torch.float64))
    hidden = hidden_states(num_rows=1)
    objective, _ = vocab_pass(hidden, head, None, [CrossEntropyTerm(1.0, torch.tensor([1]), torch.tensor([False]))])
    objective.backward()
    assert float(objective.detach()) == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


@pytest.mark.parametrize("num_rows", [0, ROWS])
def test_every_trainable_input_gets_a_gradient_if_no_term_uses_it(num_rows):
    hidden, head, divergence = (
        hidden_states(num_rows=num_rows),
        make_head(torch.float64, bias=True),
        Gated(VOCABULARY, torch.float64),
    )
    objective, sums = vocab_pass(hidden, head, None, [DivergenceTerm(1.0, divergence, 0)])
    objective.backward()
    for tensor in (hidden, head.weight_VD, head.bias_V, *divergence.parameters()):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))
    assert float(sums["divergence"]) == float(objective.detach()) == 0.0


def test_a_frozen_head_gets_no_gradient_and_the_body_the_same_one():
    hidden, head, terms = hidden_states(), make_head(torch.float64, bias=True), all_terms(forward_kl)
    frozen = replace(head, weight_VD=head.weight_VD.detach(), bias_V=head.bias_V.detach())
    found = gradients(vocab_pass(hidden, frozen, teacher(), terms)[0], [hidden])
    torch.testing.assert_close(found, gradients(vocab_pass(hidden, head, teacher(), terms)[0], [hidden]))
    assert frozen.weight_VD.grad is None


def test_a_head_learns_above_frozen_hidden_states():
    hidden, head, terms = hidden_states().detach(), make_head(torch.float64), all_terms(forward_kl)
    found = gradients(vocab_pass(hidden, head, teacher(), terms)[0], [head.weight_VD])
    torch.testing.assert_close(found, gradients(dense_reference(hidden, head, teacher(), terms)[0], [head.weight_VD]))


def test_without_gradients_the_values_are_the_same_and_have_no_graph():
    hidden, head, terms = hidden_states(), make_head(torch.float64), all_terms(forward_kl)
    with torch.no_grad():
        objective, sums = vocab_pass(hidden, head, teacher(), terms)
    expected, expected_sums = vocab_pass(hidden, head, teacher(), terms)
    assert not objective.requires_grad
    assert torch.equal(objective, expected.detach())
    assert sums == expected_sums


def test_a_second_backward_is_rejected():
    objective, _ = vocab_pass(hidden_states(), make_head(torch.float64), None, [cross_entropy_term()])
    objective.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="backward can be called only once"):
        objective.backward()


def test_three_dimensional_hidden_states_are_rejected():
    with pytest.raises(AssertionError, match=r"shape \(2, 3, 6\): pick the rows"):
        vocab_pass(torch.zeros(2, 3, WIDTH), make_head(torch.float32), None, [])


# --- precision ----------------------------------------------------------------------------------------------------------


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def test_bf16_models_get_gradients_of_fp32_logits_near_convergence():
    hidden64 = normal(64, 32, key="wide").bfloat16().double()
    weight64 = normal(200, 32, key="wide-weight").bfloat16().double()
    near = torch.log_softmax((hidden64 + 0.01 * normal(64, 32, key="noise")) @ weight64.T, dim=-1)
    terms = [DivergenceTerm(1 / 64, forward_kl, 64)]

    exact = [hidden64.clone().requires_grad_(), weight64.clone().requires_grad_()]
    loss64, _ = dense_reference(exact[0], Head(exact[1]), Teacher(near), terms)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
    loss, _ = vocab_pass(half[0], Head(half[1]), Teacher(near.float()), terms, chunk_bytes=60_000)

    assert float(loss64.detach()) < 0.003, "the case must be one where rounded logits would fail"
    assert loss.dtype == torch.float32
    assert relative_error(loss.detach(), loss64.detach()) < 1e-3
    for found, wanted in zip(gradients(loss, half), gradients(loss64, exact), strict=True):
        assert found.dtype == torch.bfloat16
        assert relative_error(found, wanted) < 0.005


def test_autocast_does_not_round_logits_or_terms():
    seen = []

    def spy(logq_NV, logp_NV):
        seen.append((logq_NV @ logq_NV.T).dtype)
        return forward_kl(logq_NV, logp_NV)

    hidden, head = hidden_states(torch.float32), make_head(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head.logits(hidden)
        objective, _ = vocab_pass(hidden, head, teacher(dtype=torch.float32), [DivergenceTerm(1.0, spy, DISTILLED)])
    rounded = hidden.bfloat16().double() @ head.weight_VD.bfloat16().double().T
    full = hidden.double() @ head.weight_VD.double().T
    assert logits.dtype == objective.dtype == seen[0] == torch.float32
    assert min(relative_error(logits, rounded), relative_error(logits, full)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_logits_are_float32_and_a_prepared_head_gives_the_same(dtype):
    hidden, head = hidden_states(dtype), make_head(dtype, **HEADS["everything"])
    logits = head.logits(hidden)
    assert logits.dtype == torch.float32
    assert logits.shape == (ROWS, VOCABULARY)
    with torch.no_grad():
        assert torch.equal(head.prepared(hidden).logits(hidden), logits)


def test_the_precision_of_other_products_is_unchanged():
    before = torch.backends.mkldnn.matmul.fp32_precision
    make_head(torch.bfloat16).logits(hidden_states(torch.bfloat16))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    with pytest.raises(RuntimeError):
        make_head(torch.bfloat16).logits(torch.zeros(2, WIDTH + 1, dtype=torch.bfloat16))
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    ("classes", "width", "megabytes"), [(32_000, 576, 192), (50_257, 768, 192), (151_936, 576, 333), (151_936, 3584, 1024)]
)
def test_a_larger_head_is_given_larger_blocks(classes, width, megabytes):
    head = Head(torch.empty(classes, width, device="meta"))
    assert chunk_budget(head.num_bytes) // 2**20 == megabytes
    assert chunk_budget(replace(head, vocabulary=32_000).num_bytes) <= chunk_budget(head.num_bytes)


# --- statistics ---------------------------------------------------------------------------------------------------------


ASK = (
    "forward_kl",
    "reverse_kl",
    "cross_entropy",
    "student_entropy",
    "teacher_entropy",
    "student_argmax",
    "teacher_argmax",
    "agreement",
    "acceptance",
    "top_overlap",
    "student_confidence",
    "student_logprob",
    "teacher_logprob",
    "teacher_sample",
)


@pytest.mark.parametrize("budget", [1, 7, 12, 10_000])
def test_statistics_equal_numpy_for_every_chunk(budget):
    hidden, head, target = hidden_states(), make_head(torch.float64, **HEADS["sliced"]), teacher(ROWS)
    token_N = torch.arange(ROWS) % VOCABULARY
    uniforms_NK = torch.from_numpy(generator(0, "uniforms").random((ROWS, NUMBERS_PER_DRAW)))
    found = row_statistics(
        hidden, head, target, ASK, uniforms_NK=uniforms_NK, token_N=token_N, chunk_bytes=chunk_bytes(budget, torch.float64)
    )

    logits = (hidden @ head.weight_VD[:VOCABULARY].T + head.bias_V[:VOCABULARY]).detach().numpy()
    logq, logp = logits - np.log(np.exp(logits).sum(1, keepdims=True)), target.logp_NV.numpy()
    q, p, rows = np.exp(logq), np.exp(logp), np.arange(ROWS)
    expected = {
        "forward_kl": (p * (logp - logq)).sum(1),
        "reverse_kl": (q * (logq - logp)).sum(1),
        "cross_entropy": -logq[rows, token_N],
        "student_entropy": -(q * logq).sum(1),
        "teacher_entropy": -(p * logp).sum(1),
        "student_argmax": logq.argmax(1),
        "teacher_argmax": logp.argmax(1),
        "agreement": logq.argmax(1) == logp.argmax(1),
        "acceptance": np.minimum(p, q).sum(1),
        "top_overlap": [len({*np.argsort(-a)[:10]} & {*np.argsort(-b)[:10]}) / min(10, VOCABULARY) for a, b in zip(p, q)],
        "student_confidence": q.max(1),
        "student_logprob": logq[rows, token_N],
        "teacher_logprob": logp[rows, token_N],
        "teacher_sample": sample_rows(torch.from_numpy(p), uniforms_NK).numpy(),
    }
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.shape == (ROWS,)
        assert not value.requires_grad
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


def test_statistics_are_finite_with_impossible_classes():
    logp = torch.tensor([[0.0, -math.inf, -math.inf]])
    head = Head(torch.zeros(3, WIDTH), torch.tensor([0.0, 0.0, -math.inf]))
    found = row_statistics(torch.zeros(1, WIDTH), head, Teacher(logp), ["forward_kl", "teacher_entropy", "student_entropy"])
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"forward_kl": math.log(2), "teacher_entropy": 0.0, "student_entropy": math.log(2)}
    )


def test_a_class_that_either_model_rules_out_adds_nothing_to_a_kl():
    logp = torch.tensor([[0.5, 0.5, 0.0]]).log()
    head = Head(torch.zeros(3, WIDTH), torch.tensor([0.0, -math.inf, 0.0]))
    found = row_statistics(torch.zeros(1, WIDTH), head, lambda rows: logp[rows], ["forward_kl", "reverse_kl"])
    logq = torch.tensor([[0.5, 0.0, 0.5]]).log()
    assert found["forward_kl"].item() == ForwardKL()(logq, logp).item() == 0
    assert found["reverse_kl"].item() == ReverseKL()(logq, logp).item() == 0


def test_the_target_is_not_called_if_no_statistic_needs_it():
    target = teacher(ROWS)
    row_statistics(hidden_states(), make_head(torch.float64), target, ["student_argmax", "student_entropy"])
    assert target.asked == []


def test_statistics_of_no_rows_are_empty_and_keep_their_types():
    found = row_statistics(hidden_states(num_rows=0), make_head(torch.float64), teacher(0), ["forward_kl", "teacher_argmax"])
    assert found["forward_kl"].shape == found["teacher_argmax"].shape == (0,)
    assert (found["forward_kl"].dtype, found["teacher_argmax"].dtype) == (torch.float64, torch.int64)


def test_an_unknown_statistic_is_rejected():
    with pytest.raises(AssertionError, match="no such statistic: perplexity"):
        row_statistics(hidden_states(), make_head(torch.float64), None, ["perplexity"])
