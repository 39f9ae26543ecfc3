"""Learning from what a model writes anew at every step: the student, here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from redistill.contracts import Example, Generation, GenerationRequest, Needs, Origin, Sampling, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Stateless

Write = Callable[[list[GenerationRequest]], list[Generation]]


@dataclass(frozen=True, kw_only=True)
class StudentGenerated:
    """The current student's answers, fresh at every step: on-policy distillation.

    Source: ImitKD and GKD; algorithms as in the paper's Table 3a, row "On-policy".  Their reference code learns from a buffer
    of older answers instead: that is `Buffered` around this.

    Args:
        temperature: Of sampling, > 0; the paper samples at 1.
        top_p: Nucleus of sampling, in (0, 1]; 1 keeps all.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_writing(self.temperature, self.top_p)

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(temperature=0.7, top_p=0.9))

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, tools: PolicyTools) -> "WritingSource":
        return WritingSource(partial(tools.engine.generate, sampling=self.sampling), "student", tools)


class WritingSource(Stateless):
    """Each item's answer as `write` gives it at this step."""

    def __init__(self, write: Write, origin: Origin, tools: PolicyTools) -> None:
        self._write, self._origin, self._tools = write, origin, tools

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        requests = [
            GenerationRequest(
                prompt_ids=item.example.prompt_ids,
                max_new_tokens=self._tools.response_tokens,
                seed=self._tools.seed,
                stream=("response", step, item.example.sample),
            )
            for item in items
        ]
        generations = self._write(requests) if requests else []
        return [answered(item.example, g.token_ids, self._origin) for item, g in zip(items, generations, strict=True)]


def answered(example: Example, response_ids: tuple[int, ...], origin: Origin) -> TokenSequence:
    """An example's prompt with an answer that was written to it."""
    return TokenSequence(
        sample=example.sample,
        token_ids=example.prompt_ids + response_ids,
        supervised=(False,) * len(example.prompt_ids) + (True,) * len(response_ids),
        origin=origin,
    )


def check_writing(temperature: float, top_p: float) -> None:
    """Refuse what no text can be drawn with.

    Raises:
        ConfigError: it is refused.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature = {temperature}: must be > 0; the paper samples at 1")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p = {top_p}: must lie in (0, 1]; 1 keeps every class")
