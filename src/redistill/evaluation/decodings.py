"""Decodings: further settings with which the trained student is sampled.

Some methods, such as DAC-KL, sharpen the student's distributions.  At temperature 1, this alone can raise the scores, even
if the student has learned no more.  Scores at several temperatures show how much of a difference between methods is an
effect of decoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from redistill.contracts import TEMPERATURES, Sampling, is_temperature
from redistill.errors import ConfigError

NUM_SEEDS = 2
"""Number of seeds with which a decoding samples answers: the first ones of `evaluation.seeds`."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Settings with which answers to test prompts are sampled.

    These settings are used in addition to the main decoding, which the fields of `evaluation` set.  All decodings have the
    same `no_repeat_ngram` and the same length limit.

    Args:
        temperature: Sampling temperature, >= 0; 0 is greedy decoding.
        top_p: Nucleus probability, in (0, 1].  Sampling keeps the smallest set of most probable tokens with at least this total
            probability; 1 keeps all tokens.
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
        if not is_temperature(self.temperature):
            raise ConfigError(f"temperature = {self.temperature}: must be {TEMPERATURES}")
        if self.top_k < 0:
            raise ConfigError(f"top_k = {self.top_k}: must be >= 0; 0 keeps all tokens")

    @property
    def name(self) -> str:
        """Name of the decoding in scores.json and in the names of responses files."""
        parts = ["greedy" if self.temperature == 0 else f"T{_short(self.temperature)}"]
        parts += [f"top_p{_short(self.top_p)}"] if self.top_p < 1 else []
        return "-".join(parts + ([f"top_k{self.top_k}"] if self.top_k else []))

    def sampling(self, main: Sampling) -> Sampling:
        """Return the settings of sampling.

        Settings that this class does not have are those of `main`, the main decoding.
        """
        return replace(main, temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def seeds(self, main: Sequence[int]) -> tuple[int, ...]:
        """Return the seeds of the answers: the first `NUM_SEEDS` of `main`.

        Greedy decoding uses only the first seed, since its answers do not depend on the seed.
        """
        return tuple(main[: 1 if self.temperature == 0 else NUM_SEEDS])


def seed_notes(decodings: Sequence[Decoding], seeds: Sequence[int]) -> Iterator[str]:
    """Yield a sentence if decodings that sample have fewer than `NUM_SEEDS` seeds.

    Args:
        decodings: The field `evaluation.decodings`.
        seeds: The field `evaluation.seeds`.

    Example:
        >>> list(seed_notes([Decoding(temperature=0.8)], [10, 20]))
        []
        >>> next(seed_notes([Decoding(temperature=0.8), Decoding(temperature=0)], [10]))
        'evaluation.decodings: T0.8 is sampled with 1 seed; set evaluation.seeds to at least 2 seeds'
    """
    if names := [each.name for each in decodings if each.temperature != 0 and len(each.seeds(seeds)) < NUM_SEEDS]:
        is_are = "is" if len(names) == 1 else "are"
        remedy = f"set evaluation.seeds to at least {NUM_SEEDS} seeds"
        yield f"evaluation.decodings: {', '.join(names)} {is_are} sampled with {len(seeds)} seed; {remedy}"


def check_decodings(decodings: Sequence[Decoding]) -> None:
    """Check that no decoding is listed twice.

    Raises:
        ConfigError: two decodings are equal.
    """
    names = [decoding.name for decoding in decodings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"decodings: {name} is listed {names.count(name)} times; list each decoding once")


def _short(value: float) -> str:
    """Return a number as the shortest exact text, without a final ".0"."""
    return repr(float(value)).removesuffix(".0")
