"""Data types without tensors: records of data, and metrics that score answers.

Reports and text metrics use these types without importing torch. This module reads no file and loads no model.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from redistill.errors import ConfigError, DataError, one_line

Better = Literal["higher", "lower"]
"""Whether the higher or the lower of two values of a metric is better."""

MetricInput = Literal["answers", "references_pass", "samples", "pair"]
"""What a metric is computed from; see `Metric.needs`."""

Role = Literal["system", "user", "assistant", "tool"]
"""Author of a message."""

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""A value of a JSON or YAML file."""

PERCENT, FRACTION = "%", "fraction"
"""The units of percentages and of fractions; `Metric` describes how values with these units are shown."""

PROPOSALS = 8
"""Scores of a draft model are computed for 1 to this number of proposed tokens."""

ACCEPTANCE = (
    "acceptance",
    *(f"acceptance_{i}" for i in range(1, PROPOSALS + 1)),
    *(f"accepted_length_{k}" for k in range(1, PROPOSALS + 1)),
)
"""Names of the scores of a draft model, which `evaluation.acceptance.accepted` defines."""

RESERVED = frozenset(
    {
        *("id", "category", "prompt", "response", "references", "tokens", "finished"),  # of a line of responses/*.jsonl
        *("length_tokens", "eos_rate", "distinct_1", "distinct_2", "cross_entropy", "kl", "agreement"),  # of scores.json
        *(*ACCEPTANCE, "ece", "student_entropy", "teacher_entropy", "top_overlap"),
        *("kind", "step"),  # of metrics.jsonl
        *("model", "role", "column", "sd_over", "training_seeds", "evaluation_seeds", "prompts", "versus", "difference"),
        *("decoding", "lower", "upper", "p", "p_holm", "detectable", "about"),  # of a comparison's CSV
        *("wins", "ties", "losses", "paired_seeds", "note"),  # of the same
        *("updates", "sequences", "trained_tokens", "generated_tokens", "seconds", "peak_bytes", "parameters"),
        *("dataset", "title", "metric", "num_seeds", "num_prompts"),  # of a run's summary
    }
)
"""Keys that result files use in addition to the names of metrics. No metric may have one of these names."""


@dataclass(frozen=True)
class Instruction:
    """A prompt that a template renders: an instruction with an optional input.

    Args:
        instruction: The task, as text.
        input: The text that the task is applied to; "" if the task needs no such text.
        system: The system message; "" if there is none.
        history: Earlier turns, oldest first; each is a pair of an instruction and its answer.

    Example:
        >>> Instruction("Translate into French.", "Good morning.").input
        'Good morning.'
    """

    instruction: str
    input: str = ""
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RawPrompt:
    """A prompt that consists of one text.

    The Alpaca template uses the text verbatim. A chat template renders the text as one user message.

    Args:
        text: The text of the prompt.

    Example:
        >>> RawPrompt("Once upon a time").text
        'Once upon a time'
    """

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the assistant.

    Args:
        name: Name of the tool.
        arguments: The arguments, as the text of a JSON object.
        call_id: Identifier of the call, to which the result refers; None if there is none.

    Example:
        >>> ToolCall("get_weather", '{"city": "Oslo"}').text
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    """

    name: str
    arguments: str
    call_id: str | None = None

    @property
    def text(self) -> str:
        """The name and the arguments as one JSON object."""
        return json.dumps({"name": self.name, "arguments": json.loads(self.arguments)}, ensure_ascii=False)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Args:
        role: Author of the message; "tool" is the result of a tool.
        content: Text of the message; "" if the message consists of tool calls.
        reasoning: The assistant's reasoning before the message; "" if there is none.
        calls: The tools that the assistant calls in this message.
        name: Name of the tool, for a result; None if it is not given.
        call_id: Identifier of the call that the result belongs to; None if it is not given.

    Example:
        >>> Turn("user", "Good morning.").role
        'user'
    """

    role: Role
    content: str
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None

    @property
    def text(self) -> str:
        """The content and the tool calls, on separate lines.

        The reasoning is not included.
        """
        return "\n".join([*([self.content] if self.content else []), *(call.text for call in self.calls)])


@dataclass(frozen=True)
class Conversation:
    """The turns of a conversation before its last answer.

    The last answer is not a turn: it is stored in `Record.references`.

    Args:
        turns: The messages, oldest first.
        tools: Definitions of the tools that the assistant may call, each as the text of a JSON object.

    Example:
        >>> Conversation((Turn("system", "Be brief."), Turn("user", "Good morning."))).turns[-1].content
        'Good morning.'
    """

    turns: tuple[Turn, ...]
    tools: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row of a data set: a prompt with its references.

    Args:
        record_id: Identifier of the row, such as "dolly:17".
        prompt: The prompt that a model answers.
        references: Correct answers; empty for a row that has only a prompt.
        answer: The last turn of a conversation, if it has reasoning or tool calls; otherwise None. Training uses this turn.
            Scores are computed with the references, which contain neither reasoning nor tool calls.
        category: Kind of the task, such as "open_qa", by which reports group scores; "" if the row has none.

    Example:
        >>> record = Record(record_id="dolly:17", prompt=Instruction("Name a primary colour."), references=("red", "blue"))
        >>> record.prompt.instruction, len(record.references)
        ('Name a primary colour.', 2)
    """

    record_id: str
    prompt: Instruction | RawPrompt | Conversation
    references: tuple[str, ...]
    answer: Turn | None = None
    category: str = ""


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of at least one value.

    The sum is rounded only once (`math.fsum`), so the result does not depend on the order of the values.

    Args:
        values: At least one number.

    Returns:
        The mean, as a float.

    Example:
        >>> mean([0.1] * 10), mean([1, 2])
        (0.1, 1.5)
    """
    return math.fsum(values) / len(values)


def rate(count: float, seconds: float) -> float | None:
    """Return `count` per second, or None if the clock has not advanced.

    Args:
        count: Number of units that were processed, such as tokens.
        seconds: The difference of two readings of a clock; <= 0 if the clock stands still or was set back.

    Example:
        >>> rate(30, 1.5), rate(30, 0.0)
        (20.0, None)
    """
    return count / seconds if seconds > 0 else None


@dataclass(frozen=True, kw_only=True, eq=False)  # metrics are compared by identity, since functions have no equality
class Metric:
    """A score of a model's answers: how it is computed, and how it is displayed.

    `name`, `title`, `unit` and `better` are stored in scores.json, so that reports do not need the code of the metric.

    Args:
        name: Key in files and in recipes: letters, digits and underscores. Keys that result files use already (`RESERVED`) are
            not allowed.
        title: The name that tables and plots show, such as "ROUGE-L".
        unit: "%" is for values in [0, 100], shown as 12.34. "fraction" is for values in [0, 1], shown as 12.3 %. A value with
            any other unit, such as "words", is shown with two decimals and the unit. "" means that the metric has no unit.
        better: Whether a higher or a lower value is better, for ranking models and choosing checkpoints.
        needs: What the metric is computed from. Only "answers" is supported at present: the text of one answer and its record.
            Recipes with other metrics are rejected: "references_pass" (a forward pass over the references), "samples" (several
            answers to a prompt) and "pair" (answers of two models).
        score: Function that receives the text of an answer and its record, and returns a finite number. The record has at least
            one reference.
        aggregate: Function that returns the score of a data set. It receives the scores of all its answers with one seed.
            Comparisons of models use means over prompts instead.
        can_score: Function that receives a record. It returns False if the references of the record give every answer the worst
            score. Such records are reported before training and before an evaluation. By default, every record can be scored.
        binary: True if every score is 0 (wrong) or 1 (correct). An evaluation with several seeds then also computes pass@k: the
            probability that at least one of k answers is correct.

    Raises:
        ConfigError: the name is not a valid key, the title is empty, or the value of `better` or `needs` is unknown.

    Example:
        >>> shout = Metric(name="shout", title="exclamation marks", score=lambda answer, record: answer.count("!"))
        >>> shout.shown(1.5)
        '1.50'
    """

    name: str
    title: str
    unit: str = ""
    better: Better = "higher"
    needs: MetricInput = "answers"
    score: Callable[[str, Record], float]
    aggregate: Callable[[Sequence[float]], float] = mean
    can_score: Callable[[Record], bool] = lambda record: True
    binary: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name, re.ASCII) or self.name in RESERVED:
            fault = "is reserved" if self.name in RESERVED else "is not a valid key"
            raise ConfigError(f"name = {self.name!r}: {fault}; use letters, digits and '_', such as word_overlap")
        if not self.title.strip():
            raise ConfigError(
                f"title = {self.title!r}: is empty; set title to the heading that tables show for the metric {self.name}"
            )
        if self.better not in ("higher", "lower"):
            raise ConfigError(f"better = {self.better!r}: must be 'higher' or 'lower'")
        if self.needs not in ("answers", "references_pass", "samples", "pair"):
            raise ConfigError(f"needs = {self.needs!r}: must be 'answers', 'references_pass', 'samples' or 'pair'")

    @property
    def described(self) -> dict[str, str]:
        """The values of `title`, `unit` and `better`, as stored in scores.json."""
        return {"title": self.title, "unit": self.unit, "better": self.better}

    def goodness(self, value: float) -> float:
        """Return `value` if higher values are better, otherwise `-value`.

        The better of two models therefore always has the higher result.
        """
        return value if self.better == "higher" else -value

    def scored(self, answer: str, record: Record) -> float:
        """Return the score of one answer.

        Args:
            answer: The text to score.
            record: The row with the references.

        Raises:
            DataError: `score` raised an exception or returned a value that is not a finite number.
        """
        return self._computed(lambda: self.score(answer, record), f"the score of {record.record_id}")

    def aggregated(self, scores: Sequence[float]) -> float:
        """Return the score of a data set, computed from the scores of its answers.

        Raises:
            DataError: `aggregate` raised an exception or returned a value that is not a finite number.
        """
        return self._computed(lambda: self.aggregate(scores), f"the aggregate of {len(scores)} scores")

    def can_score_record(self, record: Record) -> bool:
        """Return whether an answer to `record` can get more than the worst score.

        Raises:
            DataError: `can_score` raised an exception or returned a value that is neither True nor False.
        """
        return bool(self._computed(lambda: self.can_score(record), f"the value of can_score for {record.record_id}"))

    def shown(self, value: float) -> str:
        """Format a value for log lines, with its unit unless the unit is "%"."""
        if self.unit == PERCENT:
            return f"{value:.2f}"
        return f"{100 * value:.1f} %" if self.unit == FRACTION else f"{value:.2f} {self.unit}".rstrip()

    def _computed(self, compute: Callable[[], float], what: str) -> float:
        """Return the result of `compute`, which calls the code of the metric.

        A DataError is raised if the result is not a finite number. `what` names the result in the message.
        """
        try:
            value = compute()
        except Exception as error:  # external code may raise any exception
            raise DataError(
                f"metric {self.name}: {what} cannot be computed ({one_line(error)}); fix the code of the metric"
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"metric {self.name}: {what} is {value!r}; it must be a finite Python number; fix the code of the metric"
            )
        return value
