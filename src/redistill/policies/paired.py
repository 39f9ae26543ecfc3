"""Two answers to each prompt: one from another policy, and one of the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from redistill.contracts import Needs, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Source, Wrapping, WrappingNode
from redistill.policies.teacher import TeacherGenerated


@dataclass(frozen=True, kw_only=True)
class Paired(WrappingNode):
    r"""Two answers to each prompt: one from another policy, and one of the teacher.

    .. math:: y^s \sim q(\cdot \mid x), \quad y^t \sim p(\cdot \mid x)

    x is the prompt, y^s the answer from the policy `source`, and y^t the answer of the teacher p.  With the default `source`,
    y^s is text of the student q.  An update trains on both answers, so it has twice as many sequences as prompts.  Source:
    DistiLLM-2 (arXiv 2503.07067).

    Args:
        source: The policy that provides the answer y^s; by default the student's own text.
        teacher: The policy that generates the teacher's answers y^t.  These answers are stored, and none is generated
            twice.

    Raises:
        ConfigError: `source` uses text that the teacher generates.

    Example:
        >>> Paired().needs.teacher_text
        True
        >>> Paired(teacher=TeacherGenerated(temperature=0.8)).sampling.temperature  # of the student's text
        1.0

    See also: losses.divergences.ByOrigin, which applies a different divergence to each of the two answers.
    """

    teacher: TeacherGenerated = field(default_factory=TeacherGenerated)

    def __post_init__(self) -> None:
        if self.source.needs.teacher_text:
            raise ConfigError(
                "source: must be a policy without text of the teacher, such as student_generated; the field `teacher` provides "
                "the teacher's answers"
            )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (cls(), cls(teacher=TeacherGenerated(temperature=0.7)))

    @property
    def needs(self) -> Needs:
        return self.source.needs | self.teacher.needs

    def bind(self, tools: PolicyTools) -> "PairedSource":
        return PairedSource(self.source.bind(tools), self.teacher.bind(tools))


class PairedSource(Wrapping):
    """Returns the sequences of a `Paired` policy; created by `Paired.bind`.

    The answers of the policy `source` come first, then those of the teacher.
    """

    def __init__(self, source: Source, teacher: Source) -> None:
        self._source, self._teacher = source, teacher

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return [*self._source.sequences(step, items), *self._teacher.sequences(step, items)]
