"""The objective: a weighted sum of loss terms, each of which is a mean.

L = w_sft L_SFT(gold tokens) + w_div L_div(sampled tokens) + w_span L_span(sampled sequences with spans)    (paper, Eq. 11)
  + w_pg L_PG(sampled tokens)                                                                               (MiniLLM)
  + w_pt ((1 - d) L_CE(corpus tokens) + d L_KL(corpus tokens))                                              (pre-training term)

L is the loss of an update, and each w is the weight of a term.  The terms are cross entropy (SFT), divergence, span loss,
policy gradient (PG) and pre-training; d is the weight of L_KL within the pre-training term.  The paper is MGSR (arXiv
2407.10068).

A mean is a sum divided by a number of tokens or sequences, and each term has its own divisor.  The global batch consists of
all micro-batches of all processes.  The divisors are counted over the global batch before the first forward pass, so that
the gradient does not depend on how the batch is split.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from typing import Literal, Self

import torch
from torch import nn

from redistill.contracts import ORIGINS, Batch, Draw, DrawItem, Needs, Role, RowContext, items_of
from redistill.contracts import Divergence as DivergenceCall
from redistill.errors import ConfigError
from redistill.losses.dac_kl import DacKL, DacKLConfig, recovered
from redistill.losses.divergences import ByOrigin, Divergence, ForwardKL, ReverseKL
from redistill.losses.span import SpanConfig
from redistill.vocab_pass import CrossEntropyTerm, DivergenceTerm, PhraseTerm, PolicyGradientTerm, SpanTerm, Term


@dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig:
    r"""MiniLLM's policy gradient on roll-outs.

    .. math:: \rho_t = w_t\, \frac{q(y_t)}{q_{old}(y_t)}, \qquad
        L_t = \max\bigl(-A_t \rho_t,\; -A_t\, \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon)\bigr)

    L_t is the loss of the generated token y_t, rho_t its weighted ratio of probabilities, A_t its advantage and w_t its
    importance weight.  q is the student's distribution and q_old that of the student that generated the roll-out; epsilon is
    `clip`.  The term of the objective is the mean of L_t over sampled tokens.  Source: MiniLLM (arXiv 2306.08543).

    MiniLLM's loss has a second term, the single-step term: the expected reward of the next token.  This expectation is the
    negative reverse KL, so the divergence of the objective replaces the single-step term.  The student runs in evaluation
    mode, because dropout would change the ratio of probabilities.

    Args:
        weight: Weight of the term, > 0.
        clip: Width of the clipping, in (0, 1): rho_t is clipped to [1 - clip, 1 + clip].

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> PolicyGradientConfig().clip
        0.2
        >>> PolicyGradientConfig(clip=1.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: clip = 1.0: must lie in (0, 1); MiniLLM uses 0.2
    """

    weight: float = 1.0
    clip: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"weight = {self.weight}: must be > 0 and finite; remove policy_gradient to train without it")
        if not 0 < self.clip < 1:
            raise ConfigError(f"clip = {self.clip}: must lie in (0, 1); MiniLLM uses 0.2")


@dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    r"""The pre-training term: language modelling on `data.corpus` to reduce forgetting.

    .. math:: w \bigl((1 - d)\, L_{CE} + d\, \mathrm{KL}(p \,\|\, q)\bigr)

    w is `weight` and d is `divergence_share`.  L_CE is the cross entropy of the corpus, p is the teacher's distribution and q
    the student's.  The term is a mean over the tokens of the corpus, in nats.

    Source: L_PT of MiniLLM (arXiv 2306.08543) and DistiLLM (arXiv 2402.03898).

    Args:
        weight: Weight of the term, > 0; the public code of MiniLLM and of DistiLLM uses 1.
        divergence_share: Weight d of KL(p, q), in [0, 1]; the cross entropy has the weight 1 - d.  MiniLLM uses 0.5.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> PretrainingConfig(divergence_share=0.5).weight
        1.0
        >>> PretrainingConfig(weight=0.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: weight = 0.0: must be > 0 and finite; remove pretraining to train without it
    """

    weight: float = 1.0
    divergence_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"weight = {self.weight}: must be > 0 and finite; remove pretraining to train without it")
        if not 0 <= self.divergence_share <= 1:
            raise ConfigError(f"divergence_share = {self.divergence_share}: must lie in [0, 1]; MiniLLM uses 0.5")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The weighted terms of one method.

    .. math:: L = w_{sft} L_{SFT} + w_{div} L_{div} + w_{span} L_{span} + w_{pg} L_{PG} + w_{pt} L_{PT}

    L is the loss, each w a weight.  The terms are the cross entropy (SFT), the divergence, the span loss, the policy gradient
    (PG) and the pre-training term (PT).  Each is a mean over its own tokens or sequences of the global batch.  Source: MGSR
    (arXiv 2407.10068), Eq. 11, for the first three terms; MiniLLM (arXiv 2306.08543) for the others.

    Args:
        sft_weight: Weight of the cross entropy, >= 0; 0 removes the term.
        sft_on: The answers that the cross entropy is computed on: "gold", or "sampled", such as the teacher's answers in SeqKD.
        divergence: The divergence between teacher and student on the tokens of sampled sequences; if None, there is no
            divergence. `by_origin` applies different divergences to text of the student and text of the teacher.
        divergence_weight: Weight of the divergence, >= 0; 0 removes the term.
        divergence_mean: "tokens" is the mean over all sampled tokens.  "sequences" is the mean over the tokens of each
            sampled sequence, then the mean over sequences (Eq. 8).  If a policy sets weights of tokens, the divergence at a
            token is multiplied by its weight, but the divisor is still the number of tokens.
        span_weight: Weight of the span loss (Eq. 10) on sampled sequences, >= 0; 0 removes it.
        span: Options of the span loss.
        policy_gradient: MiniLLM's policy gradient, which needs the policy `rollouts`; if None, there is no policy gradient.
        pretraining: The pre-training term on `data.corpus`.  There is no pre-training term if this is None, or if the run
            has no corpus.

    Raises:
        ConfigError: a weight is negative, or there is no term.

    Example:
        >>> from redistill.losses.divergences import SkewForwardKL
        >>> objective = Objective(sft_weight=0.0, divergence=SkewForwardKL())
        >>> objective.uses_divergence, objective.needs.teacher
        (True, True)
        >>> Objective(sft_weight=0.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: objective: no term has a weight; set sft_weight or divergence
    """

    sft_weight: float = 1.0
    sft_on: Literal["gold", "sampled"] = "gold"
    divergence: Divergence | ByOrigin | DacKLConfig | None = None
    divergence_weight: float = 1.0
    divergence_mean: Literal["tokens", "sequences"] = "tokens"
    span_weight: float = 0.0
    span: SpanConfig = field(default_factory=SpanConfig)
    policy_gradient: PolicyGradientConfig | None = None
    pretraining: PretrainingConfig | None = None

    def __post_init__(self) -> None:
        for name in ("sft_weight", "divergence_weight", "span_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 0 and finite; 0 removes the term")
        if self.uses_spans and self.span.vectors == "clipped" and not isinstance(self.divergence, DacKLConfig):
            raise ConfigError(
                "span.vectors = 'clipped': needs the divergence dac_kl, which selects the classes; use dac_kl, or vectors: full"
            )
        if not (self.sft_weight or self.uses_sampled):
            raise ConfigError("objective: no term has a weight; set sft_weight or divergence")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances that together use every term, for tests."""
        return (
            cls(),
            cls(divergence=DacKLConfig(), span_weight=1.0),
            cls(divergence=ForwardKL(), span_weight=1.0, span=SpanConfig(form="likelihood", placement="random")),
            cls(
                sft_weight=0.0, divergence=ReverseKL(), policy_gradient=PolicyGradientConfig(), pretraining=PretrainingConfig()
            ),
        )

    @property
    def uses_divergence(self) -> bool:
        """Whether the divergence is a term of the objective."""
        return self.divergence is not None and self.divergence_weight > 0

    @property
    def trains_clip_network(self) -> bool:
        """Whether the divergence is DAC-KL with a trained clip network.

        Only this divergence can collapse to the teacher's arg max.
        """
        return self.uses_divergence and isinstance(self.divergence, DacKLConfig) and self.divergence.trains_network

    @property
    def uses_spans(self) -> bool:
        """Whether the span loss is a term of the objective."""
        return self.span_weight > 0

    @property
    def uses_sampled(self) -> bool:
        """Whether the divergence, the span loss or the policy gradient is a term."""
        return self.uses_divergence or self.uses_spans or self.policy_gradient is not None

    @property
    def reads_sampled(self) -> bool:
        """Whether any term, including the cross entropy, uses sampled sequences."""
        return self.uses_sampled or (self.sft_weight > 0 and self.sft_on == "sampled")

    @property
    def uses_teacher(self) -> bool:
        """Whether a term of the objective uses the teacher."""
        distils_corpus = self.pretraining is not None and self.pretraining.divergence_share > 0
        return self.uses_divergence or self.uses_spans or distils_corpus

    @property
    def needs(self) -> Needs:
        """What the terms, including the divergence, require of the teacher and the data."""
        needs = Needs(teacher=self.uses_teacher, gold=self.sft_weight > 0 and self.sft_on == "gold")
        if self.uses_spans:
            needs |= self.span.needs
        return needs | getattr(self.divergence, "needs", Needs(probabilities=True)) if self.uses_divergence else needs

    def build_divergence(self, vocabulary: int, seed: int) -> DivergenceCall | nn.Module | None:
        """Return the callable that computes the divergence; None without a divergence.

        For DAC-KL, the callable is a new module with the clip network, which predicts the classes to keep.

        Args:
            vocabulary: Number of classes shared with the teacher.
            seed: Seed of the initial weights of the clip network.
        """
        return DacKL(self.divergence, vocabulary, seed) if isinstance(self.divergence, DacKLConfig) else self.divergence

    def select(self, draw: Draw) -> Draw:
        """Return the sequences of a draw that at least one term uses.

        The roles of a sequence in the result state which terms use it: "sft" is the cross entropy; "distillation" is all other
        terms.
        """
        selected = ((item, self._roles(item)) for item in draw.items)
        items = tuple(DrawItem(item.sequence, roles) for item, roles in selected if roles)
        return Draw(items=items, corpus=() if self.pretraining is None else draw.corpus)

    def _roles(self, item: DrawItem) -> frozenset[Role]:
        """Return the roles of a sequence in this objective; empty if no term uses it."""
        roles: set[Role] = set()
        if self.sft_weight and ("sft" if self.sft_on == "gold" else "distillation") in item.roles:
            roles.add("sft")
        if self.uses_sampled and "distillation" in item.roles:
            roles.add("distillation")
        return frozenset(roles)


def corpus_items(draw: Draw, pretraining: PretrainingConfig) -> tuple[DrawItem, ...]:
    """Return the corpus sequences of a draw, with roles for the pre-training term.

    The role "sft" stands for the cross entropy of the corpus.  The role "distillation" stands for the divergence from the
    teacher, and is missing if `divergence_share` is 0.
    """
    return items_of(draw.corpus, "sft", "distillation") if pretraining.divergence_share > 0 else items_of(draw.corpus, "sft")


@dataclass(frozen=True)
class Counts:
    """Numbers of tokens and sequences of a batch, by which loss sums are divided."""

    sft_tokens: float = 0
    sampled_tokens: float = 0
    sampled_sequences: float = 0
    span_samples: float = 0
    corpus_tokens: float = 0

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Self:
        """Return the numbers of tokens and sequences in the micro-batches `batches`."""
        return cls.total(
            cls(corpus_tokens=batch.num_sft_rows)
            if batch.role == "pretraining"
            else cls(batch.num_sft_rows, batch.num_sampled_rows, batch.num_sampled, batch.num_span_samples)
            for batch in batches
        )

    @classmethod
    def total(cls, counts: Iterable[Self]) -> Self:
        """Return the sum of `counts`, taken separately for each field."""
        return cls(*(sum(column) for column in zip(*map(astuple, counts), strict=True)))

    @property
    def tokens(self) -> float:
        """Number of trained targets; a target that two terms use counts twice."""
        return self.sft_tokens + self.sampled_tokens + self.corpus_tokens


def row_context(batch: Batch, progress: float) -> RowContext:
    """Return origin and training progress of each sampled row of a micro-batch.

    Args:
        batch: The micro-batch.
        progress: Training progress in [0, 1].
    """
    origin_B = torch.tensor([ORIGINS.index(origin) for origin in batch.origins], dtype=torch.int64)
    rows_N = batch.sequence_N[: batch.num_sampled_rows]
    return RowContext(origin_B.to(rows_N.device)[rows_N], torch.full(rows_N.shape, progress, device=rows_N.device))


def terms(
    objective: Objective,
    counts: Counts,
    batch: Batch,
    divergence: DivergenceCall | nn.Module | None,
    progress: float = 0.0,
) -> tuple[Term, ...]:
    """Return the loss terms of a micro-batch.

    The coefficient of a term is its weight, divided by the number of tokens or sequences over which the term is a mean.

    Args:
        objective: The terms and their weights.
        counts: Numbers of tokens and sequences in the global batch.
        batch: The micro-batch on which the terms are computed.
        divergence: The result of `objective.build_divergence`.
        progress: Training progress in [0, 1], for a divergence that depends on it.
    """
    found: list[Term] = []
    rows, gradient = batch.num_sampled_rows, objective.policy_gradient
    if batch.role == "pretraining":
        assert objective.pretraining is not None
        coefficient, fraction = objective.pretraining.weight / counts.corpus_tokens, objective.pretraining.divergence_share
        if fraction < 1:
            found.append(CrossEntropyTerm(coefficient * (1 - fraction), batch.target_N, batch.sft_N, name="pretraining"))
        if fraction > 0:
            found.append(DivergenceTerm(coefficient * fraction, ForwardKL(), rows, name="pretraining_kl"))
        return tuple(found)
    if objective.sft_weight and counts.sft_tokens:
        found.append(CrossEntropyTerm(objective.sft_weight / counts.sft_tokens, batch.target_N, batch.sft_N))
    # The term is added even without sampled rows, so that its parameters have a gradient (of zero) on every process.
    if objective.uses_divergence:
        assert divergence is not None
        by_token = objective.divergence_mean == "tokens"
        coefficient = objective.divergence_weight / max(counts.sampled_tokens if by_token else counts.sampled_sequences, 1)
        weight_N = batch.token_weight_N if by_token else batch.token_weight_N * batch.sequence_weight_N[:rows]
        context = row_context(batch, progress) if getattr(divergence, "reads_context", False) else None
        found.append(DivergenceTerm(coefficient, divergence, rows, weight_N, context))
    if objective.uses_spans and counts.span_samples:
        coefficient = objective.span_weight / counts.span_samples
        if objective.span.form == "likelihood":
            found.append(PhraseTerm(coefficient, batch.target_N[:rows], batch.phrases))
        else:
            keep = divergence.kept if objective.span.vectors == "clipped" and isinstance(divergence, DacKL) else None
            found.append(SpanTerm(coefficient, batch.pair_weight_N[:rows], objective.span.squared, keep))
    if gradient is not None and counts.sampled_tokens:
        rollout = batch.target_N[:rows], batch.old_logprob_N, batch.advantage_N, batch.importance_N
        found.append(PolicyGradientTerm(gradient.weight / counts.sampled_tokens, *rollout, gradient.clip))
    return tuple(found)


def averages(objective: Objective, counts: Counts, sums: dict[str, float]) -> dict[str, float]:
    """Compute the metrics of an update: "loss", and the mean of each term.

    `sums` has the sums of terms and diagnostics (values that are only logged) over the global batch.  The sum of a term is
    divided by the number of tokens or sequences over which the term is a mean.  The sum of a diagnostic is divided by the
    number of sampled tokens.  "loss" is the weighted sum of the means of the terms.  For DAC-KL, "recovered" is the kept
    fraction of the teacher's mass outside its arg max.  `dac_kl.recovered` computes it from the means of the diagnostics.
    """
    divisors = {
        "sft": counts.sft_tokens,
        "divergence": counts.sampled_tokens if objective.divergence_mean == "tokens" else counts.sampled_sequences,
        "span": counts.span_samples,
        "pretraining": counts.corpus_tokens,
        "pretraining_kl": counts.corpus_tokens,
    }
    divided = ((name, value, divisors.get(name, counts.sampled_tokens)) for name, value in sums.items())
    means = {name: value / count for name, value, count in divided if count > 0}
    if {"kept_mass", "top_mass"} <= means.keys():
        means["recovered"] = recovered(means)
    weights = {"sft": objective.sft_weight, "divergence": objective.divergence_weight, "span": objective.span_weight}
    if objective.policy_gradient is not None:
        weights["policy_gradient"] = objective.policy_gradient.weight
    if objective.pretraining is not None:
        weight, fraction = objective.pretraining.weight, objective.pretraining.divergence_share
        weights |= {"pretraining": weight * (1 - fraction), "pretraining_kl": weight * fraction}
    return {"loss": sum(weights[name] * means[name] for name in weights if name in means), **means}
