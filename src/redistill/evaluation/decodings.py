"""Decodings: further ways to sample the answers of the same student.

Methods that sharpen the student, such as DAC-KL, score higher at temperature 1 than methods that do not, although the student
may have learnt no more.  A comparison at several temperatures shows how much of a difference is an effect of decoding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from redistill.contracts import Sampling
from redistill.errors import ConfigError

NUM_SEEDS = 2
"""Number of evaluation seeds with which a decoding samples answers: the first ones of `evaluation.seeds`."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A way to sample answers to test prompts.

    `no_repeat_ngram` and the length limit are those of the main decoding, the fields of `evaluation`.

    Args:
        temperature: Sampling temperature, >= 0; 0 is greedy decoding.
        top_p: Nucleus sampling keeps the smallest set of most probable tokens with at least this total probability, in (0, 1];
            1 keeps all.
        top_k: Number of most probable tokens that sampling keeps, >= 0; 0 keeps all.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> Decoding(temperature=0.8).name, Decoding(temperature=0).name, Decoding(top_p=0.9).name
        ('T0.8', 'greedy', 'T1-top_p0.9')
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p = {self.top_p}: must lie in (0, 1]; 1 keeps all tokens")
        for name, value in {"temperature": self.temperature, "top_k": self.top_k}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} = {value}: must be >= 0 and finite")

    @property
    def name(self) -> str:
        """Key of the decoding in scores.json, and part of the names of its files."""
        parts = ["greedy" if self.temperature == 0 else f"T{_short(self.temperature)}"]
        parts += [f"top_p{_short(self.top_p)}"] if self.top_p < 1 else []
        return "-".join(parts + ([f"top_k{self.top_k}"] if self.top_k else []))

    def sampling(self, main: Sampling) -> Sampling:
        """Return how tokens are sampled.

        Settings that a decoding does not have are those of `main`, the main decoding.
        """
        return replace(main, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def seeds(self, main: Sequence[int]) -> tuple[int, ...]:
        """Return the seeds of the answers: the first two of the seeds `main`.

        Greedy decoding has only the first, since its answers do not depend on the seed.
        """
        return tuple(main[: 1 if self.temperature == 0 else NUM_SEEDS])


def check_decodings(decodings: Sequence[Decoding]) -> None:
    """Raise a ConfigError if two decodings are equal."""
    names = [decoding.name for decoding in decodings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"decodings: {name} is listed {names.count(name)} times; list each decoding once")


def _short(value: float) -> str:
    """Return the shortest text that is parsed as the same number, without a final ".0"."""
    return repr(float(value)).removesuffix(".0")
