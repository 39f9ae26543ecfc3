"""The span loss (MGSR, arXiv 2407.10068, Eq. 10) on rows of log-probabilities.

Row j is the distribution that *predicts* token j.  A span is the half-open range [a, b) of the tokens of a phrase; it has b - a
tokens.  The loss compares student and teacher at each pair of neighbouring rows (j, j + 1) with a <= j and j + 1 < b.

`span_loss` computes the loss of one sample.  The training step (vocab_pass) computes the same sum from `pair_distance` and
`pair_weights`, so that it can process the pairs of all samples in chunks.

`SpanConfig.form` "likelihood" selects another loss, which is not in the paper; phrase.py computes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from redistill.contracts import Needs
from redistill.errors import check_field
from redistill.tensors import loss_dtype

Denominator = Literal["tokens", "pairs"]
Form = Literal["products", "likelihood"]
Nested = Literal["both", "outer", "inner"]
Placement = Literal["phrases", "random"]
Vectors = Literal["full", "clipped"]


@dataclass(frozen=True, kw_only=True)
class SpanConfig:
    r"""Settings of the span loss; the defaults are Eq. 10 as printed.

    .. math::
        L = \frac{1}{n_s} \sum_{i=1}^{n_s} \frac{1}{n_{s_i}} \sum_{j} \lVert q_j \circ q_{j+1} - p_j \circ p_{j+1} \rVert_2

    n_s is the number of spans, n_si the number of tokens of span i, and j runs over the pairs of neighbouring rows (j, j + 1)
    of span i.  q_j and p_j are the distributions of student and teacher that predict token j; their product is elementwise.
    Source: MGSR (arXiv 2407.10068), Eq. 9-10.

    Args:
        form: "products" is Eq. 10.  "likelihood" compares the log-likelihoods of a phrase under both models, as defined in
            `phrase.phrase_rows`.  It needs only the probability of one token in each row, and is not in the paper.  It requires
            the defaults of `squared`, `denominator` and `vectors`.
        squared: Whether the L2 norm in the equation is squared.
        denominator: Divisor of the sum over a span: its number of "tokens" (n_si, as printed), or its number of "pairs" of
            rows, which is one less.
        skip_singletons: Whether spans of one token are excluded from the mean over spans.  A span of one token has no pair,
            so its sum is 0 and reduces the mean.
        nested: Which spans are used if one span contains another, as a prepositional phrase contains a noun phrase: only the
            "outer" span, only the "inner" span, or "both".  The paper divides a sequence into phrases, which do not overlap.
        placement: "phrases" uses the spans of phrases.  "random" is a control: the spans of each sequence are moved to random
            positions, and their lengths are kept.
        vectors: The distributions that are multiplied.  "full" uses all classes; "clipped" uses only the classes that DAC-KL
            keeps, without renormalisation.

    Raises:
        ConfigError: a field has a value that is not listed here, or two fields cannot be combined.

    Example:
        >>> SpanConfig(denominator="pairs").nested
        'outer'
        >>> SpanConfig(nested="all")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: nested = 'all': must be outer, inner or both; outer counts no token twice
    """

    form: Form = "products"
    squared: bool = False
    denominator: Denominator = "tokens"
    skip_singletons: bool = False
    nested: Nested = "outer"
    placement: Placement = "phrases"
    vectors: Vectors = "full"

    def __post_init__(self) -> None:
        good = self.denominator in get_args(Denominator)
        check_field(self, "denominator", good, "must be tokens or pairs; Eq. 10 divides by tokens")
        good = self.nested in get_args(Nested)
        check_field(self, "nested", good, "must be outer, inner or both; outer counts no token twice")
        for name, kind in (("form", Form), ("placement", Placement)):
            check_field(self, name, getattr(self, name) in get_args(kind), f"must be {' or '.join(get_args(kind))}")
        good = self.vectors in get_args(Vectors)
        check_field(self, "vectors", good, "must be full or clipped; clipped needs the divergence dac_kl")
        has_defaults = not self.squared and self.denominator == "tokens" and self.vectors == "full"
        remedy = "leave out squared, denominator and vectors, which are options of products"
        check_field(self, "form", self.form == "products" or has_defaults, f"compares no products; {remedy}")

    @property
    def needs(self) -> Needs:
        """What the span loss requires of the teacher.

        The form "products" requires the probabilities of all classes.  The form "likelihood" requires probabilities of
        tokens.
        """
        return Needs(teacher=True, full_vocabulary=self.form == "products", probabilities=True)


def span_loss(
    logq_TV: Tensor,
    logp_TV: Tensor,
    spans: Sequence[tuple[int, int]],
    config: SpanConfig = SpanConfig(),
    keep_TV: Tensor | None = None,
) -> Tensor:
    r"""Compute the span loss of one sample (Eq. 10).

    Each model's distributions at two neighbouring rows are multiplied elementwise.  The loss is the distance between the
    products of both models, averaged over spans.

    .. math::
        L = \frac{1}{n_s} \sum_{i=1}^{n_s} \frac{1}{n_{s_i}} \sum_{j} \lVert q_j \circ q_{j+1} - p_j \circ p_{j+1} \rVert_2

    p is the teacher, q the student.  n_s is the number of spans, n_si the number of tokens of span i, and j runs over the pairs
    (j, j + 1) of span i.  Source: MGSR (arXiv 2407.10068), Eq. 9-10.  0 <= L <= sqrt(2), or 2 if `config.squared`.  L is 0 if p
    and q are equal or if there is no span.  The gradient flows through q only; a pair whose norm is 0 has a gradient of 0.

    Args:
        logq_TV: Student log-probabilities of one sample's rows; float64 stays float64, all else is computed in float32.
        logp_TV: Teacher log-probabilities, same shape, no gradient.
        spans: Half-open ranges of rows.  They may overlap; a range that is listed twice counts as two spans.
        config: Settings of the span loss.
        keep_TV: The classes that DAC-KL keeps in each row, bool; required if `config.vectors` is "clipped", otherwise None.

    Returns:
        A scalar.

    Example:
        >>> rows = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> span_loss(rows, rows.flip(1), [(0, 2)])  # (0.45, 0.05) against (0.05, 0.45), over 2 tokens
        tensor(0.2828)

    See also: pair_weights and pair_distance, from which training computes the same sum.
    """
    assert (keep_TV is not None) == (config.vectors == "clipped"), "clipped vectors need keep_TV, full ones must not have it"
    distance_N = pair_distance(logq_TV, logp_TV, len(logq_TV) - 1, config.squared, keep_TV)
    weight_N = _weights(spans, len(logq_TV), config)[:-1].to(distance_N)
    in_spans_N = weight_N > 0  # other rows must not matter, even if they are NaN
    return (distance_N[in_spans_N] * weight_N[in_spans_N]).sum()


def pair_weights(spans: Sequence[tuple[int, int]], num_rows: int, config: SpanConfig) -> Tensor:
    """Return the weight w_n of each pair of neighbouring rows (n, n + 1).

    The span loss of the sample is the sum of w_n d_n, where d_n is the `pair_distance` of rows n and n + 1.  The last weight
    is always 0, since the last row has no next row in the sample.  The rows of several samples can therefore be concatenated.

    Args:
        spans: Half-open ranges of rows.
        num_rows: Number of rows of the sample.
        config: Settings of the span loss.

    Returns:
        weight_N, float32, `num_rows` long, >= 0.

    Example:
        >>> pair_weights([(0, 2), (1, 4)], 5, SpanConfig())  # 1/2 of 1/2, and 1/2 of 1/3
        tensor([0.2500, 0.1667, 0.1667, 0.0000, 0.0000])
    """
    return _weights(spans, num_rows, config).float()


def _weights(spans: Sequence[tuple[int, int]], num_rows: int, config: SpanConfig) -> Tensor:
    """Return the weight of each pair of neighbouring rows, float64, [num_rows]."""
    for start, stop in spans:
        assert 0 <= start < stop <= num_rows, f"span [{start}, {stop}) does not lie in the sample's {num_rows} rows"
    weight_N = torch.zeros(num_rows, dtype=torch.float64)
    counted = counted_spans(spans, config)
    for start, stop in counted:
        # A span of one token has an empty sum; the divisor 1 replaces its number of pairs, 0.
        divisor = stop - start if config.denominator == "tokens" else max(stop - start - 1, 1)
        weight_N[start : stop - 1] += 1 / (divisor * len(counted))
    return weight_N


def pair_distance(logq_NV: Tensor, logp_NV: Tensor, num_pairs: int, squared: bool, keep_NV: Tensor | None = None) -> Tensor:
    """Return the L2 distance of student and teacher at each pair of neighbouring rows.

    Each model's distributions at the two rows of a pair are multiplied elementwise.  The distance is the L2 norm of the
    difference of the two products.  The distance lies in [0, sqrt(2)], and its square in [0, 2].

    Args:
        logq_NV: Student log-probabilities of at least num_pairs + 1 rows.
        logp_NV: Teacher log-probabilities of the same rows, no gradient.
        num_pairs: Number of pairs of rows n and n + 1, from the first row on.
        squared: Whether to return the squared distance.
        keep_NV: bool, True for the classes that are kept in each row.  Only classes that are kept in both rows of a pair
            contribute to the distance.  If None, all classes contribute.

    Returns:
        distance_N, `num_pairs` long, float32 (float64 for float64 inputs); its gradient is exactly 0 where the distance is 0.
    """
    dtype = loss_dtype(logq_NV)
    left, right = slice(0, num_pairs), slice(1, num_pairs + 1)
    student_NV = (logq_NV[left].to(dtype) + logq_NV[right].to(dtype)).exp()
    teacher_NV = (logp_NV[left].to(dtype) + logp_NV[right].to(dtype)).exp().detach()
    difference_NV = student_NV - teacher_NV
    if keep_NV is not None:
        difference_NV = difference_NV.masked_fill(~(keep_NV[left] & keep_NV[right]), 0.0)
    if squared:
        return difference_NV.square().sum(-1)
    norm_N: Tensor = torch.linalg.vector_norm(difference_NV, dim=-1)
    return norm_N


def counted_spans(spans: Sequence[tuple[int, int]], config: SpanConfig) -> list[tuple[int, int]]:
    """Return the spans that the mean over spans in Eq. 10 includes.

    If `config.nested` is "outer", spans that lie in another span are removed; if it is "inner", spans that contain another span
    are removed.  Afterwards, if `config.skip_singletons` is True, spans of one token are removed.

    Example:
        >>> counted_spans([(0, 4), (1, 4), (5, 6)], SpanConfig(nested="inner", skip_singletons=True))
        [(1, 4)]
    """
    if config.nested == "outer":
        spans = [span for span in spans if not any(_contains(other, span) for other in spans)]
    elif config.nested == "inner":
        spans = [span for span in spans if not any(_contains(span, other) for other in spans)]
    shortest = 2 if config.skip_singletons else 1
    return [(start, stop) for start, stop in spans if stop - start >= shortest]


def _contains(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    """Return whether `inner` lies in `outer` and differs from `outer`."""
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]
