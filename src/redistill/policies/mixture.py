"""Training on text sampled from a mixture of student and teacher."""

from dataclasses import dataclass, replace
from typing import Self

from redistill.contracts import Needs
from redistill.errors import ConfigError
from redistill.policies.generated import GeneratingSource, StudentGenerated
from redistill.policies.source import PolicyTools


@dataclass(frozen=True, kw_only=True)
class TeacherMixed(StudentGenerated):
    r"""Answers generated at every step, each token sampled from a mixture of student and teacher.

    .. math:: y_t \sim (1 - a)\, q(\cdot \mid y_{<t}) + a\, p(\cdot \mid y_{<t})

    Source: MiniLLM (arXiv 2306.08543), its teacher-mixed sampling, with a = 0.2.  Temperature and nucleus sampling are applied
    to q and to p before mixing.

    Args:
        teacher_share: Weight a of the teacher, in [0, 1].
        temperature: Sampling temperature, > 0.
        top_p: Nucleus probability, in (0, 1]; 1 keeps all classes.

    Raises:
        ConfigError: a value out of range.

    See also: StudentGenerated (a -> 0).
    """

    teacher_share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.teacher_share <= 1:
            raise ConfigError(f"teacher_share = {self.teacher_share}: must lie in [0, 1]; MiniLLM uses 0.2")
        super().__post_init__()

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(teacher_share=0.5, temperature=0.7, top_p=0.9))

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, mixture=self.teacher_share > 0)

    def bind(self, tools: PolicyTools) -> GeneratingSource:
        return GeneratingSource(replace(self.sampling, teacher_share=self.teacher_share), "mixture", tools)
