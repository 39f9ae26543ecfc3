"""The likelihood form of the span loss: NumPy in float64, the gradient, chunks, and teachers that list some classes."""

import numpy as np
import pytest
import torch

from redistill.contracts import TopClasses
from redistill.losses.phrase import phrase_rows
from redistill.randomness import generator
from redistill.vocab_pass import CrossEntropyTerm, Head, PhraseTerm, compiles, dense_reference, vocab_pass, with_phrases

ROWS, WIDTH, VOCABULARY = 11, 5, 40
PHRASES = ((0, 4, 0.5), (2, 5, 0.25), (5, 6, 0.25), (7, 11, 1.0))  # two overlap; one has a single row; row 6 has none


def normal(*shape: int, key: str, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(generator(0, "phrase-test", key).normal(size=shape)) * scale


def token_N() -> torch.Tensor:
    return torch.from_numpy(generator(0, "phrase-test", "tokens").integers(0, VOCABULARY, ROWS))


def oracle(difference: np.ndarray) -> float:
    """The loss as a loop over phrases."""
    total = 0.0
    for start, stop, weight in PHRASES:
        known = [value for value in difference[start:stop] if not np.isnan(value)]
        mean = sum(known) / len(known) if known else 0.0
        total += weight * (mean**2 / 2 if abs(mean) <= 1 else abs(mean) - 0.5)
    return total


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_value_and_derivative_are_those_of_the_loop(scale: float) -> None:
    difference = normal(ROWS, key="difference", scale=scale).numpy()
    difference[[1, 5]] = np.nan
    value_N, slope_N = phrase_rows(torch.from_numpy(difference), PHRASES)
    assert float(value_N.sum()) == pytest.approx(oracle(difference), abs=1e-12)
    for row in range(ROWS):
        above, below = difference.copy(), difference.copy()
        above[row] += 1e-6
        below[row] -= 1e-6
        assert float(slope_N[row]) == pytest.approx((oracle(above) - oracle(below)) / 2e-6, abs=1e-8)


def teacher(rows: slice) -> torch.Tensor:
    return normal(ROWS, VOCABULARY, key="teacher", scale=2.0)[rows]


def expected(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, known_N: torch.Tensor) -> torch.Tensor:
    """The loss by autograd on [N, V] tensors in float64."""
    logq_N = torch.log_softmax(hidden_ND @ weight_VD.T, -1).gather(1, token_N()[:, None])[:, 0]
    difference_N = logq_N - torch.log_softmax(teacher(slice(0, ROWS)), -1).gather(1, token_N()[:, None])[:, 0]
    total = hidden_ND.new_zeros(())
    for start, stop, weight in PHRASES:
        own = difference_N[start:stop][known_N[start:stop]]
        if len(own):
            total = total + weight * torch.nn.functional.huber_loss(own.mean(), torch.zeros_like(own.mean()))
    return total


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_the_pass_has_value_and_gradient_of_autograd_for_every_cut(chunk_rows: int) -> None:
    inputs = normal(ROWS, WIDTH, key="hidden").requires_grad_(), normal(VOCABULARY, WIDTH, key="head").requires_grad_()
    again = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    wanted = expected(*again, torch.ones(ROWS, dtype=torch.bool))
    (0.7 * wanted).backward()
    budget, head = chunk_rows * VOCABULARY * 8 * 10, Head(inputs[1])
    gold = CrossEntropyTerm(0.0, token_N(), torch.ones(ROWS, dtype=torch.bool))
    terms = with_phrases((gold, PhraseTerm(0.7, token_N(), PHRASES)), inputs[0], head, teacher, budget)
    loss, sums = vocab_pass(inputs[0], head, teacher, terms, budget)
    loss.backward()
    assert float(sums["span"]) == pytest.approx(float(wanted.detach()), abs=1e-10)
    for tensor, other in zip(inputs, again, strict=True):
        torch.testing.assert_close(tensor.grad, other.grad, rtol=0, atol=1e-9)
    torch.testing.assert_close(dense_reference(inputs[0], head, teacher, terms)[0], loss.detach())


def test_tokens_that_the_teacher_does_not_list_are_left_out() -> None:
    def listed(rows: slice) -> TopClasses:
        logp_NV = torch.log_softmax(teacher(rows), dim=-1)
        top = logp_NV.topk(20, dim=-1)
        return TopClasses(top.indices, top.values, torch.log1p(-top.values.exp().sum(-1)))

    hidden_ND, head = normal(ROWS, WIDTH, key="hidden"), Head(normal(VOCABULARY, WIDTH, key="head"))
    known_N = (listed(slice(0, ROWS)).class_NK == token_N()[:, None]).any(dim=1)
    assert 0 < int(known_N.sum()) < ROWS
    terms = with_phrases((PhraseTerm(1.0, token_N(), PHRASES),), hidden_ND, head, listed)
    _, sums = vocab_pass(hidden_ND, head, listed, terms)
    assert float(sums["span"]) == pytest.approx(float(expected(hidden_ND, head.weight_VD, known_N)), abs=1e-10)


def test_equal_models_have_no_loss_and_no_gradient() -> None:
    hidden_ND, head = normal(ROWS, WIDTH, key="hidden").requires_grad_(), Head(normal(VOCABULARY, WIDTH, key="head"))
    same = head.logits(hidden_ND.detach())
    terms = with_phrases((PhraseTerm(1.0, token_N(), PHRASES),), hidden_ND, head, lambda rows: same[rows])
    loss, _ = vocab_pass(hidden_ND, head, None, terms)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-20)
    assert float(hidden_ND.grad.abs().max()) < 1e-14


def test_a_compiled_pass_has_the_same_loss() -> None:
    if not compiles("auto", 10**6, "cpu"):
        pytest.skip("no C++ compiler on this machine")
    hidden_ND, head = normal(ROWS, WIDTH, key="hidden").float(), Head(normal(VOCABULARY, WIDTH, key="head").float())
    found = []
    for compiled in (False, True):
        own_ND = hidden_ND.clone().requires_grad_()
        terms = with_phrases((PhraseTerm(1.0, token_N(), PHRASES),), own_ND, head, teacher)
        loss, _ = vocab_pass(own_ND, head, teacher, terms, 5 * VOCABULARY * 4, compiled=compiled)
        loss.backward()
        found.append((loss.detach(), own_ND.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
