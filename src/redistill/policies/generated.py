"""Learning from what the student writes itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from redistill.contracts import GenerationRequest, Sampling, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.sources import GoldItem, PolicyTools, Stateless


@dataclass(frozen=True, kw_only=True)
class StudentGenerated:
    """The current student's answers, fresh at every step: on-policy distillation.

    Source: ImitKD and GKD; algorithms as in the paper's Table 3a, row "On-policy".

    Args:
        temperature: Of sampling, > 0; the paper samples at 1.
        top_p: Nucleus of sampling, in (0, 1]; 1 keeps all.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"temperature = {self.temperature}: must be > 0; the paper samples at 1")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must lie in (0, 1]; 1 keeps every class")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(temperature=0.7, top_p=0.9))

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p)

    @property
    def needs_teacher(self) -> bool:
        return False

    def bind(self, tools: PolicyTools) -> "StudentSource":
        return StudentSource(self.sampling, tools)


class StudentSource(Stateless):
    def __init__(self, sampling: Sampling, tools: PolicyTools) -> None:
        self._sampling, self._tools = sampling, tools

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        requests = [
            GenerationRequest(
                prompt_ids=item.example.prompt_ids,
                max_new_tokens=self._tools.response_tokens,
                stream=("response", step, item.example.sample),
            )
            for item in items
        ]
        generations = self._tools.generate(requests, self._sampling)
        return [
            TokenSequence(
                sample=item.example.sample,
                token_ids=request.prompt_ids + generation.token_ids,
                supervised=(False,) * len(request.prompt_ids) + (True,) * len(generation.token_ids),
                origin="student",
            )
            for item, request, generation in zip(items, requests, generations, strict=True)
        ]
