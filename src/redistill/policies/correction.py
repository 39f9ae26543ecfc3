"""SCRG as pure functions: where is the error token, what takes its place, and what may still be written after it.

Source: MGSR (arXiv 2407.10068), section 4.1, Eq. 3-4.  The student writes, student and teacher read it once, `locate_error`
names the token where they disagree most, `correct` puts the teacher's token there, and the student goes on from that prefix.

Nothing here runs a model, draws a random number, or reads a distribution of the vocabulary: scores and tokens come in, and
whoever has a generator writes the tail.  What is response and what is padding is told by position: where the padding id is
the end token, an id cannot tell.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch


def locate_error(
    score_BT: torch.Tensor, student_tokens_BT: torch.Tensor, teacher_tokens_BT: torch.Tensor, valid_BT: torch.Tensor
) -> torch.Tensor:
    r"""The token of each response where student and teacher disagree most.

    .. math:: j = \arg\max_{i \le n} \; \mathrm{KL}(q_i \,\|\, p_i) \quad \text{over } y_i^s \ne y_i^t \quad\text{(Eq. 3)}

    Position i is the distribution that *predicts* response token i, so row i of `score_BT` and of the teacher's tokens is read
    one position before token i stands.  The teacher's token is drawn from p_i under the student's own prefix, once, and the
    same draw then takes the student's place.  The smallest index wins a tie.

    Args:
        score_BT: How far they disagree, in nats or otherwise; Eq. 3's is reverse KL.  A number wherever valid; +inf is the
            largest.
        student_tokens_BT: The response tokens y^s.
        teacher_tokens_BT: The teacher's tokens y^t at the same positions.
        valid_BT: True where the error may be: from the first response token up to the student's own end token, which may be
            the error, and nothing after; in a later round that goes on in order, from the previous error on.

    Returns:
        index_B, int64: 0-based within the response; -1 where no valid token differs.

    Example:
        >>> score_BT = torch.tensor([[0.1, 2.0, 0.7]])
        >>> student_BT, teacher_BT = torch.tensor([[5, 6, 7]]), torch.tensor([[4, 6, 8]])
        >>> locate_error(score_BT, student_BT, teacher_BT, torch.ones(1, 3, dtype=torch.bool))
        tensor([2])
    """
    assert score_BT.shape == student_tokens_BT.shape == teacher_tokens_BT.shape == valid_BT.shape, "one score a token"
    valid_BT = valid_BT.bool()
    assert not score_BT[valid_BT].isnan().any(), "a score that is not a number would win the arg max without a word"
    if score_BT.shape[1] == 0:
        return score_BT.new_full((len(score_BT),), -1, dtype=torch.int64)
    candidate_BT = valid_BT & (student_tokens_BT != teacher_tokens_BT)
    index_B = score_BT.masked_fill(~candidate_BT, -torch.inf).argmax(dim=1)
    return index_B.masked_fill(~candidate_BT.any(dim=1), -1)


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A response whose error token has been replaced.

    Args:
        prefix_ids: y_<j and the teacher's token; the whole response where nothing was changed.
        tail_budget: How many tokens the student may still write; 0 where the response ends here.
        changed: Whether a token was replaced.
    """

    prefix_ids: tuple[int, ...]
    tail_budget: int
    changed: bool


def correct(
    response_ids: tuple[int, ...], index: int, teacher_token: int, *, budget: int, eos_ids: Collection[int]
) -> Correction:
    r"""The corrected prefix of one response, from which the student goes on.

    .. math:: y_i \sim q(\cdot | y_{<i}) \;(i < j), \quad y_j \sim p(\cdot | y_{<j}), \quad
        y_i \sim q(\cdot | y_{<j}, y_j^t, \dots) \;(i > j) \quad\text{(Eq. 4)}

    What stood after the error is dropped, the student's end token included.  There is no tail where the teacher's token is an
    end token, or where the prefix is as long as a response may be.

    Args:
        response_ids: The student's response; its own end token included where it wrote one.
        index: The error token, 0-based; -1 keeps the response as it is.
        teacher_token: What takes its place; not read where index is -1.
        budget: Most tokens that a response may have.
        eos_ids: The end tokens.

    Example:
        >>> correct((5, 6, 7), 1, 9, budget=8, eos_ids={0})
        Correction(prefix_ids=(5, 9), tail_budget=6, changed=True)
        >>> correct((5, 6, 7), 1, 0, budget=8, eos_ids={0})
        Correction(prefix_ids=(5, 0), tail_budget=0, changed=True)
    """
    assert -1 <= index < len(response_ids) <= budget, (index, len(response_ids), budget)
    if index == -1:
        return Correction(prefix_ids=response_ids, tail_budget=0, changed=False)
    assert teacher_token != response_ids[index], "an error token differs from the teacher's"
    prefix_ids = (*response_ids[:index], teacher_token)
    tail_budget = 0 if is_finished(prefix_ids, eos_ids) else budget - len(prefix_ids)
    return Correction(prefix_ids=prefix_ids, tail_budget=tail_budget, changed=True)


def is_finished(response_ids: tuple[int, ...], eos_ids: Collection[int]) -> bool:
    """Whether the last token is an end token; an end token further in is text like any other."""
    return bool(response_ids) and response_ids[-1] in eos_ids
