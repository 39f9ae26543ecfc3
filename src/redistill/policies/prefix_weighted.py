"""Weights of tokens by the disagreement of the models on earlier tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from redistill.contracts import MAX_WEIGHT, Needs, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.order import GoldItem
from redistill.policies.scorer import Scorer
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode, check_student_text

WEIGHTED = frozenset({"student", "mixture", "revised", "replay"})
"""Origins of text whose tokens get weights.  Gold answers and teacher text get none: they do not depend on the student."""


@dataclass(frozen=True, kw_only=True)
class PrefixWeighted(WrappingNode):
    r"""Student text in which tokens after a disagreement of the models weigh less.

    .. math:: w_t = 1 + \gamma \Bigl(1 - \frac{\sum_{k < t} |A_k|}{\sum_{k} |A_k|}\Bigr), \qquad
        A_k = \log p(y_k \mid x, y_{<k}) - \log q(y_k \mid x, y_{<k})

    w_t is the weight of token t in the divergence term, and gamma is `amplification`.  A_k is the log-ratio of teacher p and
    student q at token k of the answer y to the prompt x.  The sum in the numerator is over the tokens before t, the sum in the
    denominator over all tokens of the answer.  The first token has the weight 1 + gamma.  Weights do not increase from token to
    token, and are at least 1.  If all A_k are 0, all weights are 1 + gamma.  No gradient flows through the weights.

    Source: IW-OPD (arXiv 2606.22600), Algorithm 1; the sums are those of its implementation in TRL.  IW-OPD multiplies the
    advantage of the sampled token by the weight; this implementation multiplies the divergence by it.

    Args:
        source: The policy that generates the student's text.  If it also returns gold answers or text of the teacher, the
            weights of these sequences are not changed.
        amplification: gamma, >= 0: the additional weight of the first token.  With 0, every token has the weight 1.  IW-OPD
            uses 0.5.

    Raises:
        ConfigError: amplification is negative or not finite; or the source generates no student text.

    Example:
        >>> PrefixWeighted().needs.statistics
        True
        >>> PrefixWeighted(amplification=-1.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: amplification = -1.0: must lie in [0, 1000]; IW-OPD uses 0.5

    See also: prefix_weights.
    """

    amplification: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.amplification <= MAX_WEIGHT:
            raise ConfigError(f"amplification = {self.amplification}: must lie in [0, {MAX_WEIGHT}]; IW-OPD uses 0.5")
        check_student_text("prefix_weighted", self.source, "remove prefix_weighted")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(), cls(amplification=3.0))

    @property
    def needs(self) -> Needs:
        return self.source.needs | Needs(teacher=True, statistics=True)

    def bind(self, tools: PolicyTools) -> "PrefixWeightedSource":
        assert tools.scorer is not None, "a teacher with statistics of tokens is required"
        return PrefixWeightedSource(self, self.source.bind(tools), tools.scorer)


class PrefixWeightedSource(Wrapping):
    """Returns the sequences of a `PrefixWeighted` policy.

    The method `PrefixWeighted.bind` creates the source.
    """

    def __init__(self, settings: PrefixWeighted, source: Source, scorer: Scorer) -> None:
        self._settings, self._source, self._scorer = settings, source, scorer

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        sequences = list(self._source.sequences(step, items))
        indices = [index for index, sequence in enumerate(sequences) if sequence.origin in WEIGHTED]
        found = self._scorer.statistics([sequences[index] for index in indices], ("teacher_logprob", "student_logprob"))
        for index, p_N, q_N in zip(indices, found["teacher_logprob"], found["student_logprob"], strict=True):
            weight_N = prefix_weights(p_N, q_N, self._settings.amplification)
            weights = [own * new for own, new in zip(sequences[index].target_weights, weight_N.tolist(), strict=True)]
            sequences[index] = replace(sequences[index], weights=tuple(weights))
        return sequences


def prefix_weights(teacher_logprob_N: torch.Tensor, student_logprob_N: torch.Tensor, amplification: float) -> torch.Tensor:
    r"""Return the weight of each token of an answer.

    `PrefixWeighted` has the formula and its source.

    Args:
        teacher_logprob_N, student_logprob_N: Log-probabilities of the tokens of one answer in nats, in the order of the answer.
            The value -inf is replaced by the lowest finite float32 number.
        amplification: gamma, >= 0.

    Returns:
        weight_N, float64, in [1, 1 + gamma].

    Example:
        >>> prefix_weights(torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-2.0, -1.0, -3.0]), amplification=0.5)
        tensor([1.5000, 1.3750, 1.2500], dtype=torch.float64)
    """
    bottom = torch.finfo(torch.float32).min
    ratio_N = teacher_logprob_N.double().clamp(min=bottom) - student_logprob_N.double().clamp(min=bottom)
    before_N = ratio_N.abs().cumsum(0) - ratio_N.abs()
    total = ratio_N.abs().sum()
    fraction_N = before_N / torch.where(total > 0, total, 1.0)
    return 1 + amplification * (1 - fraction_N.clamp(0, 1))
