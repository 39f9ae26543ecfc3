"""SCRG, sequence correction and re-generation: locate and replace an error token.

Source: MGSR (arXiv 2407.10068), section 4.1, Eq. 3-4.  The student generates a draft, and both models score the draft in one
forward pass each.  `locate_error` returns the position of the error token: the token at which the models disagree most.
`correct` replaces this token by the teacher's token.  The student then generates the tail: a continuation of the corrected
prefix.

The functions are pure: they run no model, and the caller generates the tail.  Padding is given by masks, since the padding
token and the end token can have the same id.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch


def locate_error(
    score_BT: torch.Tensor, student_tokens_BT: torch.Tensor, teacher_tokens_BT: torch.Tensor, valid_BT: torch.Tensor
) -> torch.Tensor:
    r"""Find the token of each response where student and teacher disagree most.

    .. math:: j = \arg\max_{i \le n} \; \mathrm{KL}(q_i \,\|\, p_i) \quad \text{over } y_i^s \ne y_i^t \quad\text{(Eq. 3)}

    q_i and p_i are the distributions of student and teacher that *predict* response token i, and n is the number of response
    tokens.  y_i^s is the student's token, and y_i^t the teacher's token.  Column i of `score_BT` and of the teacher's
    tokens comes from the logits one position before token i.  The caller chooses the teacher's token from p_i once, and
    passes the same token to `locate_error` and `correct`.  If several positions have the largest score, the first is
    chosen.

    Args:
        score_BT: Disagreement at each position, in nats or another unit; Eq. 3 uses reverse KL.  Must not be NaN where
            `valid_BT` is True; +inf is the largest score.
        student_tokens_BT: The response tokens y^s.
        teacher_tokens_BT: The teacher's tokens y^t at the same positions.
        valid_BT: True at candidate positions.  Candidates are response tokens up to the student's end token, inclusive; the
            caller may exclude some of them.

    Returns:
        index_B, int64: for each response, the index of the token of largest disagreement (the error token), from 0.  It is
        -1 if all candidates equal the teacher's tokens.

    Example:
        >>> score_BT = torch.tensor([[0.1, 2.0, 0.7]])
        >>> student_BT, teacher_BT = torch.tensor([[5, 6, 7]]), torch.tensor([[4, 6, 8]])
        >>> locate_error(score_BT, student_BT, teacher_BT, torch.ones(1, 3, dtype=torch.bool))
        tensor([2])
    """
    assert score_BT.shape == student_tokens_BT.shape == teacher_tokens_BT.shape == valid_BT.shape, "the shapes differ"
    valid_BT = valid_BT.bool()
    assert not score_BT[valid_BT].isnan().any(), "a valid score is not a number"
    if score_BT.shape[1] == 0:
        return score_BT.new_full((len(score_BT),), -1, dtype=torch.int64)
    candidate_BT = valid_BT & (student_tokens_BT != teacher_tokens_BT)
    index_B = score_BT.masked_fill(~candidate_BT, -torch.inf).argmax(dim=1)
    return index_B.masked_fill(~candidate_BT.any(dim=1), -1)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """The result of correcting a response.

    Args:
        prefix_ids: The response tokens before the error token (the token that is replaced), then the teacher's token.  If
            no token was replaced, the whole response.
        tail_budget: Maximum number of tokens that the student may still generate; 0 if the response is complete.
        changed: Whether a token was replaced.
    """

    prefix_ids: tuple[int, ...]
    tail_budget: int
    changed: bool


def correct(
    response_ids: tuple[int, ...], index: int, teacher_token: int, *, budget: int, eos_ids: Collection[int]
) -> Correction:
    r"""Return the corrected prefix of one response; the student continues from it.

    .. math:: y_i \sim q(\cdot | y_{<i}) \;(i < j), \quad y_j \sim p(\cdot | y_{<j}), \quad
        y_i \sim q(\cdot | y_{<j}, y_j^t, \dots) \;(i > j) \quad\text{(Eq. 4)}

    y_i is token i of the response after the correction, and j the index of the error token (the token that is replaced).  q is
    the student, p the teacher, and y_j^t the teacher's token.  Tokens after the error token are removed, including the
    student's end token.  The student generates no continuation if the teacher's token is an end token, or if the prefix has the
    maximum length of a response.

    Args:
        response_ids: The student's response, with its end token if it has one.
        index: Index of the error token, from 0; for -1 the response is returned unchanged.
        teacher_token: Token id that replaces the error token; ignored if index is -1.
        budget: Maximum number of tokens of a response.
        eos_ids: Ids of the end tokens.

    Example:
        >>> correct((5, 6, 7), 1, 9, budget=8, eos_ids={0})
        Correction(prefix_ids=(5, 9), tail_budget=6, changed=True)
        >>> correct((5, 6, 7), 1, 0, budget=8, eos_ids={0})
        Correction(prefix_ids=(5, 0), tail_budget=0, changed=True)
    """
    assert -1 <= index < len(response_ids) <= budget, (index, len(response_ids), budget)
    if index == -1:
        return Correction(prefix_ids=response_ids, tail_budget=0, changed=False)
    assert teacher_token != response_ids[index], "teacher_token must differ from the token that it replaces"
    prefix_ids = (*response_ids[:index], teacher_token)
    tail_budget = 0 if is_finished(prefix_ids, eos_ids) else budget - len(prefix_ids)
    return Correction(prefix_ids=prefix_ids, tail_budget=tail_budget, changed=True)


def is_finished(response_ids: tuple[int, ...], eos_ids: Collection[int]) -> bool:
    """Return whether the last token of a response is an end token.

    End tokens at other positions have no effect.
    """
    return bool(response_ids) and response_ids[-1] in eos_ids
