"""Data types without tensors: rows of data, and the metrics that score answers to them.

Metrics of text and reports need these types and nothing of torch. Nothing here reads a file or loads a model.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.errors import ConfigError, DataError

Better = Literal["higher", "lower"]
Needs = Literal["answers", "references_pass", "samples", "pair"]

PERCENT, FRACTION = "%", "fraction"

RESERVED = frozenset(
    {
        *("id", "prompt", "response", "references", "tokens", "finished"),  # keys of a line of responses/*.jsonl
        *("length_tokens", "eos_rate", "distinct_1", "distinct_2", "cross_entropy", "kl", "agreement"),  # of scores.json
        *("kind", "step"),  # of metrics.jsonl
        *("model", "role", "column", "sd_over", "training_seeds", "evaluation_seeds", "prompts", "versus", "difference"),
        *("lower", "upper", "p", "p_holm", "wins", "ties", "losses", "paired_seeds", "note"),  # of a comparison's CSV
        *("updates", "sequences", "trained_tokens", "generated_tokens", "seconds", "peak_bytes", "parameters"),
        *("dataset", "title", "metric", "num_seeds", "num_prompts"),  # of a run's summary
    }
)
"""Keys that stand beside the metrics in files, so that no metric may have them as its name."""


@dataclass(frozen=True)
class Instruction:
    """A prompt of the instruction kind, to be put into a template."""

    instruction: str
    input: str = ""


@dataclass(frozen=True)
class RawPrompt:
    """A prompt that is used verbatim."""

    text: str


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """The turns before the last answer; the answer itself is the record's reference."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of data: a prompt and the answers that count as right (none where the row is a prompt alone)."""

    record_id: str
    prompt: Instruction | RawPrompt | Conversation
    references: tuple[str, ...]


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean of at least one value; its sum is exact (`math.fsum`), so that the order does not matter."""
    return math.fsum(values) / len(values)


@dataclass(frozen=True, kw_only=True, eq=False)  # the object itself counts: functions cannot be compared
class Metric:
    """A score of a model's answers: how it is computed, and how it is shown.

    Its name, title, unit and direction are written into scores.json, so that reports need none of its code.

    Args:
        name: Its key in files and in recipes: letters, digits and underscores, none of `RESERVED`.
        title: What tables and curves call it, such as "ROUGE-L".
        unit: "%" is in [0, 100] and shown as 12.34; "fraction" is in [0, 1] and shown as 12.3 %; any other unit, such as
            "words", stands behind two digits; "" is none.
        better: Whether a higher or a lower value is better: which model is best, and which checkpoint.
        needs: What it is computed from. "answers": the text of one answer and its record. The others, a pass over the
            references, several samples of a prompt, and answers of two models, have no evaluation yet and are refused when
            the recipe is read.
        score: (answer, record) -> a finite number; the record has the prompt and at least one reference.
        aggregate: Scores of all answers to a data set with one seed -> the data set's score. Differences between models,
            their intervals and tests are always about means over prompts.

    Raises:
        ConfigError: a name that cannot be a key, an empty title, or an unknown direction or need.

    Example:
        >>> shout = Metric(name="shout", title="exclamation marks", score=lambda answer, record: answer.count("!"))
        >>> shout.shown(1.5)
        '1.50'
    """

    name: str
    title: str
    unit: str = ""
    better: Better = "higher"
    needs: Needs = "answers"
    score: Callable[[str, Record], float]
    aggregate: Callable[[Sequence[float]], float] = mean

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII) or self.name in RESERVED:
            taken = "is the name of another figure" if self.name in RESERVED else "is no key"
            raise ConfigError(f"name = {self.name!r}: {taken}; use letters, digits and '_', such as word_overlap")
        if not self.title.strip():
            raise ConfigError(f"title = {self.title!r}: is empty; say what tables call the metric {self.name}")
        if self.better not in ("higher", "lower"):
            raise ConfigError(f"better = {self.better!r}: must be 'higher' or 'lower'")
        if self.needs not in ("answers", "references_pass", "samples", "pair"):
            raise ConfigError(f"needs = {self.needs!r}: must be 'answers', 'references_pass', 'samples' or 'pair'")

    @property
    def described(self) -> dict[str, str]:
        """What scores.json holds about it."""
        return {"title": self.title, "unit": self.unit, "better": self.better}

    def goodness(self, value: float) -> float:
        """`value` where higher is better, else minus `value`: always higher for the better one."""
        return value if self.better == "higher" else -value

    def scored(self, answer: str, record: Record) -> float:
        """The score of one answer.

        Raises:
            DataError: it is no finite number.
        """
        return self._checked(self.score(answer, record), f"the score of {record.record_id}")

    def aggregated(self, scores: Sequence[float]) -> float:
        """The score of a data set, from those of its answers.

        Raises:
            DataError: it is no finite number.
        """
        return self._checked(self.aggregate(scores), f"the aggregate of {len(scores)} scores")

    def shown(self, value: float) -> str:
        """A value as log lines show it."""
        if self.unit == PERCENT:
            return f"{value:.2f}"
        return f"{100 * value:.1f} %" if self.unit == FRACTION else f"{value:.2f} {self.unit}".rstrip()

    def _checked(self, value: float, what: str) -> float:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"metric {self.name}: {what} is {value!r}; it must be a finite Python number; correct the metric's code"
            )
        return value
