"""The likelihood form of the span loss, which compares probabilities of phrases.

The span loss of MGSR (arXiv 2407.10068, Eq. 10; span.py) compares products of distributions over all classes.  The
likelihood form compares one number for each phrase: the mean log-probability of its tokens.  This form is not in the paper.
It needs only the probability of one token in each row, so it also works with a teacher that provides only its most probable
classes.

`phrase_rows` is a pure function of differences of log-probabilities.  vocab_pass/phrases.py computes these differences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from redistill.tensors import loss_dtype

HUBER_NATS = 1.0
"""Difference, in nats per token, above which the loss of a phrase is linear."""


def phrase_rows(difference_N: Tensor, phrases: Sequence[tuple[int, int, float]]) -> tuple[Tensor, Tensor]:
    r"""Return the loss of the phrases, and its derivative for each row.

    .. math:: L = \sum_s w_s\, h\Bigl(\frac{1}{n_s} \sum_{n \in s} \log \frac{q_n(y_n)}{p_n(y_n)}\Bigr), \qquad
        h(d) = \begin{cases} d^2 / 2 & |d| \le 1 \\ |d| - 1/2 & |d| > 1 \end{cases}

    The sum is over phrases s.  w_s is the weight of phrase s, and n_s is its number of rows.  p is the teacher, q the student,
    and y_n the token that row n predicts.  h is the Huber function (Huber 1964): it bounds the gradient of a token to which one
    model assigns a very small probability.  L >= 0.  L = 0 does not imply q = p.

    Args:
        difference_N: log q_n(y_n) - log p_n(y_n) in nats; NaN for rows whose p_n(y_n) is unknown.  These rows are omitted from
            the inner sum and are not counted in n_s.  A phrase that has only such rows has the loss 0.
        phrases: For each phrase (first row, last row + 1, weight).

    Returns:
        value_N and slope_N; float32, or float64 for float64 inputs.  The sum of value_N is L: the loss of a phrase is stored at
        its first row, and other rows have the value 0.  slope_N is the derivative of L with respect to log q_n(y_n).

    Example:
        >>> value_N, slope_N = phrase_rows(torch.tensor([0.5, 0.1, 3.0]), [(0, 2, 1.0), (2, 3, 0.5)])
        >>> value_N, slope_N  # 0.3^2 / 2, and 0.5 (3 - 1/2)
        (tensor([0.0450, 0.0000, 1.2500]), tensor([0.1500, 0.1500, 0.5000]))
    """
    difference_N = difference_N.detach().to(loss_dtype(difference_N))
    value_N, slope_N = torch.zeros_like(difference_N), torch.zeros_like(difference_N)
    if not phrases:
        return value_N, slope_N
    device, (starts, stops, weights) = difference_N.device, zip(*phrases, strict=True)
    start_S, stop_S = torch.tensor(starts, device=device), torch.tensor(stops, device=device)
    weight_S = torch.tensor(weights, dtype=difference_N.dtype, device=device)
    length_S = stop_S - start_S
    # Concatenate the rows of all phrases; a row that is in two phrases occurs twice.
    phrase_K = torch.repeat_interleave(torch.arange(len(phrases), device=device), length_S)
    row_K = torch.arange(len(phrase_K), device=device) - (length_S.cumsum(0) - length_S - start_S)[phrase_K]
    known_K = ~difference_N[row_K].isnan()
    count_S = torch.zeros_like(weight_S).index_add(0, phrase_K, known_K.to(weight_S)).clamp(min=1)
    mean_S = torch.zeros_like(weight_S).index_add(0, phrase_K, difference_N[row_K].nan_to_num(nan=0.0)) / count_S
    large_S = mean_S.abs() > HUBER_NATS
    huber_S = torch.where(large_S, HUBER_NATS * (mean_S.abs() - HUBER_NATS / 2), mean_S.square() / 2)
    slope_S = weight_S * mean_S.clamp(-HUBER_NATS, HUBER_NATS) / count_S
    return value_N.index_add(0, start_S, weight_S * huber_S), slope_N.index_add(0, row_K, slope_S[phrase_K] * known_K)
