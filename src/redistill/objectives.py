"""Which terms are minimised, with which weights, and what each is counted over.

L = w_sft L_SFT(gold tokens) + w_div L_div(sampled tokens) + w_span L_span(sampled sequences with spans)    (paper, Eq. 11)

Three counts, never one.  They are taken over the whole global batch - all micro-batches, all processes - before the first
forward, so that however the batch is cut, the gradient is the same.  Nobody but the loop divides.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from torch import nn

from redistill.clipping import DacKL, DacKLConfig
from redistill.contracts import Batch, Draw
from redistill.contracts import Divergence as DivergenceCall
from redistill.divergences import Divergence
from redistill.errors import ConfigError
from redistill.spans.loss import SpanConfig
from redistill.vocab_pass import CrossEntropyTerm, DivergenceTerm, SpanTerm, Term


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The weighted terms of one method.

    Args:
        sft_weight: Of the cross entropy on gold answers; 0 leaves the term, and the reading of gold answers for it, out.
        divergence: How sampled rows are matched to the teacher; None leaves the term out.
        divergence_weight: Its weight, > 0.
        span_weight: Of Eq. 10 on sampled sequences; 0 leaves it out.
        span: The switches of Eq. 10.

    Raises:
        ConfigError: a negative weight, or no term at all.
    """

    sft_weight: float = 1.0
    divergence: Divergence | DacKLConfig | None = None
    divergence_weight: float = 1.0
    span_weight: float = 0.0
    span: SpanConfig = field(default_factory=SpanConfig)

    def __post_init__(self) -> None:
        for name in ("sft_weight", "divergence_weight", "span_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 0 and finite; 0 leaves the term out")
        if not (self.uses_gold or self.uses_sampled):
            raise ConfigError("objective: no term has a weight; set sft_weight, or name a divergence")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(divergence=DacKLConfig(), span_weight=1.0))

    @property
    def uses_gold(self) -> bool:
        return self.sft_weight > 0

    @property
    def uses_divergence(self) -> bool:
        return self.divergence is not None and self.divergence_weight > 0

    @property
    def uses_spans(self) -> bool:
        return self.span_weight > 0

    @property
    def uses_sampled(self) -> bool:
        return self.uses_divergence or self.uses_spans

    def build_divergence(self, vocabulary: int, seed: int) -> DivergenceCall | nn.Module | None:
        """The divergence as something to call; DAC-KL gets its network here."""
        if isinstance(self.divergence, DacKLConfig):
            return DacKL(self.divergence, vocabulary, seed)
        return self.divergence

    def select(self, draw: Draw) -> Draw:
        """The part of a draw that some term reads."""
        return Draw(gold=draw.gold if self.uses_gold else (), sampled=draw.sampled if self.uses_sampled else ())


@dataclass(frozen=True)
class Counts:
    """What the terms are divided by, over a global batch."""

    sft_tokens: float
    sampled_tokens: float
    span_samples: float

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Self:
        """The counts of one process's micro-batches."""
        sft, sampled, spans = 0, 0, 0
        for batch in batches:
            sft += int(batch.sft_N.sum())
            sampled += batch.num_sampled_rows
            spans += batch.num_span_samples
        return cls(sft, sampled, spans)


def terms(
    objective: Objective, counts: Counts, batch: Batch, divergence: DivergenceCall | nn.Module | None
) -> tuple[Term, ...]:
    """A micro-batch's terms, each with its weight over its global count as coefficient.

    Args:
        counts: Of the whole global batch.
        batch: The micro-batch whose rows the terms read.
        divergence: What `objective.build_divergence` returned.
    """
    found: list[Term] = []
    if objective.uses_gold and counts.sft_tokens:
        found.append(CrossEntropyTerm(objective.sft_weight / counts.sft_tokens, batch.target_N, batch.sft_N))
    if objective.uses_divergence:  # without sampled rows too: its parameters then have a gradient, of zero, on every process
        assert divergence is not None
        coefficient = objective.divergence_weight / max(counts.sampled_tokens, 1)
        found.append(DivergenceTerm(coefficient, divergence, batch.num_sampled_rows))
    if objective.uses_spans and counts.span_samples:
        found.append(
            SpanTerm(
                objective.span_weight / counts.span_samples,
                batch.pair_weight_N[: batch.num_sampled_rows],
                squared=objective.span.squared,
            )
        )
    return tuple(found)


def averages(objective: Objective, counts: Counts, sums: dict[str, float]) -> dict[str, float]:
    """What is logged: each term's mean over its own count, the weighted total, and DAC-KL's diagnostics per sampled row."""
    per_count = {"sft": counts.sft_tokens, "span": counts.span_samples}
    means = {name: value / per_count.get(name, counts.sampled_tokens) for name, value in sums.items() if _counted(name, counts)}
    weights = {"sft": objective.sft_weight, "divergence": objective.divergence_weight, "span": objective.span_weight}
    return {"loss": sum(weights[name] * means[name] for name in weights if name in means), **means}


def _counted(name: str, counts: Counts) -> bool:
    return {"sft": counts.sft_tokens, "span": counts.span_samples}.get(name, counts.sampled_tokens) > 0
