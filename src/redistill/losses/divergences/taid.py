"""Forward KL to a target that moves from the student to the teacher."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch

from redistill.contracts import Needs, RowContext
from redistill.errors import check_field
from redistill.losses.divergences.softened import Softened, bounded, log_ratio


class Pace(NamedTuple):
    """State of the adaptive schedule of `Taid`.

    Args:
        progress: How far the target has moved from student to teacher, in [0, 1].  At 0 the teacher has the weight
            `Taid.t_start` in the target, at 1 the weight `Taid.t_end`.
        momentum: Exponential moving average of the relative decrease of the loss per update.
        loss: Mean divergence of the last update, in nats; None before the first update.

    Example:
        >>> pace = Taid(adaptation=0.5).paced(Pace(loss=2.0), loss=1.0)
        >>> round(pace.progress, 3), round(pace.momentum, 3)
        (0.251, 0.005)
    """

    progress: float = 0.0
    momentum: float = 0.0
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Taid(Softened):
    r"""Forward KL from a target that moves from the student to the teacher.

    .. math:: D(p, q) = \mathrm{KL}(p_t \,\|\, q), \qquad
        p_t = \mathrm{softmax}\bigl((1 - t) \log q + t \log p\bigr), \qquad
        t = t_{start} + (t_{end} - t_{start})\, s

    p is the teacher, q the student, and s the training progress in [0, 1].  No gradient flows through the target p_t, although
    p_t depends on q.  Early targets are close to the student, so a student that is much worse than the teacher approaches the
    teacher in small steps.  Source: TAID (arXiv 2501.16937).  D is in nats per token, D >= 0, and D = 0 exactly when p = q.

    In the equations above, t follows a linear schedule.  If `adaptation` is above 0, t can increase faster than this schedule:
    the more the loss decreases, the faster.  After update n, whose mean divergence is J_n,

    .. math:: m_n = \beta m_{n-1} + (1 - \beta) \frac{J_{n-1} - J_n}{J_{n-1}}, \qquad
        t_{n+1} = \max\bigl(t_{schedule},\; \min(t_{end},\; t_n + \alpha\, \sigma(m_n) (1 - t_n))\bigr)

    t_schedule is the value of the linear schedule, alpha is `adaptation`, beta is `momentum`, and sigma is the logistic
    function.  The first update only sets J, because a decrease needs two values of J.  Inside `by_origin`, this divergence uses
    the linear schedule only.

    Args:
        t_start: Weight t of the teacher at the first update, in (0, 1).
        t_end: Weight t of the teacher at the last update, in (t_start, 1].
        adaptation: Step size alpha of the adaptation to the loss, in [0, 1]; with 0, t follows the linear schedule.
        momentum: Weight beta of earlier updates in the moving average of relative decreases of the loss, in [0, 1).

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        context: Training progress of each row; without it, the progress is 0.
        Returns divergence_N, unreduced.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> logp_NV, logq_NV = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> one_N = torch.ones(1)
        >>> Taid()(logq_NV, logp_NV), Taid()(logq_NV, logp_NV, RowContext(one_N.long(), one_N))
        (tensor([0.0206]), tensor([0.1438]))

    See also: ForwardKL (t = 1).
    """

    disobeys: ClassVar[Mapping[str, str]] = {
        "gradient_matches_finite_differences": "the target depends on the student, but has no gradient (arXiv 2501.16937)"
    }
    reads_context: ClassVar[bool] = True

    t_start: float = 0.4
    t_end: float = 1.0
    adaptation: float = 5e-4
    momentum: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field(self, "t_start", 0 < self.t_start < 1, "must lie in (0, 1); the paper uses 0.4")
        check_field(self, "t_end", self.t_start < self.t_end <= 1, "must lie above t_start and be at most 1; the paper uses 1")
        check_field(self, "adaptation", 0 <= self.adaptation <= 1, "must lie in [0, 1]; the paper uses 5e-4")
        check_field(self, "momentum", 0 <= self.momentum < 1, "must be at least 0 and below 1; the paper uses 0.99")

    @property
    def needs(self) -> Needs:
        """The features of the teacher that the divergence requires."""
        return super().needs | Needs(full_vocabulary=True)

    def interpolation(self, progress: float) -> float:
        """Return the weight t of the teacher for a training progress in [0, 1]."""
        return self.t_start + (self.t_end - self.t_start) * progress

    def paced(self, pace: Pace, loss: float) -> Pace:
        """Return the pace after an update.

        Args:
            pace: State before the update: `momentum` and `loss` of the previous update, and `progress` of this update.
            loss: Mean divergence of the update, in nats; must be finite.
        """
        if pace.loss is None:
            return pace._replace(loss=loss)
        decrease = (pace.loss - loss) / max(pace.loss, 1e-15)
        momentum = self.momentum * pace.momentum + (1 - self.momentum) * decrease
        t = self.interpolation(pace.progress)
        t = min(self.t_end, t + self.adaptation * (0.5 + 0.5 * math.tanh(momentum / 2)) * (1 - t))
        return Pace((t - self.t_start) / (self.t_end - self.t_start), momentum, loss)

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor, context: RowContext | None = None) -> torch.Tensor:
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        progress_N = logq_NV.new_zeros(len(logq_NV)) if context is None else context.progress_N.to(logq_NV.dtype)
        t_N1 = (self.t_start + (self.t_end - self.t_start) * progress_N)[:, None]
        target_NV = torch.log_softmax((1 - t_N1) * bounded(logq_NV.detach()) + t_N1 * bounded(logp_NV), dim=-1)
        return (target_NV.exp() * log_ratio(target_NV, logq_NV)).sum(dim=-1)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every divergence must have.
        """
        return (
            cls(),
            cls(t_start=0.1, t_end=0.6, adaptation=0.0),
            cls(t_start=0.9, temperature=2.0),
            cls(teacher_temperature=0.7),
        )
