"""Rules: functions that compute the sum of one term over the rows of a tile.

A term is a summand of the objective, such as a divergence; a tile is a slice of rows.  A rule is called with these arguments:

- The student's log-probabilities of all classes.
- `Both`: the log-probabilities of student and teacher for the same classes.  Without a teacher, this argument is None.  If the
  teacher provides only sampled classes, this argument has the student's log-probabilities of these classes.
- Tensors that change during a run, such as targets, masks and weights.  A row for which all these tensors are 0 does not
  contribute to the sum, whatever the logits of the row are.

The fields of a rule are constant during a run.  Rules with equal fields are equal, and share one compiled function.

The value of each row is float32, and the sum is float64.  A float32 sum over thousands of rows would change by about 1e-6 if
the rows were divided into tiles and micro-batches in another way.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from redistill.contracts import Divergence, RowContext, SampledClasses, TopClasses
from redistill.errors import ConfigError
from redistill.losses.divergences import ForwardKL
from redistill.losses.policy_gradient import clipped_surrogate
from redistill.losses.span import pair_distance

TargetRows = Tensor | TopClasses | SampledClasses
"""Teacher logits, the teacher's most probable classes, or classes sampled from the teacher; see `contracts.TeacherTarget`."""


class LogProbs(NamedTuple):
    """Log-probabilities of student and teacher for the same classes.

    Gradients flow through `logq_CV` only.
    """

    logq_CV: Tensor
    logp_CV: Tensor


class Sampled(NamedTuple):
    """Student log-probabilities of classes that were sampled from the teacher.

    Gradients flow through `logq_CK` only.  `contracts.SampledClasses` describes the weights and the entropy.
    """

    logq_CK: Tensor
    weight_CK: Tensor
    entropy_C: Tensor


Both = LogProbs | Sampled
"""The log-probabilities that a rule receives: of student and teacher, or of the student for sampled classes."""


def both_models(logq_CV: Tensor, target_rows: TargetRows) -> Both:
    """Return the log-probabilities that a rule receives, for the rows of a tile.

    Args:
        logq_CV: Student log-probabilities.
        target_rows: Teacher logits, `TopClasses` or `SampledClasses` of the same rows.
    """
    if isinstance(target_rows, SampledClasses):
        logq_CK, dtype = logq_CV.gather(1, target_rows.class_NK), logq_CV.dtype
        return Sampled(logq_CK, target_rows.weight_NK.to(dtype), target_rows.entropy_N.to(dtype))
    return log_probs(logq_CV, target_rows)


def log_probs(logq_CV: Tensor, target_rows: Tensor | TopClasses) -> LogProbs:
    """Return the log-probabilities of both models over the same classes.

    If `target_rows` has only the teacher's most probable classes, the result has these classes, and one class for all
    others together.

    Args:
        logq_CV: Student log-probabilities.
        target_rows: Teacher logits of the same rows, or the teacher's most probable classes.
    """
    if isinstance(target_rows, Tensor):
        return LogProbs(logq_CV, torch.log_softmax(target_rows.to(logq_CV.dtype), dim=-1))
    listed_CK = logq_CV.gather(1, target_rows.class_NK)
    # log(1 - listed mass) would be inaccurate if the listed classes have nearly all mass.
    others_CV = logq_CV.scatter(1, target_rows.class_NK, -torch.inf)
    rest_C1 = torch.logsumexp(others_CV, dim=-1, keepdim=True)
    logp_CK = torch.cat([target_rows.logp_NK, target_rows.log_rest_N[:, None]], dim=1)
    return LogProbs(torch.cat([listed_CK, rest_C1], dim=1), logp_CK.to(logq_CV.dtype))


def whole(target_rows: TargetRows) -> Tensor:
    """Return the teacher's log-probabilities of all classes.

    `target_rows` must be logits.
    """
    assert isinstance(target_rows, Tensor), "the teacher's logits of all classes are needed"
    return torch.log_softmax(target_rows, dim=-1)


@dataclass(frozen=True)
class CrossEntropyRule:
    """Sum of -log q of the target tokens, over the rows where `counted_C` is True.

    q is the student.  The arguments of a call include `target_C`, the target token of each row, and `counted_C`, a bool mask of
    the rows.  A call returns the sum, a scalar, in a dict with the key `name`.
    """

    name: str

    def __call__(self, logq_CV: Tensor, both: Both | None, target_C: Tensor, counted_C: Tensor) -> dict[str, Tensor]:
        logprob_C = logq_CV[: len(target_C)].gather(1, target_C[:, None])[:, 0]
        return {self.name: -logprob_C.masked_fill(~counted_C, 0.0).sum(dtype=torch.float64)}


@dataclass(frozen=True)
class DivergenceRule:
    """Sum of weight times divergence over the rows where `counted_C` is True.

    The arguments of a call include `weight_C`, the weight of each row, and `counted_C`, a bool mask of the rows.  If the
    divergence depends on origin and training progress of each row, the arguments also include the tensors of `RowContext`.
    A call returns the sum in a dict with the key `name`.  A divergence may also return diagnostics: values of each row that
    are only logged.  The dict then has their unweighted sums over the same rows.
    """

    name: str
    divergence: Divergence | torch.nn.Module

    def __call__(
        self, logq_CV: Tensor, both: Both | None, weight_C: Tensor, counted_C: Tensor, *context: Tensor
    ) -> dict[str, Tensor]:
        assert both is not None, "a divergence needs a teacher"
        num_rows = len(counted_C)
        if isinstance(both, Sampled):
            assert isinstance(self.divergence, ForwardKL), (
                "this divergence needs the teacher's probabilities, not sampled classes"
            )
            result = self.divergence.of_samples(*(tensor[:num_rows] for tensor in both))
        else:
            also = (RowContext(*context),) if context else ()
            result = self.divergence(both.logq_CV[:num_rows], both.logp_CV[:num_rows], *also)
        divergence_C: Tensor
        diagnostics: dict[str, Tensor]
        divergence_C, diagnostics = result if isinstance(result, tuple) else (result, {})
        if divergence_C.shape != counted_C.shape:
            raise ConfigError(
                f"{type(self.divergence).__name__}: returned shape {list(divergence_C.shape)}; must be [{num_rows}]; "
                "return one value for each row, without a sum or mean over rows"
            )
        details = {
            name: value_C.detach().masked_fill(~counted_C, 0).sum(dtype=torch.float64) for name, value_C in diagnostics.items()
        }
        return {self.name: (divergence_C * weight_C).masked_fill(~counted_C, 0.0).sum(dtype=torch.float64), **details}


@dataclass(frozen=True)
class SpanRule:
    """The span loss: sum of weight times distance over the pairs of neighbouring rows.

    `losses.span.pair_distance` defines the distance between student and teacher.  The tile may include a halo row: the row
    of the batch after the tile, which is the second row of the last pair.  A call returns the sum in a dict with the key
    `name`.
    """

    name: str
    squared: bool
    keep: Callable[[Tensor, Tensor], Tensor] | None

    def __call__(self, logq_CV: Tensor, both: Both | None, pair_weight_C: Tensor) -> dict[str, Tensor]:
        assert isinstance(both, LogProbs), "spans need the probabilities of a teacher"
        num_pairs = min(len(pair_weight_C), len(logq_CV) - 1)
        logq_CV, logp_CV = both
        keep_CV = None if self.keep is None else self.keep(logq_CV[: num_pairs + 1], logp_CV[: num_pairs + 1])
        distance_C = pair_distance(logq_CV, logp_CV, num_pairs, self.squared, keep_CV)
        return {self.name: (distance_C * pair_weight_C[:num_pairs]).sum(dtype=torch.float64)}


@dataclass(frozen=True)
class PhraseRule:
    """The likelihood form of the span loss.

    The arguments of a call include `token_C`, the token of each row; `value_C`, the part of the loss that is stored at the row;
    and `slope_C`, the derivative of the loss with respect to log q(token), where q is the student.  A call returns the sum of
    `value_C` in a dict with the key `name`.  The gradient of this sum is the gradient of sum(slope_C * log q(token)).
    """

    name: str

    def __call__(
        self, logq_CV: Tensor, both: Both | None, token_C: Tensor, value_C: Tensor, slope_C: Tensor
    ) -> dict[str, Tensor]:
        logprob_C = logq_CV[: len(token_C)].gather(1, token_C[:, None])[:, 0].masked_fill(slope_C == 0, 0.0)
        return {self.name: (value_C + slope_C * (logprob_C - logprob_C.detach())).sum(dtype=torch.float64)}


@dataclass(frozen=True)
class PolicyGradientRule:
    """Sum of the clipped policy-gradient loss over generated tokens.

    A call returns a dict with three sums.  The key `name` has the sum of the loss, and "ratio" the sum of the ratios rho.
    "clipped" has the number of tokens for which clipping is active.  `losses.policy_gradient.clipped_surrogate` defines the
    loss and rho.
    """

    name: str
    clip: float

    def __call__(
        self,
        logq_CV: Tensor,
        both: Both | None,
        token_C: Tensor,
        old_logprob_C: Tensor,
        advantage_C: Tensor,
        importance_C: Tensor,
    ) -> dict[str, Tensor]:
        logprob_C = logq_CV[: len(token_C)].gather(1, token_C[:, None])[:, 0]
        loss_C, ratio_C, clipped_C = clipped_surrogate(logprob_C, old_logprob_C, advantage_C, importance_C, self.clip)
        sums = {self.name: loss_C, "ratio": ratio_C, "clipped": clipped_C}
        return {name: value_C.sum(dtype=torch.float64) for name, value_C in sums.items()}


Rule = CrossEntropyRule | DivergenceRule | SpanRule | PhraseRule | PolicyGradientRule
