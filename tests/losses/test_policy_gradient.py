"""MiniLLM's arithmetic: hand-computed numbers, and a float64 oracle in loops over ragged rows."""

import math

import numpy as np
import pytest
import torch

from redistill.losses.policy_gradient import clipped_surrogate, discounted_returns, importance_weights, token_rewards, whiten
from redistill.randomness import generator

LENGTHS = (5, 1, 8, 3)


def rows(key: str, *, longest: int = max(LENGTHS)) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows of different lengths, with random values as padding, and the mask of valid tokens."""
    values = generator(0, "policy-gradient-test", key).normal(size=(len(LENGTHS), longest))
    valid = np.arange(longest) < np.array(LENGTHS)[:, None]
    return torch.from_numpy(np.where(valid, values, 1e6)), torch.from_numpy(valid)


def ragged(padded_BT: torch.Tensor) -> list[np.ndarray]:
    return [row[:length].numpy() for row, length in zip(padded_BT, LENGTHS, strict=True)]


# --- rewards ------------------------------------------------------------------------------------------------------------


def test_rewards_are_scaled_first_and_clipped_afterwards():
    """(log p - log q) / 0.5: 2 x 3 = 6; 2 x -60 = -120 is cut, while -60 before the scaling would not have been."""
    reward = token_rewards(torch.tensor([-1.0, -61.0, -1.0]), torch.tensor([-4.0, -1.0, -99.0]))
    assert reward.tolist() == [6.0, -100.0, 100.0]


def test_a_token_that_the_teacher_rules_out_has_the_lowest_reward():
    assert token_rewards(torch.tensor([-math.inf]), torch.tensor([-1.0]), scaling=1.0, clip=7.0).tolist() == [-7.0]


# --- returns ------------------------------------------------------------------------------------------------------------


def test_returns_by_hand():
    """gamma = 1/2 over rewards 8, 4, 2: 8 + 2 + 1/2, 4 + 1, 2; then over 3, 2 and 1 remaining tokens."""
    reward, valid = torch.tensor([[8.0, 4.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool)
    plain = discounted_returns(reward, valid, discount=0.5, length_normalise=False)
    assert plain.tolist() == [[10.5, 5.0, 2.0]]
    assert discounted_returns(reward, valid, discount=0.5).tolist() == [[3.5, 2.5, 2.0]]


@pytest.mark.parametrize("length_normalise", [True, False])
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.95, 1.0])
def test_returns_equal_the_sum_in_loops(discount, length_normalise):
    reward, valid = rows("rewards")
    found = discounted_returns(reward, valid, discount=discount, length_normalise=length_normalise)
    for returns, row in zip(ragged(found), ragged(reward), strict=True):
        sums = [sum(discount ** (later - t) * row[later] for later in range(t, len(row))) for t in range(len(row))]
        remaining = [len(row) - t if length_normalise else 1 for t in range(len(row))]
        np.testing.assert_allclose(returns, np.array(sums) / remaining, rtol=1e-12)
    assert found[~valid].tolist() == [0.0] * int((~valid).sum())
    assert found.dtype == torch.float64


# --- whitening ----------------------------------------------------------------------------------------------------------


def test_whitening_by_hand():
    """1, 3, 5 have mean 3 and population variance 8 / 3."""
    returns, valid = torch.tensor([[1.0, 3.0], [5.0, 9.0]]).double(), torch.tensor([[True, True], [True, False]])
    step = 2 / math.sqrt(8 / 3)
    torch.testing.assert_close(whiten(returns, valid), torch.tensor([[-step, 0.0], [step, 0.0]]).double())


def test_whitening_with_counted_padding_by_hand():
    """With one zero more, 1, 3, 5, 0 have mean 9 / 4 and population variance 35 / 4 - 81 / 16 = 59 / 16."""
    returns, valid = torch.tensor([[1.0, 3.0], [5.0, 0.0]]).double(), torch.tensor([[True, True], [True, False]])
    expected = (np.array([1, 3, 5]) - 9 / 4) / math.sqrt(59 / 16)
    found = whiten(returns, valid, padded_length=2)
    np.testing.assert_allclose(found[valid].numpy(), expected, rtol=1e-7)
    assert found[1, 1] == 0


def test_valid_tokens_whiten_to_mean_zero_and_variance_one_over_the_whole_batch():
    returns, valid = rows("returns")
    advantages = whiten(returns, valid)[valid].numpy()
    assert advantages.mean() == pytest.approx(0, abs=1e-12)
    assert advantages.var() == pytest.approx(1, rel=1e-6)
    assert abs(whiten(returns, valid)[0][valid[0]].mean()) > 0.01, "one sequence alone is not whitened"


@pytest.mark.parametrize("padded_length", [max(LENGTHS), 20])
def test_counted_padding_equals_whitening_of_arrays_with_zeros(padded_length):
    returns, valid = rows("returns")
    array = np.zeros((len(LENGTHS), padded_length))
    for row, values in zip(array, ragged(returns), strict=True):
        row[: len(values)] = values
    expected = (array - array.mean()) / np.sqrt(array.var() + 1e-8)
    found = whiten(returns, valid, padded_length=padded_length)
    for row, expected_row, length in zip(ragged(found), expected, LENGTHS, strict=True):
        np.testing.assert_allclose(row, expected_row[:length], rtol=1e-12)


@pytest.mark.parametrize("padded_length", [None, 4])
def test_equal_returns_stay_finite(padded_length):
    returns, valid = torch.full((2, 4), 3.0), torch.ones(2, 4, dtype=torch.bool)
    assert whiten(returns, valid, padded_length=padded_length).tolist() == [[0.0] * 4] * 2


def test_a_padded_length_below_the_rows_is_rejected():
    with pytest.raises(AssertionError, match="padded_length = 1"):
        whiten(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), padded_length=1)


# --- importance weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_importance_weights_are_the_students_fraction_of_the_mixture(share):
    random = generator(0, "policy-gradient-test", "importance")
    p, q = random.random(50), random.random(50)
    found = importance_weights(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q)), share)
    np.testing.assert_allclose(found, q / ((1 - share) * q + share * p), rtol=1e-12)


def test_importance_weights_stay_in_their_range_at_the_extremes():
    logp, logq = torch.tensor([-math.inf, -1.0, -1.0]), torch.tensor([-1.0, -300.0, -1.0])
    assert importance_weights(logp, logq, 0.2).tolist() == [1.25, 0.0, 1.0]
    assert importance_weights(logp, logq, 0.0).tolist() == [1.0, 1.0, 1.0]


# --- the clipped loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "advantage", "importance", "loss", "slope"),
    [
        (0.25, 2.0, 1.0, -2.0, -2.0),  # rho 1
        (0.35, 2.0, 1.0, -2.4, 0.0),  # rho 1.4, positive advantage: clipped
        (0.35, -2.0, 1.0, 2.8, 2.8),  # rho 1.4, negative advantage: not clipped
        (0.10, 2.0, 1.0, -0.8, -0.8),  # rho 0.4, positive advantage: not clipped
        (0.10, -2.0, 1.0, 1.6, 0.0),  # rho 0.4, negative advantage: clipped
        (0.35, 2.0, 0.5, -1.4, -1.4),  # the weight halves rho to 0.7, positive advantage: not clipped
        (0.25, -2.0, 0.5, 1.6, 0.0),  # clipping acts on the product: rho 0.5, although q is unchanged
        (0.50, 0.0, 1.0, 0.0, 0.0),
    ],
)
def test_the_loss_of_a_token_and_its_slope_by_hand(q, advantage, importance, loss, slope):
    logq = torch.tensor([math.log(q)], dtype=torch.float64, requires_grad=True)
    old, advantage_N, importance_N = (
        torch.tensor([value], dtype=torch.float64) for value in (math.log(0.25), advantage, importance)
    )
    found = clipped_surrogate(logq, old, advantage_N, importance_N, clip=0.2)
    found.loss_N.sum().backward()
    assert found.loss_N.item() == pytest.approx(loss)
    assert logq.grad.item() == pytest.approx(slope)
    assert found.ratio_N.item() == pytest.approx(q / 0.25 * importance)
    assert found.clipped_N.item() == (slope == 0 and advantage != 0)


def test_the_loss_equals_a_numpy_oracle_and_its_gradient_finite_differences():
    random = generator(0, "policy-gradient-test", "loss")
    logq, old, advantage = (torch.from_numpy(random.normal(size=64)) for _ in range(3))
    importance = torch.from_numpy(random.random(64) * 1.25)
    logq.requires_grad_()
    found = clipped_surrogate(logq, old, advantage, importance, clip=0.3)
    rho = np.exp(logq.detach().numpy() - old.numpy()) * importance.numpy()
    a = advantage.numpy()
    np.testing.assert_allclose(found.loss_N.detach(), np.maximum(-a * rho, -a * np.clip(rho, 0.7, 1.3)), rtol=1e-12)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, advantage, importance, clip=0.3).loss_N, logq)


def test_at_the_old_student_the_gradient_is_the_plain_policy_gradient():
    """rho = 1 and no mixture: the slope of log q is -A, whatever the clip."""
    logq = torch.from_numpy(generator(0, "policy-gradient-test", "start").normal(size=9)).requires_grad_()
    advantage = torch.arange(-4.0, 5.0).double()
    clipped_surrogate(logq, logq.detach(), advantage, torch.ones(9)).loss_N.sum().backward()
    torch.testing.assert_close(logq.grad, -advantage)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_losses_are_float32_or_float64_and_carry_no_other_gradient(dtype, expected):
    given = [torch.full((3,), -0.5, dtype=dtype, requires_grad=True) for _ in range(4)]
    found = clipped_surrogate(*given)
    assert found.loss_N.dtype == expected
    found.loss_N.sum().backward()
    assert given[0].grad is not None and all(tensor.grad is None for tensor in given[1:])
    assert not token_rewards(*given[:2]).requires_grad and not importance_weights(*given[:2], 0.2).requires_grad
