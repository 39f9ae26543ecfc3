"""Two answers to each prompt: one of another policy, and one of the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from redistill.contracts import Needs, TokenSequence
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode
from redistill.policies.teacher import TeacherGenerated


@dataclass(frozen=True, kw_only=True)
class Paired(WrappingNode):
    r"""The answer of another policy and the teacher's answer to each prompt.

    .. math:: y^s \sim q(\cdot \mid x), \quad y^t \sim p(\cdot \mid x)

    x is the prompt.  With the default source, y^s is text of the student q, and y^t text of the teacher p.  An update learns
    from both, and so from twice as many sequences as prompts.  Source: DistiLLM-2 (arXiv 2503.07067).

    Args:
        source: The policy of the other answer; the student's text by default.
        teacher: How the teacher's answers are generated.  They are stored, so that no answer is generated twice.

    Example:
        >>> Paired().needs.teacher_text
        True
        >>> Paired(teacher=TeacherGenerated(temperature=0.8)).sampling.temperature  # of the student's text
        1.0

    See also: losses.divergences.ByOrigin, with another divergence for each of the two.
    """

    teacher: TeacherGenerated = field(default_factory=TeacherGenerated)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return example settings of this class.

        `redistill.testing` checks for each of them the properties that every policy must have.
        """
        return (cls(), cls(teacher=TeacherGenerated(temperature=0.7)))

    @property
    def needs(self) -> Needs:
        return self.source.needs | self.teacher.needs

    def bind(self, tools: PolicyTools) -> "PairedSource":
        return PairedSource(self.source.bind(tools), self.teacher.bind(tools))


class PairedSource(Wrapping):
    """Returns the sequences of a `Paired` policy; created by `Paired.bind`.

    The teacher's answers are surplus sequences, after those of the source.
    """

    def __init__(self, source: Source, teacher: Source) -> None:
        self._source, self._teacher = source, teacher

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return [*self._source.sequences(step, items), *self._teacher.sequences(step, items)]
