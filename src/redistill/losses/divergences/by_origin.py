"""A divergence for each origin of a text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from redistill.contracts import ORIGINS, Needs, Origin, RowContext
from redistill.tensors import loss_dtype

if TYPE_CHECKING:
    from redistill.losses.divergences import Divergence


@dataclass(frozen=True, kw_only=True)
class ByOrigin:
    r"""Different divergences for text of the student and text of the teacher.

    .. math:: D(p, q) = D_{o}(p, q), \qquad o = \text{origin of the text that the row belongs to}

    p is the teacher, q the student.  Text of the teacher is probable under p, and text of the student is probable under q.
    Therefore a divergence may be suitable for one of the two and not for the other.  Source: DistiLLM-2 (arXiv 2503.07067),
    which uses skew forward KL on text of the teacher and skew reverse KL on text of the student.

    Each divergence is computed on all rows, and then one value is chosen for each row.  Therefore two different divergences
    take twice the time of a single divergence.  Equal divergences are computed once.  D has the unit of the chosen
    divergence, for most of them nats per token.

    Args:
        student: Divergence on text that the student generated: alone (origin "student"), together with the teacher (origin
            "mixture"), or in an earlier update (origin "replay").
        teacher: Divergence on text that the teacher generated.
        dataset: Divergence on gold answers.  If None, the divergence `teacher` is used.
        revised: Divergence on student text in which a token was replaced by the teacher's.  If None, `student` is used.

    Call:
        logq_NV: Student log-probabilities; float64 stays float64, all else is computed in float32.
        logp_NV: Teacher log-probabilities, same shape, no gradient.
        context: Origin and training progress of each row.
        Returns divergence_N, unreduced.

    Example:
        >>> from redistill.losses.divergences import ForwardKL, ReverseKL
        >>> logp_NV, logq_NV = torch.tensor([[0.5, 0.5]] * 2).log(), torch.tensor([[0.25, 0.75]] * 2).log()
        >>> origin_N = torch.tensor([ORIGINS.index("student"), ORIGINS.index("teacher")])
        >>> ByOrigin(student=ReverseKL(), teacher=ForwardKL())(logq_NV, logp_NV, RowContext(origin_N, torch.zeros(2)))
        tensor([0.1308, 0.1438])
    """

    reads_context: ClassVar[bool] = True

    student: "Divergence"
    teacher: "Divergence"
    dataset: "Divergence | None" = None
    revised: "Divergence | None" = None

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests."""
        from redistill.losses.divergences import ReverseKL, SkewForwardKL, SkewReverseKL  # not above: it imports this module

        return (
            cls(student=SkewReverseKL(), teacher=SkewForwardKL()),
            cls(
                student=ReverseKL(),
                teacher=SkewForwardKL(),
                dataset=SkewForwardKL(alpha=0.5),
                revised=ReverseKL(temperature=2.0),
            ),
        )

    @property
    def parts(self) -> "dict[Origin, Divergence]":
        """The divergence that is used for text of each origin."""
        dataset, revised = self.dataset or self.teacher, self.revised or self.student
        of_origin: dict[Origin, Divergence] = {
            "dataset": dataset,
            "corpus": dataset,
            "teacher": self.teacher,
            "revised": revised,
        }
        return {origin: of_origin.get(origin, self.student) for origin in ORIGINS}

    @property
    def needs(self) -> Needs:
        """What the divergences require of the teacher.

        The result combines the requirements of the single divergences.
        """
        needs = Needs(probabilities=True)
        for divergence in self.parts.values():
            needs |= getattr(divergence, "needs", needs)
        return needs

    def __call__(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor, context: RowContext | None = None) -> torch.Tensor:
        assert context is not None, "by_origin must be called with the context of the rows"
        codes: dict[Divergence, list[int]] = {}
        for origin, divergence in self.parts.items():
            codes.setdefault(divergence, []).append(ORIGINS.index(origin))
        found_N = logq_NV.new_zeros(len(logq_NV), dtype=loss_dtype(logq_NV))
        for divergence, own in codes.items():
            also = (context,) if getattr(divergence, "reads_context", False) else ()
            is_own_N = torch.stack([context.origin_N == code for code in own]).any(dim=0)
            call: Callable[..., torch.Tensor] = divergence
            found_N = torch.where(is_own_N, call(logq_NV, logp_NV, *also), found_N)
        return found_N
