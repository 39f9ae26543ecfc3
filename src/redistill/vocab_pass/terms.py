"""What a walk adds up: each term is a sum over rows, with the coefficient that the loop gave it.

A term has a `rule`, the arithmetic, and `tensors`, what the rule reads of some rows; see rules.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from redistill.contracts import Divergence
from redistill.vocab_pass.rules import CrossEntropyRule, DivergenceRule, PolicyGradientRule, SpanRule


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

    @property
    def rule(self) -> CrossEntropyRule:
        return CrossEntropyRule(self.name)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        """What the rule reads of `rows`."""
        return self.target_N[rows], self.mask_N[rows]


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

    @property
    def rule(self) -> DivergenceRule:
        return DivergenceRule(self.name, self.divergence)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        num_rows = max(0, min(rows.stop, self.num_rows) - rows.start)
        counted_C = torch.ones(num_rows, dtype=torch.bool, device=device)
        return (counted_C.float() if self.weight_N is None else self.weight_N[rows]), counted_C


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

    @property
    def rule(self) -> SpanRule:
        return SpanRule(self.name, self.squared, self.keep)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        return (self.pair_weight_N[rows],)


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

    @property
    def rule(self) -> PolicyGradientRule:
        return PolicyGradientRule(self.name, self.clip)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        return self.token_N[rows], self.old_logprob_N[rows], self.advantage_N[rows], self.importance_N[rows]


Term = CrossEntropyTerm | DivergenceTerm | SpanTerm | PolicyGradientTerm
