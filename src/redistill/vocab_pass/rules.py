"""The arithmetic of the terms: sums over the rows of a tile, as functions of log-probabilities.

A rule holds what does not change from step to step, and is equal to another by its fields: it is compiled once, and what
changes - targets, masks, weights - comes as tensors.  Zeros in all of them make a row count nothing, whatever its logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from redistill.contracts import Divergence, TopClasses
from redistill.losses.policy_gradient import clipped_surrogate
from redistill.losses.span import pair_distance


class Compared(NamedTuple):
    """Both models' log-probabilities of the same classes, the student's with gradient."""

    logq_CV: torch.Tensor
    logp_CV: torch.Tensor


def compared(logq_CV: torch.Tensor, word: torch.Tensor | TopClasses) -> Compared:
    """The student's rows beside the teacher's.

    Where the teacher lists classes, these and one bin of all others stand for the vocabulary, on both sides.
    """
    if isinstance(word, torch.Tensor):
        return Compared(logq_CV, torch.log_softmax(word.to(logq_CV.dtype), dim=-1))
    listed_CK = logq_CV.gather(1, word.class_NK)
    # The log of 1 minus the listed mass would cancel where the list holds nearly all.
    others_CV = logq_CV.scatter(1, word.class_NK, -torch.inf)
    rest_C1 = torch.logsumexp(others_CV, dim=-1, keepdim=True)
    logp_CK = torch.cat([word.logp_NK, word.log_rest_N[:, None]], dim=1)
    return Compared(torch.cat([listed_CK, rest_C1], dim=1), logp_CK.to(logq_CV.dtype))


def whole(word: torch.Tensor | TopClasses) -> torch.Tensor:
    """The log-probabilities of a teacher that knows the whole vocabulary."""
    assert isinstance(word, torch.Tensor), "this teacher lists its most probable classes, and all are needed here"
    return torch.log_softmax(word, dim=-1)


@dataclass(frozen=True)
class CrossEntropyRule:
    """-log q of the counted rows' targets."""

    name: str

    def __call__(
        self, logq_CV: torch.Tensor, both: Compared | None, target_C: torch.Tensor, counted_C: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        logprob_C = logq_CV[: len(target_C)].gather(1, target_C[:, None])[:, 0]
        return {self.name: -logprob_C.masked_fill(~counted_C, 0.0).sum()}


@dataclass(frozen=True)
class DivergenceRule:
    """A divergence of the counted rows, weighted, and its diagnostics, which are not."""

    name: str
    divergence: Divergence | torch.nn.Module

    def __call__(
        self, logq_CV: torch.Tensor, both: Compared | None, weight_C: torch.Tensor, counted_C: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        assert both is not None, "a divergence needs a teacher"
        num_rows = len(counted_C)
        answer: Any = self.divergence(both.logq_CV[:num_rows], both.logp_CV[:num_rows])
        divergence_C, diagnostics = answer if isinstance(answer, tuple) else (answer, {})
        total = (divergence_C * weight_C).masked_fill(~counted_C, 0.0).sum()
        rows = {name: value_C.detach().masked_fill(~counted_C, 0) for name, value_C in diagnostics.items()}
        return {self.name: total, **{name: value_C.sum() for name, value_C in rows.items()}}


@dataclass(frozen=True)
class SpanRule:
    """Eq. 10's weighted distances of neighbouring rows; the rows may have the one after them (the halo) behind them."""

    name: str
    squared: bool
    keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None

    def __call__(self, logq_CV: torch.Tensor, both: Compared | None, pair_weight_C: torch.Tensor) -> dict[str, torch.Tensor]:
        assert both is not None, "spans need a teacher"
        num_pairs = min(len(pair_weight_C), len(logq_CV) - 1)
        left, right = slice(0, num_pairs), slice(1, num_pairs + 1)
        logq_CV, logp_CV = both
        keep_CV = None
        if self.keep is not None:
            keep_CV = self.keep(logq_CV[: num_pairs + 1], logp_CV[: num_pairs + 1])
            keep_CV = keep_CV[left] & keep_CV[right]
        distance_C = pair_distance(logq_CV[left], logq_CV[right], logp_CV[left], logp_CV[right], self.squared, keep_CV)
        return {self.name: (distance_C * pair_weight_C[left]).sum()}


@dataclass(frozen=True)
class PolicyGradientRule:
    """The clipped surrogate of written tokens, with "ratio" and "clipped" as diagnostics."""

    name: str
    clip: float

    def __call__(
        self,
        logq_CV: torch.Tensor,
        both: Compared | None,
        token_C: torch.Tensor,
        old_logprob_C: torch.Tensor,
        advantage_C: torch.Tensor,
        importance_C: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        logprob_C = logq_CV[: len(token_C)].gather(1, token_C[:, None])[:, 0]
        loss_C, ratio_C, clipped_C = clipped_surrogate(logprob_C, old_logprob_C, advantage_C, importance_C, self.clip)
        return {self.name: loss_C.sum(), "ratio": ratio_C.sum(), "clipped": clipped_C.sum(dtype=ratio_C.dtype)}


Rule = CrossEntropyRule | DivergenceRule | SpanRule | PolicyGradientRule
