"""The likelihood form of the span loss in the vocabulary pass.

losses/phrase.py defines the loss of a phrase.  The loss depends on the mean log-probability of the phrase, whose rows may
be in different chunks.  Therefore `with_phrases` first computes the log-probabilities of all tokens, chunk by chunk and
without gradient.  From these it computes the loss of each phrase and its derivative for each row.  The vocabulary pass can
then compute the gradient of each row without the other rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from redistill.contracts import SampledClasses, TeacherTarget
from redistill.losses.phrase import phrase_rows
from redistill.tensors import loss_dtype
from redistill.vocab_pass.cutting import chunk_budget, cuts
from redistill.vocab_pass.head import Head
from redistill.vocab_pass.rules import TargetRows
from redistill.vocab_pass.terms import PhraseTerm, Term

LIVE_TENSORS = 4  # [rows, V] tensors at once: logits and log-probabilities of both models


def with_phrases(
    terms: Sequence[Term], hidden_ND: Tensor, head: Head, target: TeacherTarget | None, chunk_bytes: int | None = None
) -> tuple[Term, ...]:
    """Return the terms, with `value_N` and `slope_N` set in each `PhraseTerm`.

    For each `PhraseTerm`, the heads of student and teacher are applied to its rows one additional time, without gradient.

    Args:
        terms: The terms of the objective.  Terms of other classes are returned unchanged.
        hidden_ND, head, target: The student's hidden states and head, and the teacher, as in `vocab_pass`.
        chunk_bytes: Approximate memory limit of all [rows, vocabulary] tensors together, in bytes, as in `vocab_pass`.

    Example:
        >>> with_phrases((), torch.zeros(1, 2), Head(torch.eye(2)), None)  # no term has phrases
        ()
    """
    return tuple(
        _prepared(term, hidden_ND, head, target, chunk_bytes) if isinstance(term, PhraseTerm) and term.phrases else term
        for term in terms
    )


@torch.no_grad()
def _prepared(
    term: PhraseTerm, hidden_ND: Tensor, head: Head, target: TeacherTarget | None, chunk_bytes: int | None
) -> PhraseTerm:
    assert target is not None, "a span loss needs a teacher"
    head = head.prepared(hidden_ND)
    chunk_bytes = chunk_budget(head.num_bytes, head.weight_VD.device) if chunk_bytes is None else chunk_bytes
    row_bytes = head.num_classes * loss_dtype(hidden_ND).itemsize
    pieces: list[Tensor] = []
    for rows in cuts(slice(0, len(term.token_N)), chunk_bytes // (LIVE_TENSORS * row_bytes)):
        token_C = term.token_N[rows]
        logq_C = torch.log_softmax(head.logits(hidden_ND[rows]), dim=-1).gather(1, token_C[:, None])[:, 0]
        difference_C = logq_C - _teacher_logprob(target(rows), token_C).to(logq_C)
        pieces.append(difference_C.masked_fill(~difference_C.isfinite(), torch.nan))
    value_N, slope_N = phrase_rows(torch.cat(pieces), term.phrases)
    return replace(term, value_N=value_N, slope_N=slope_N)


def _teacher_logprob(rows: TargetRows, token_C: Tensor) -> Tensor:
    """Return the teacher's log-probability of each token.

    The value is NaN for a token whose log-probability the teacher does not provide.
    """
    assert not isinstance(rows, SampledClasses), "a span loss needs the teacher's probabilities"
    if isinstance(rows, Tensor):
        return torch.log_softmax(rows.to(loss_dtype(rows)), dim=-1).gather(1, token_C[:, None])[:, 0]
    found_CK = rows.class_NK == token_C[:, None]
    logp_C = rows.logp_NK.masked_fill(~found_CK, -torch.inf).amax(dim=1)
    return logp_C.masked_fill(~found_CK.any(dim=1), torch.nan)
