"""The formulas of MiniLLM: rewards, advantages, and the loss of a token.

The student samples the token y_t at position t from its own distribution q, or from a mixture of q with the teacher's
distribution p.  The reward of a token increases with p and decreases with q.  Source: MiniLLM (arXiv 2306.08543).  Each
function documents where the published code differs from the paper.

The functions depend on no model.  The training loop divides the losses by the number of tokens.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from redistill.tensors import loss_dtype

WHITENING_FLOOR = 1e-8
"""A number that is added to the variance, so that equal returns give advantages of 0 and not NaN."""


def token_rewards(logp_BT: Tensor, old_logq_BT: Tensor, *, scaling: float = 0.5, clip: float = 100.0) -> Tensor:
    r"""Return the reward of each token: the log ratio of teacher and student.

    .. math:: r_t = \mathrm{clip}\Bigl(\frac{\log p(y_t) - \log q_{old}(y_t)}{s},\; -c,\; c\Bigr)

    y_t is the token at position t of a generated sequence.  p is the teacher, and q_old the student at the time of generation.
    s is `scaling`, and c is `clip`.  The difference is divided by s first, and clipped to [-c, c] afterwards.

    Args:
        logp_BT: log p(y_t) of each token, at temperature 1; any shape.
        old_logq_BT: log q_old(y_t) of each token; same shape.
        scaling: The divisor s, > 0; a value below 1 increases the absolute reward.
        clip: The bound c of the absolute reward, > 0.

    Returns:
        reward_BT, without gradient.

    Example:
        >>> token_rewards(torch.tensor([-1.0, -90.0]), torch.tensor([-2.0, -1.0]))
        tensor([   2., -100.])
    """
    dtype = loss_dtype(old_logq_BT)
    return ((logp_BT.detach().to(dtype) - old_logq_BT.detach().to(dtype)) / scaling).clamp(-clip, clip)


def discounted_returns(reward_BT: Tensor, valid_BT: Tensor, *, discount: float = 0.95, length_normalise: bool = True) -> Tensor:
    r"""Return the discounted return of each token.

    .. math:: R_t = \frac{1}{n_t} \sum_{t' \ge t} \gamma^{t' - t} r_{t'}

    R_t is the return and r_t the reward of token t, and gamma is `discount`.  n_t is the number of valid tokens from t on, or 1
    without normalisation.  The sum begins with the reward of token t, as in the published code.  In the paper, the sum begins
    with token t + 1, and a separate term of the loss contains the reward of token t.

    Args:
        reward_BT: Rewards, one row per sequence.
        valid_BT: bool; the valid tokens come first in their row, and rewards after them are ignored.
        discount: The discount gamma, in [0, 1].  The paper has no discount; its code uses 0.95.
        length_normalise: Whether to divide by n_t.

    Returns:
        return_BT, 0 where not valid.

    Example:
        >>> discounted_returns(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[True, True, True]]), discount=0.5)
        tensor([[1., 2., 4.]])
    """
    reward_BT = reward_BT.masked_fill(~valid_BT, 0.0)
    return_BT = torch.zeros_like(reward_BT)
    later_B = reward_BT.new_zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        later_B = return_BT[:, t] = reward_BT[:, t] + discount * later_B
    if not length_normalise:
        return return_BT
    remaining_BT = valid_BT.flip(1).cumsum(1).flip(1)
    return return_BT / remaining_BT.clamp(min=1)


def whiten(return_BT: Tensor, valid_BT: Tensor, *, padded_length: int | None = None) -> Tensor:
    r"""Return advantages: the returns, normalised to mean 0 and variance 1.

    .. math:: A = \frac{R - \mathrm{mean}\, R}{\sqrt{\mathrm{var}\, R + 10^{-8}}}

    R are the returns and A the advantages.  Mean and variance are computed over all tokens of the batch; the variance is the
    population variance.  The published code includes the zeros with which it pads the returns of each sequence.  They
    shrink the mean, so the advantages of real tokens do not have mean 0.  `padded_length` reproduces this behaviour.

    Args:
        return_BT: The returns of a batch, which must contain the sequences of all processes.
        valid_BT: bool, True for valid tokens; at least one must be True.
        padded_length: Length in tokens to which each sequence is padded with zeros, at least the length of the longest
            sequence.  If None, mean and variance use valid tokens only.

    Returns:
        advantage_BT, 0 where not valid.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]]))
        tensor([[-1.,  1.,  0.]])
    """
    valid_N = return_BT[valid_BT]
    num_padded = 0 if padded_length is None else len(return_BT) * padded_length - len(valid_N)
    assert num_padded >= 0, f"padded_length = {padded_length}: must be at least {int(valid_BT.sum(1).max())}, the longest row"
    count = len(valid_N) + num_padded
    mean = valid_N.sum() / count
    variance = ((valid_N - mean).square().sum() + num_padded * mean.square()) / count
    return ((return_BT - mean) * (variance + WHITENING_FLOOR).rsqrt()).masked_fill(~valid_BT, 0.0)


def importance_weights(logp_BT: Tensor, old_logq_BT: Tensor, teacher_share: float) -> Tensor:
    r"""Return the importance weight of each token, for tokens sampled from a mixture.

    .. math:: w_t = \frac{q_{old}(y_t)}{(1 - a)\, q_{old}(y_t) + a\, p(y_t)}

    y_t is the token at position t, sampled from the mixture of the student q_old with weight 1 - a and the teacher p with
    weight a.  The importance weight w_t lies in [0, 1 / (1 - a)], and is 1 for a = 0; it has no bound for a = 1.  w_t is
    the weight of one token, and not the product of the weights of all tokens up to t.

    Args:
        logp_BT: log p(y_t) of each token, any shape.
        old_logq_BT: log q_old(y_t) of each token; same shape.
        teacher_share: Weight a of the teacher in the mixture, in [0, 1].

    Returns:
        importance_BT, without gradient.

    Example:
        >>> importance_weights(torch.tensor([0.9]).log(), torch.tensor([0.1]).log(), 0.5)
        tensor([0.2000])
    """
    dtype = loss_dtype(old_logq_BT)
    old_logq_BT = old_logq_BT.detach().to(dtype)
    if teacher_share == 0:
        return torch.ones_like(old_logq_BT)
    return 1 / ((1 - teacher_share) + teacher_share * (logp_BT.detach().to(dtype) - old_logq_BT).exp())


class Surrogate(NamedTuple):
    """Result of `clipped_surrogate`: the loss of each token, and two diagnostics.

    `loss_N` is the loss.  `ratio_N` is the importance weight times q / q_old: the token's probability under the current
    student, divided by its probability under the student at the time of generation.  `clipped_N` (bool) is True for a token
    whose gradient is 0 because of clipping.
    """

    loss_N: Tensor
    ratio_N: Tensor
    clipped_N: Tensor


def clipped_surrogate(
    logq_N: Tensor, old_logq_N: Tensor, advantage_N: Tensor, importance_N: Tensor, clip: float = 0.2
) -> Surrogate:
    r"""Return the clipped policy-gradient loss of each token (PPO's surrogate).

    .. math::
        \rho_t = w_t\, q(y_t) / q_{old}(y_t), \qquad
        L_t = \max\bigl(-A_t \rho_t,\; -A_t\, \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\bigr)

    y_t is the token at position t of a generated sequence, q the student that is trained, and q_old the student at the time of
    generation.  A is the advantage, w the importance weight, and eps is `clip`.  The clipped ratio rho includes w.  Clipping is
    active at rho > 1 + eps for A > 0, and at rho < 1 - eps for A < 0.  The gradient flows through log q only; with respect to
    log q it is 0 where clipping is active, and -A rho elsewhere.

    Args:
        logq_N: log q(y_t) of each token.
        old_logq_N, advantage_N, importance_N: log q_old(y_t), A and w of each token; no gradient.
        clip: eps, in (0, 1); the ratio rho is clipped to [1 - eps, 1 + eps].

    Returns:
        loss_N (L), ratio_N (rho) and clipped_N (bool, True where clipping is active), unreduced.

    Example:
        >>> clipped_surrogate(torch.tensor([0.5]).log(), torch.tensor([0.25]).log(), torch.ones(1), torch.ones(1)).loss_N
        tensor([-1.2000])
    """
    dtype = loss_dtype(logq_N)
    old_logq_N, advantage_N, importance_N = (row_N.detach().to(dtype) for row_N in (old_logq_N, advantage_N, importance_N))
    ratio_N = (logq_N.to(dtype) - old_logq_N).exp() * importance_N
    free_N, bounded_N = -advantage_N * ratio_N, -advantage_N * ratio_N.clamp(1 - clip, 1 + clip)
    return Surrogate(torch.maximum(free_N, bounded_N), ratio_N.detach(), bounded_N.detach() > free_N.detach())
