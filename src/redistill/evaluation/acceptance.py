"""Acceptance of the student's tokens by the teacher, in speculative decoding.

The student is the draft model: it proposes k tokens.  The teacher scores these tokens in one forward pass and accepts the
first i of them, 0 <= i <= k.  The rule of acceptance ensures that the text has the distribution of the teacher's own text
(Leviathan et al. 2023, arXiv 2211.17192).
"""

import torch

from redistill.records import PROPOSALS


def accepted(alpha_N: torch.Tensor, sequence_N: torch.Tensor, position_N: torch.Tensor) -> dict[str, torch.Tensor]:
    r"""Return acceptance probabilities and expected accepted lengths at each target.

    .. math:: A_i(t) = \prod_{j=0}^{i-1} \alpha_{t+j}, \qquad L_k(t) = \sum_{i=1}^{k} A_i(t), \qquad
              \alpha_t = \sum_v \min(p_t(v), q_t(v))

    p_t is the teacher's and q_t the student's distribution at target t of a text.  alpha_t is the probability that the
    teacher accepts a token sampled from q_t (theorem 3.5 of arXiv 2211.17192).  A_i(t) is the probability that the teacher
    accepts the tokens proposed at the targets t to t + i - 1.  L_k(t) is the expected number of accepted tokens if k tokens
    are proposed.  No token is proposed after the end of an answer: A_i(t) is 0 if target t + i - 1 is not in the same
    answer.  If alpha is the same at every target and the answer does not end, L_k is alpha (1 - alpha^k) / (1 - alpha).
    This is the paper's equation 1 without the token that the teacher adds.  Source: Leviathan et al. (arXiv 2211.17192).

    A_i for i > 1 is an estimate.  Here each prefix is part of the given text.  In speculative decoding, the second and
    later proposals follow tokens that the student has proposed.

    Args:
        alpha_N: alpha at each of N targets (tokens of answers).  The targets are ordered by sequence and position.
        sequence_N: For each target, the index of its sequence.
        position_N: For each target, its position in the padded sequence.  A gap between the positions of two targets
            separates two answers of a sequence.

    Returns:
        Tensors [N] by name: "acceptance" is alpha, "acceptance_i" is A_i, and "accepted_length_k" is L_k, for i and k from
        1 to `PROPOSALS`.

    Example:
        >>> found = accepted(torch.tensor([0.5, 0.4, 1.0]), torch.tensor([0, 0, 0]), torch.tensor([7, 8, 9]))
        >>> found["acceptance_2"], found["accepted_length_2"]
        (tensor([0.2000, 0.4000, 0.0000]), tensor([0.7000, 0.8000, 1.0000]))
    """
    found = {"acceptance": alpha_N}
    product_N, length_N = torch.ones_like(alpha_N), torch.zeros_like(alpha_N)
    for i in range(PROPOSALS):
        rest, next_N = max(0, len(alpha_N) - i), torch.zeros_like(alpha_N)
        is_same = (sequence_N[i:] == sequence_N[:rest]) & (position_N[i:] - position_N[:rest] == i)
        next_N[:rest] = alpha_N[i:] * is_same
        product_N = product_N * next_N
        length_N = length_N + product_N
        found |= {f"acceptance_{i + 1}": product_N, f"accepted_length_{i + 1}": length_N}
    return found
