"""Statistics of student and teacher: one number or token for each row.

The statistics have no gradients.  A row is the prediction of one token by both models.  Policies that score generated text
use the statistics, for example to find the token at which the models disagree most.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from redistill.contracts import TeacherTarget
from redistill.tensors import loss_dtype
from redistill.vocab_pass.cutting import chunk_budget, cuts
from redistill.vocab_pass.head import Head
from redistill.vocab_pass.rules import whole
from redistill.vocab_pass.sampling import NUCLEUS, check_sampled, nucleus, sample_rows

_OfBoth = Literal["forward_kl", "reverse_kl", "agreement", "acceptance", "top_overlap"]
_OfStudent = Literal["cross_entropy", "student_entropy", "student_argmax", "student_logprob", "student_confidence"]
_OfTeacher = Literal["teacher_entropy", "teacher_argmax", "teacher_logprob", "teacher_sample", "teacher_nucleus_sample"]
Statistic = Literal[_OfBoth, _OfStudent, _OfTeacher]

SAMPLED: frozenset[Statistic] = frozenset(("teacher_sample", "teacher_nucleus_sample"))
TOP = 10
"""Number of most probable classes of each model that the statistic top_overlap compares."""
LIVE_TENSORS = 6  # [rows, V] tensors at once: log-probabilities of both models, logits of one model, and three of a statistic


@torch.no_grad()
def row_statistics(
    student_hidden_ND: torch.Tensor,
    student_head: Head,
    target: TeacherTarget | None,
    names: Collection[Statistic],
    *,
    uniforms_NK: torch.Tensor | None = None,
    token_N: torch.Tensor | None = None,
    chunk_bytes: int | None = None,
) -> dict[str, torch.Tensor]:
    r"""Return statistics of every row; they are computed in chunks, without gradients.

    .. math:: \mathrm{KL}(p \,\|\, q) = \sum_v p_v \log \frac{p_v}{q_v}, \qquad H(p) = -\sum_v p_v \log p_v

    p is the teacher, q the student, and y the token of the row in `token_N`.  The first two lines are in nats.

    - forward_kl is KL(p || q), reverse_kl is KL(q || p), student_entropy is H(q), and teacher_entropy is H(p).
    - student_logprob is log q(y), teacher_logprob is log p(y), and cross_entropy is -log q(y).
    - acceptance is sum_v min(p_v, q_v), in [0, 1], and student_confidence is max_v q_v.
    - top_overlap is the fraction of the 10 most probable classes of p that are among the 10 most probable classes of q.
    - student_argmax and teacher_argmax are the most probable tokens, and agreement is True where they are equal.
    - teacher_sample is sampled from p, and teacher_nucleus_sample from the most probable classes of p with 0.9 of the mass.

    Args:
        student_hidden_ND: Hidden states of the rows.
        student_head: The student's head.
        target: Function that returns the teacher logits [rows, V] of a slice of rows; None if no statistic needs them.
        names: Names of the statistics to compute.  Logits that none of them needs are not computed.
        uniforms_NK: Uniform numbers in [0, 1) for the sampled tokens; see `sample_rows`.  None if no token is sampled.
        token_N: Token ids, int64, for student_logprob, teacher_logprob and cross_entropy; None if there is no such statistic.
        chunk_bytes: Approximate memory limit of all [rows, vocabulary] tensors together; the default is from `chunk_budget`.

    Returns:
        For each name, a tensor with one value per row: int64 for tokens, bool for agreement, and otherwise float32 or float64.

    Raises:
        TrainingError: for a sampled token, if the probabilities of a row are not finite.

    Example:
        >>> hidden_ND, head = torch.eye(2), Head(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        >>> target = lambda rows: torch.zeros(2, 2)[rows]  # a uniform teacher
        >>> found = row_statistics(hidden_ND, head, target, ["reverse_kl", "student_argmax"])
        >>> found["reverse_kl"], found["student_argmax"].shape
        (tensor([0.0000, 0.1109]), torch.Size([2]))
    """
    unknown, known = sorted(set(names) - set(_STATISTICS)), ", ".join(_STATISTICS)
    assert not unknown, f"row_statistics: no such statistic: {', '.join(unknown)}; must be one of {known}"
    head = student_head.prepared(student_hidden_ND)
    chunk_bytes = chunk_budget(head.num_bytes, head.weight_VD.device) if chunk_bytes is None else chunk_bytes
    row_bytes = head.num_classes * loss_dtype(student_hidden_ND).itemsize
    found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    # Without rows there is one empty chunk, so that the results have the right types.
    for rows in cuts(slice(0, len(student_hidden_ND)), chunk_bytes // (LIVE_TENSORS * row_bytes)) or [slice(0, 0)]:
        chunk = _Chunk(student_hidden_ND[rows], head, target, rows, uniforms_NK, token_N)
        for name in names:
            found[name].append(_STATISTICS[name](chunk))
    joined = {name: torch.cat(pieces) for name, pieces in found.items()}
    for name in SAMPLED.intersection(joined) if len(student_hidden_ND) else ():
        check_sampled(int(joined[name].min()))
    return joined


@dataclass(eq=False)
class _Chunk:
    """Rows that are processed at once.

    Their log-probabilities are computed on first use.
    """

    hidden_CD: torch.Tensor
    head: Head
    target: TeacherTarget | None
    rows: slice
    uniforms_NK: torch.Tensor | None
    token_N: torch.Tensor | None

    @cached_property
    def logq_CV(self) -> torch.Tensor:
        return torch.log_softmax(self.head.logits(self.hidden_CD), dim=-1)

    @cached_property
    def logp_CV(self) -> torch.Tensor:
        assert self.target is not None, "row_statistics: a statistic of the teacher needs a target"
        return whole(self.target(self.rows))

    @cached_property
    def student_argmax_C(self) -> torch.Tensor:
        return self.logq_CV.argmax(dim=-1)

    @cached_property
    def teacher_argmax_C(self) -> torch.Tensor:
        return self.logp_CV.argmax(dim=-1)

    def of_token(self, logprob_CV: torch.Tensor) -> torch.Tensor:
        assert self.token_N is not None, "row_statistics: a log-probability of a token needs token_N"
        return logprob_CV.gather(1, self.token_N[self.rows, None])[:, 0]

    def sampled(self, probabilities_CV: torch.Tensor) -> torch.Tensor:
        assert self.uniforms_NK is not None, "row_statistics: a sampled token needs uniforms_NK"
        return sample_rows(probabilities_CV, self.uniforms_NK[self.rows])


def _kl(first_CV: torch.Tensor, second_CV: torch.Tensor) -> torch.Tensor:
    """Return KL(first || second) of each row.

    A class with -inf in either argument contributes 0.
    """
    ruled_out_CV = first_CV.isneginf() | second_CV.isneginf()
    return (first_CV.exp() * (first_CV - second_CV).masked_fill_(ruled_out_CV, 0.0)).sum(-1)


def _overlap(first_CV: torch.Tensor, second_CV: torch.Tensor) -> torch.Tensor:
    """Return the fraction of the most probable classes that both distributions share.

    The `TOP` most probable classes of each row are compared.
    """
    size = min(TOP, first_CV.shape[1])
    tops = [logprob_CV.topk(size, dim=-1).indices for logprob_CV in (first_CV, second_CV)]
    common_CKK = tops[0][:, :, None] == tops[1][:, None, :]
    return common_CKK.flatten(1).sum(-1).to(first_CV.dtype) / size


_STATISTICS: dict[Statistic, Callable[[_Chunk], torch.Tensor]] = {
    "forward_kl": lambda chunk: _kl(chunk.logp_CV, chunk.logq_CV),
    "reverse_kl": lambda chunk: _kl(chunk.logq_CV, chunk.logp_CV),
    "cross_entropy": lambda chunk: -chunk.of_token(chunk.logq_CV),
    "student_entropy": lambda chunk: torch.special.entr(chunk.logq_CV.exp()).sum(-1),
    "teacher_entropy": lambda chunk: torch.special.entr(chunk.logp_CV.exp()).sum(-1),
    "student_argmax": lambda chunk: chunk.student_argmax_C,
    "teacher_argmax": lambda chunk: chunk.teacher_argmax_C,
    "agreement": lambda chunk: chunk.student_argmax_C == chunk.teacher_argmax_C,
    "acceptance": lambda chunk: torch.minimum(chunk.logp_CV, chunk.logq_CV).exp().sum(-1).clamp(max=1.0),
    "top_overlap": lambda chunk: _overlap(chunk.logp_CV, chunk.logq_CV),
    "student_confidence": lambda chunk: chunk.logq_CV.amax(dim=-1).exp(),
    "student_logprob": lambda chunk: chunk.of_token(chunk.logq_CV),
    "teacher_logprob": lambda chunk: chunk.of_token(chunk.logp_CV),
    "teacher_sample": lambda chunk: chunk.sampled(chunk.logp_CV.exp()),
    "teacher_nucleus_sample": lambda chunk: chunk.sampled(nucleus(chunk.logp_CV.exp(), NUCLEUS)),
}
