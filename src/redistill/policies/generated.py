"""Training on answers that are generated at every step, by the student or by a mixture of student and teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from redistill.contracts import Example, Generation, GenerationRequest, Needs, Origin, Sampling, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyNode, PolicyTools, Stateless

Generate = Callable[[Sequence[GenerationRequest], Sampling], list[Generation]]


@dataclass(frozen=True, kw_only=True)
class StudentGenerated(PolicyNode):
    """Answers that the current student generates at every step: on-policy distillation.

    Source: ImitKD and GKD; algorithms as in the paper's Table 3a, row "On-policy".  Their reference code trains on a buffer of
    older answers instead: use `Buffered` around this policy.

    Args:
        temperature: Sampling temperature, > 0; the paper uses 1.
        top_p: Nucleus probability, in (0, 1]; 1 keeps all classes.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_sampling(self.temperature, self.top_p)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(temperature=0.7, top_p=0.9))

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    def bind(self, tools: PolicyTools) -> "GeneratingSource":
        return GeneratingSource(self.sampling, "student", tools)


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

    def bind(self, tools: PolicyTools) -> "GeneratingSource":
        return GeneratingSource(replace(self.sampling, teacher_share=self.teacher_share), "mixture", tools)


class GeneratingSource(Stateless):
    """A source whose answers the engine generates at each step."""

    def __init__(self, sampling: Sampling, origin: Origin, tools: PolicyTools) -> None:
        self._sampling, self._origin, self._tools = sampling, origin, tools

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        examples = [item.example for item in items]
        return answers(examples, self._tools.engine.generate, self._sampling, self._origin, self._tools, "response", step)


def answers(
    examples: Sequence[Example], generate: Generate, sampling: Sampling, origin: Origin, tools: PolicyTools, *key: int | str
) -> list[TokenSequence]:
    """A generated answer to each example; the random stream of an answer is that of `key` and the sample."""
    length, seed = tools.response_tokens, tools.seed
    requests = [
        GenerationRequest(prompt_ids=each.prompt_ids, max_new_tokens=length, seed=seed, stream=(*key, each.sample))
        for each in examples
    ]
    generations = generate(requests, sampling) if requests else []
    return [answered(example, g.token_ids, origin) for example, g in zip(examples, generations, strict=True)]


def answered(example: Example | TokenSequence, response_ids: tuple[int, ...], origin: Origin) -> TokenSequence:
    """The prompt of an example or a sequence with a generated answer."""
    return TokenSequence(
        sample=example.sample,
        token_ids=example.prompt_ids + response_ids,
        supervised=(False,) * len(example.prompt_ids) + (True,) * len(response_ids),
        origin=origin,
    )


def check_sampling(temperature: float, top_p: float) -> None:
    """Check sampling parameters.

    Raises:
        ConfigError: a value out of range.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature = {temperature}: must be > 0; the paper samples at 1")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p = {top_p}: must lie in (0, 1]; 1 keeps every class")
