"""What a walk adds up: each term is a sum over rows, with the coefficient that the loop gave it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from redistill.contracts import Divergence
from redistill.policy_gradient import clipped_surrogate
from redistill.spans.loss import pair_distance


@dataclass(frozen=True, eq=False)
class CrossEntropyTerm:
    """Cross entropy of the rows in `mask_N` with their target token, in nats.

    Args:
        coefficient: Weight / global count, as in every term.
        target_N: int64.
        mask_N: bool.
        name: What its sum is called.
    """

    coefficient: float
    target_N: torch.Tensor
    mask_N: torch.Tensor
    name: str = "sft"

    def sums(self, logq_CV: torch.Tensor, logp_CV: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        """The term's sums over `rows`.

        logq_CV starts with these rows and may have the one after them too; logp_CV is the same, cut at the last that has a
        teacher.
        """
        target_C = self.target_N[rows]
        logprob_C = logq_CV[: len(target_C)].gather(1, target_C[:, None])[:, 0]
        return {self.name: -logprob_C.masked_fill(~self.mask_N[rows], 0.0).sum()}


@dataclass(frozen=True, eq=False)
class DivergenceTerm:
    """A divergence on rows 0 .. num_rows-1.

    Args:
        coefficient: Weight / global count.
        divergence: A function of (logq_NV, logp_NV), or a module that learns; it may answer (divergence_N, diagnostics), and
            each diagnostic is then summed under its own name.
        num_rows: How many rows, from the front, have a teacher.
        weight_N: float32; what each of these rows counts in the sum, where not 1.
        name: What its sum is called.
    """

    coefficient: float
    divergence: Divergence | torch.nn.Module
    num_rows: int
    weight_N: torch.Tensor | None = None
    name: str = "divergence"

    def sums(self, logq_CV: torch.Tensor, logp_CV: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        num_rows = min(rows.stop - rows.start, len(logp_CV))
        if num_rows == 0:
            return {}
        answer: Any = self.divergence(logq_CV[:num_rows], logp_CV[:num_rows])
        divergence_C, diagnostics = answer if isinstance(answer, tuple) else (answer, {})
        if self.weight_N is not None:
            divergence_C = divergence_C * self.weight_N[rows][:num_rows]
        return {self.name: divergence_C.sum(), **{name: value_C.detach().sum() for name, value_C in diagnostics.items()}}


@dataclass(frozen=True, eq=False)
class SpanTerm:
    """The span loss, Eq. 10, of pairs of neighbouring rows.

    Args:
        coefficient: Weight / global number of samples with spans.
        pair_weight_N: Weight of the pair (n, n + 1), 0 where the rows are no pair or of two sequences.  Where no DivergenceTerm
            says so, its length is the number of rows that have a teacher.
        squared: Whether the distance is squared.
        keep: (logq_NV, logp_NV) -> keep_NV, bool: the classes that DAC-KL keeps, where the vectors are clipped to them; a row's
            classes depend on that row alone, so the halo row's are found again on the other side of a cut.
    """

    coefficient: float
    pair_weight_N: torch.Tensor
    squared: bool
    keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    name: ClassVar[str] = "span"

    def sums(self, logq_CV: torch.Tensor, logp_CV: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        num_pairs = min(rows.stop - rows.start, len(logp_CV) - 1)
        if num_pairs <= 0:
            return {}
        left, right = slice(0, num_pairs), slice(1, num_pairs + 1)
        keep_CV = None
        if self.keep is not None:
            keep_CV = self.keep(logq_CV[: num_pairs + 1], logp_CV[: num_pairs + 1])
            keep_CV = keep_CV[left] & keep_CV[right]
        distance_C = pair_distance(logq_CV[left], logq_CV[right], logp_CV[left], logp_CV[right], self.squared, keep_CV)
        return {self.name: (distance_C * self.pair_weight_N[rows][left]).sum()}


@dataclass(frozen=True, eq=False)
class PolicyGradientTerm:
    """MiniLLM's clipped policy gradient on the first rows, with "ratio" and "clipped" as diagnostics.

    Args:
        coefficient: Weight / global count of sampled tokens.
        token_N: int64; the token written at each row.  Its length says how many rows, from the front, are of roll-outs.
        old_logprob_N, advantage_N, importance_N: Of these tokens; see policy_gradient.clipped_surrogate.
        clip: How far from 1 the ratio of probabilities counts.
    """

    coefficient: float
    token_N: torch.Tensor
    old_logprob_N: torch.Tensor
    advantage_N: torch.Tensor
    importance_N: torch.Tensor
    clip: float
    name: ClassVar[str] = "policy_gradient"

    def sums(self, logq_CV: torch.Tensor, logp_CV: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
        token_C = self.token_N[rows]
        if len(token_C) == 0:
            return {}
        logprob_C = logq_CV[: len(token_C)].gather(1, token_C[:, None])[:, 0]
        loss_C, ratio_C, clipped_C = clipped_surrogate(
            logprob_C, self.old_logprob_N[rows], self.advantage_N[rows], self.importance_N[rows], self.clip
        )
        return {self.name: loss_C.sum(), "ratio": ratio_C.sum(), "clipped": clipped_C.sum(dtype=ratio_C.dtype)}


Term = CrossEntropyTerm | DivergenceTerm | SpanTerm | PolicyGradientTerm
