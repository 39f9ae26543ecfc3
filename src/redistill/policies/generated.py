"""Training on answers that the student generates at every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from redistill.contracts import Example, Generation, GenerationRequest, Needs, Origin, Sampling, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Stateless

Generate = Callable[[list[GenerationRequest]], list[Generation]]


@dataclass(frozen=True, kw_only=True)
class StudentGenerated:
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

    @property
    def needs(self) -> Needs:
        return Needs()

    def bind(self, tools: PolicyTools) -> "GeneratingSource":
        return GeneratingSource(partial(tools.engine.generate, sampling=self.sampling), "student", tools)


class GeneratingSource(Stateless):
    """A source whose answers `generate` produces at each step."""

    def __init__(self, generate: Generate, origin: Origin, tools: PolicyTools) -> None:
        self._generate, self._origin, self._tools = generate, origin, tools

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
        generations = self._generate(requests) if requests else []
        return [answered(item.example, g.token_ids, self._origin) for item, g in zip(items, generations, strict=True)]


def answered(example: Example, response_ids: tuple[int, ...], origin: Origin) -> TokenSequence:
    """An example's prompt with a generated answer."""
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
