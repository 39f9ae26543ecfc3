"""Terms of the objective: a term is a coefficient times a sum over rows.

The property `rule` of a term is a function that computes the sum over a slice of the rows (rules.py).  The method `tensors`
returns the tensors with which this function is called, such as targets and weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from redistill.contracts import Divergence, RowContext
from redistill.vocab_pass.rules import CrossEntropyRule, DivergenceRule, PhraseRule, PolicyGradientRule, SpanRule


@dataclass(frozen=True, eq=False)
class CrossEntropyTerm:
    r"""Cross entropy of target tokens, in nats, summed where `mask_N` is True.

    .. math:: c \sum_{n} m_n \bigl(-\log q_n(y_n)\bigr)

    c is `coefficient`, m is `mask_N`, y is `target_N`, and q_n is the student's distribution of row n.

    Source: MGSR (arXiv 2407.10068), Eq. 2.

    Args:
        coefficient: Factor c.  Training uses the weight of the term divided by the number of targets in the global batch.
        target_N: Target tokens, int64.
        mask_N: bool, True for the rows that are summed.
        name: Name of this sum in the results.

    Example:
        >>> term = CrossEntropyTerm(0.5, torch.tensor([4, 2]), torch.tensor([True, False]))
        >>> term.name, term.tensors(slice(1, 2), torch.device("cpu"))
        ('sft', (tensor([2]), tensor([False])))
    """

    coefficient: float
    target_N: torch.Tensor
    mask_N: torch.Tensor
    name: str = "sft"

    @property
    def rule(self) -> CrossEntropyRule:
        """The function that computes the sum of this term over a slice of rows.

        If two terms have equal settings, their functions are equal, and share one compiled version.
        """
        return CrossEntropyRule(self.name)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the tensor arguments of `rule` for the slice `rows`.

        If new tensors are created, they are on `device`.
        """
        return self.target_N[rows], self.mask_N[rows]


@dataclass(frozen=True, eq=False)
class DivergenceTerm:
    r"""A divergence between teacher and student, summed over the first `num_rows` rows.

    .. math:: c \sum_{n < \mathrm{num\_rows}} w_n\, D(p_n, q_n)

    c is `coefficient`, w is `weight_N`, and D is `divergence`.  p_n and q_n are the distributions of teacher and student in row
    n.

    Source: that of the divergence, which its own docstring names.

    Args:
        coefficient: Factor c.  Training uses the weight of the term divided by the number of tokens or sequences in the
            global batch, as `objective.divergence_mean` selects.
        divergence: A function of (logq_NV, logp_NV), or a trainable module.  It returns divergence_N, or (divergence_N,
            diagnostics).  The diagnostics are a mapping from names to tensors with one value per row; their sums are
            returned by name.
        num_rows: Number of rows on which the divergence is computed: the first rows of the batch.
        weight_N: Weight of each of these rows in the sum, float32, `num_rows` long.  If None, all rows have the weight 1.
        context: Origin and training progress of each of these rows, for a divergence with `reads_context` = True; None for
            other divergences.
        name: Name of this sum in the results.

    Raises:
        ConfigError: raised by `vocab_pass` if the divergence does not return one value for each row.

    Example:
        >>> from redistill.losses.divergences import ForwardKL
        >>> DivergenceTerm(0.5, ForwardKL(), num_rows=2).tensors(slice(1, 4), torch.device("cpu"))
        (tensor([1.]), tensor([True]))
    """

    coefficient: float
    divergence: Divergence | torch.nn.Module
    num_rows: int
    weight_N: torch.Tensor | None = None
    context: RowContext | None = None
    name: str = "divergence"

    @property
    def rule(self) -> DivergenceRule:
        """The function that computes the sum of this term over a slice of rows.

        If two terms have equal settings, their functions are equal, and share one compiled version.
        """
        return DivergenceRule(self.name, self.divergence)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the tensor arguments of `rule` for the slice `rows`.

        If new tensors are created, they are on `device`.
        """
        num_rows = max(0, min(rows.stop, self.num_rows) - rows.start)
        counted_C = torch.ones(num_rows, dtype=torch.bool, device=device)
        weight_C = counted_C.float() if self.weight_N is None else self.weight_N[rows]
        return weight_C, counted_C, *(() if self.context is None else (values_N[rows] for values_N in self.context))


@dataclass(frozen=True, eq=False)
class SpanTerm:
    r"""The span loss (Eq. 10) over pairs of neighbouring rows.

    .. math:: c \sum_n w_n \lVert q_n \circ q_{n+1} - p_n \circ p_{n+1} \rVert_2

    c is `coefficient`, and w is `pair_weight_N`.  q_n and p_n are the distributions of student and teacher in row n; the
    products are elementwise.  The norm is squared if `squared` is True.  Source: MGSR (arXiv 2407.10068), Eq. 10.

    Args:
        coefficient: Factor c.  Training uses the weight of the term divided by the number of samples with spans in the global
            batch.
        pair_weight_N: Weight of each pair of rows (n, n + 1), float32; 0 if no span contains both rows.
        squared: Whether the distance is squared.
        keep: Function of (logq_NV, logp_NV) that returns keep_NV, bool: the classes that DAC-KL keeps.  If None, all
            classes are kept.  The classes of a row must depend on this row only, because rows are processed in chunks.

    Example:
        >>> SpanTerm(1.0, torch.tensor([0.5, 0.0]), squared=False).tensors(slice(0, 2), torch.device("cpu"))
        (tensor([0.5000, 0.0000]),)
    """

    coefficient: float
    pair_weight_N: torch.Tensor
    squared: bool
    keep: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    name: ClassVar[str] = "span"

    @property
    def rule(self) -> SpanRule:
        """The function that computes the sum of this term over a slice of rows.

        If two terms have equal settings, their functions are equal, and share one compiled version.
        """
        return SpanRule(self.name, self.squared, self.keep)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the tensor arguments of `rule` for the slice `rows`.

        If new tensors are created, they are on `device`.
        """
        return (self.pair_weight_N[rows],)


@dataclass(frozen=True, eq=False)
class PhraseTerm:
    """The likelihood form of the span loss, summed over the first rows of the batch.

    `losses.phrase.phrase_rows` has the equation.  `with_phrases` sets `value_N` and `slope_N`; until then the sum is 0.
    Source: own; MGSR has no such form.

    Args:
        coefficient: Factor of the sum.  Training uses the weight of the term divided by the number of samples with spans in
            the global batch.
        token_N: The token that each of these rows predicts, int64.
        phrases: For each phrase (first row, last row + 1, weight).
        value_N, slope_N: For each row, the part of the loss that is stored at the row, and the derivative of the loss with
            respect to log q of the token.  Both are None until `with_phrases` has computed them.

    Example:
        >>> PhraseTerm(1.0, torch.tensor([4, 2]), ((0, 2, 1.0),)).tensors(slice(0, 2), torch.device("cpu"))[0]
        tensor([4, 2])
    """

    coefficient: float
    token_N: torch.Tensor
    phrases: tuple[tuple[int, int, float], ...]
    value_N: torch.Tensor | None = None
    slope_N: torch.Tensor | None = None
    name: ClassVar[str] = "span"

    @property
    def rule(self) -> PhraseRule:
        """The function that computes the sum of this term over a slice of rows.

        If two terms have equal settings, their functions are equal, and share one compiled version.
        """
        return PhraseRule(self.name)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the tensor arguments of `rule` for the slice `rows`.

        If new tensors are created, they are on `device`.
        """
        token_C = self.token_N[rows]
        if self.value_N is None or self.slope_N is None:
            zero_C = torch.zeros(len(token_C), device=device)
            return token_C, zero_C, zero_C
        return token_C, self.value_N[rows], self.slope_N[rows]


@dataclass(frozen=True, eq=False)
class PolicyGradientTerm:
    r"""MiniLLM's clipped policy-gradient loss, summed over the first rows of the batch.

    .. math:: c \sum_n \max\bigl(-A_n \rho_n,\; -A_n\, \mathrm{clip}(\rho_n, 1 - \epsilon, 1 + \epsilon)\bigr), \qquad
        \rho_n = w_n\, q_n(y_n) / q_{old}(y_n)

    c is `coefficient`, y the generated token, A its advantage, w its importance weight, and epsilon is `clip`.  q is the
    student that is trained, and q_old the student at the time of generation.  Source: MiniLLM (arXiv 2306.08543).

    `vocab_pass` also returns two diagnostics: "ratio", the sum of the ratios rho, and "clipped", the number of tokens for
    which clipping is active.

    Args:
        coefficient: Factor c.  Training uses the weight of the term divided by the number of sampled tokens in the global
            batch.
        token_N: The generated tokens, int64; the term is computed on the first len(token_N) rows.
        old_logprob_N, advantage_N, importance_N: log q_old, A and w of these tokens, float32; see
            policy_gradient.clipped_surrogate.
        clip: epsilon of the clipped surrogate, in (0, 1): the ratio is clipped to [1 - clip, 1 + clip].

    Example:
        >>> one_N = torch.ones(1)
        >>> term = PolicyGradientTerm(1.0, torch.tensor([4]), -one_N, one_N, one_N, clip=0.2)
        >>> term.rule
        PolicyGradientRule(name='policy_gradient', clip=0.2)
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
        """The function that computes the sum of this term over a slice of rows.

        If two terms have equal settings, their functions are equal, and share one compiled version.
        """
        return PolicyGradientRule(self.name, self.clip)

    def tensors(self, rows: slice, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return the tensor arguments of `rule` for the slice `rows`.

        If new tensors are created, they are on `device`.
        """
        return self.token_N[rows], self.old_logprob_N[rows], self.advantage_N[rows], self.importance_N[rows]


Term = CrossEntropyTerm | DivergenceTerm | SpanTerm | PhraseTerm | PolicyGradientTerm
