"""The span loss, Eq. 10, on rows of log-probabilities.

It knows rows and ranges of rows, never text: a span is half-open, [a, b) has b - a tokens and the pairs (j, j + 1) for
a <= j < b - 1, and row j is the distribution that *predicts* token j.  The vocabulary pass uses the same distance with
`pair_weights`, so that the pairs of all samples can be walked in chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from redistill.errors import ConfigError
from redistill.tensors import loss_dtype

Denominator = Literal["tokens", "pairs"]
Nested = Literal["both", "outer", "inner"]
Vectors = Literal["full", "clipped"]


@dataclass(frozen=True, kw_only=True)
class SpanConfig:
    """How Eq. 10 is read; the defaults are the equation to the letter.

    Args:
        squared: Squared L2 norm of a pair's difference instead of the norm itself.
        denominator: What a span's sum is divided by: its "tokens" (n_si, as printed) or its "pairs", one fewer.
        skip_singletons: Leave spans of one token out of the mean; they have no pair, so they only make it smaller.
        nested: Where a phrase lies in another, as a noun phrase in its prepositional phrase: "both" count, or the "outer"
            alone, or the "inner" alone.
        vectors: Products of the "full" distributions, or of those "clipped" to the classes that DAC-KL keeps, not renormalised.

    Raises:
        ConfigError: denominator, nested or vectors is none of these.
    """

    squared: bool = False
    denominator: Denominator = "tokens"
    skip_singletons: bool = False
    nested: Nested = "both"
    vectors: Vectors = "full"

    def __post_init__(self) -> None:
        if self.denominator not in get_args(Denominator):
            raise ConfigError(f"denominator = {self.denominator!r}: must be tokens or pairs; Eq. 10 divides by tokens")
        if self.nested not in get_args(Nested):
            raise ConfigError(f"nested = {self.nested!r}: must be both, outer or inner; both counts every phrase")
        if self.vectors not in get_args(Vectors):
            raise ConfigError(f"vectors = {self.vectors!r}: must be full or clipped; clipped needs the divergence dac_kl")


def span_loss(
    logq_TV: torch.Tensor,
    logp_TV: torch.Tensor,
    spans: Sequence[tuple[int, int]],
    config: SpanConfig = SpanConfig(),
    keep_TV: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""How differently two models relate neighbouring tokens inside phrases, for one sample.

    .. math::
        L = \frac{1}{n_s} \sum_{i=1}^{n_s} \frac{1}{n_{s_i}} \sum_{j} \lVert q_j \circ q_{j+1} - p_j \circ p_{j+1} \rVert_2

    p is the teacher, q the student.  Source: MGSR Eq. 9-10 (arXiv 2407.10068).  0 <= L <= sqrt(2) (2 where squared); 0 where
    q = p, and where there is no span.  The gradient flows through q only and is 0 where a difference is 0.

    Args:
        logq_TV: Student log-probabilities of one sample's rows; float64 stays float64, all else is float32.
        logp_TV: Teacher log-probabilities, same shape, no gradient.
        spans: Half-open ranges of rows; they may overlap, and count as often as they are given.
        config: How the equation is read.
        keep_TV: The classes S that are kept of each row, where the vectors are clipped.

    Returns:
        A scalar.

    Example:
        >>> rows = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> span_loss(rows, rows.flip(1), [(0, 2)])  # (0.45, 0.05) against (0.05, 0.45), over 2 tokens
        tensor(0.2828)

    See also: pair_weights, the same sum in the form that the vocabulary pass walks.
    """
    _check(spans, logq_TV.shape[0])
    assert (keep_TV is not None) == (config.vectors == "clipped"), "clipped vectors need to know what is kept"
    keep_NV = None if keep_TV is None else keep_TV[:-1] & keep_TV[1:]
    distance_N = pair_distance(logq_TV[:-1], logq_TV[1:], logp_TV[:-1], logp_TV[1:], config.squared, keep_NV)
    counted = counted_spans(spans, config)
    total = distance_N[:0].sum()
    for start, stop in counted:
        total = total + distance_N[start : stop - 1].sum() / (_divisor(stop - start, config) * len(counted))
    return total


def pair_weights(spans: Sequence[tuple[int, int]], num_rows: int, config: SpanConfig) -> torch.Tensor:
    """The weight of each pair of rows (n, n + 1) in the span loss of one sample.

    With d_n the `pair_distance` of rows n and n + 1, the sum of w_n d_n is `span_loss`.  The last weight is always 0, so
    samples can be laid end to end without a pair that crosses from one to the next.

    Args:
        spans: Half-open ranges of rows.
        num_rows: How many rows the sample has.
        config: How Eq. 10 is read.

    Returns:
        weight_N, float32, `num_rows` long, >= 0.

    Example:
        >>> pair_weights([(0, 2), (1, 4)], 5, SpanConfig())  # 1/2 of 1/2, and 1/2 of 1/3
        tensor([0.2500, 0.1667, 0.1667, 0.0000, 0.0000])
    """
    _check(spans, num_rows)
    weight_N = torch.zeros(num_rows, dtype=torch.float64)
    counted = counted_spans(spans, config)
    for start, stop in counted:
        weight_N[start : stop - 1] += 1 / (_divisor(stop - start, config) * len(counted))
    return weight_N.float()


def pair_distance(
    logq_left_NV: torch.Tensor,
    logq_right_NV: torch.Tensor,
    logp_left_NV: torch.Tensor,
    logp_right_NV: torch.Tensor,
    squared: bool,
    keep_NV: torch.Tensor | None = None,
) -> torch.Tensor:
    """The L2 distance of two models' products of neighbouring rows, in [0, sqrt(2)] ([0, 2] squared).

    Args:
        logq_left_NV, logq_right_NV: Student log-probabilities of the pairs' first and second rows.
        logp_left_NV, logp_right_NV: Teacher log-probabilities of the same rows, no gradient.
        squared: Whether to leave the root out.
        keep_NV: bool, the classes that both rows of a pair keep, where only those count; None counts all.

    Returns:
        distance_N, float32 (float64 for float64 inputs); its gradient is exactly 0 where the distance is.
    """
    dtype = loss_dtype(logq_left_NV)
    student_NV = (logq_left_NV.to(dtype) + logq_right_NV.to(dtype)).exp()
    teacher_NV = (logp_left_NV.to(dtype) + logp_right_NV.to(dtype)).exp().detach()
    difference_NV = student_NV - teacher_NV
    if keep_NV is not None:
        difference_NV = difference_NV.masked_fill(~keep_NV, 0.0)
    if squared:
        return difference_NV.square().sum(-1)
    return torch.linalg.vector_norm(difference_NV, dim=-1)


def _check(spans: Sequence[tuple[int, int]], num_rows: int) -> None:
    """Spans come from our own alignment, so one that leaves the sample is our mistake."""
    for start, stop in spans:
        assert 0 <= start < stop <= num_rows, f"span [{start}, {stop}) does not lie in the sample's {num_rows} rows"


def counted_spans(spans: Sequence[tuple[int, int]], config: SpanConfig) -> list[tuple[int, int]]:
    """The spans that the mean is taken over: first those of nested ones that count, then those that are long enough.

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
    """Whether `inner` is a proper part of `outer`."""
    return outer != inner and outer[0] <= inner[0] and inner[1] <= outer[1]


def _divisor(num_tokens: int, config: SpanConfig) -> int:
    """What one span's sum is divided by; a span of one token has an empty sum, so 1 will do for its 0 pairs."""
    return num_tokens if config.denominator == "tokens" else max(num_tokens - 1, 1)
