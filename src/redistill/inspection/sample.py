"""`redistill inspect sample`: tokens, targets and spans of a training example."""

from collections.abc import Sequence
from dataclasses import dataclass

from redistill.data.spans.extract import load_extractor
from redistill.inspection.subject import Subject, check_row
from redistill.losses.span import counted_spans
from redistill.models.load import end_of_turn
from redistill.policies.order import gold_sequence
from redistill.runs.build import build_marker
from redistill.runs.revisions import verbatim


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token of a training example.

    Args:
        token_id: The id of the token.
        text: The text of the token alone.
        target: Index among the targets (the tokens that the student is trained to predict); None for a token of the prompt.
    """

    token_id: int
    text: str
    target: int | None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span of the span loss.

    Args:
        start, stop: The half-open range of targets.
        text: The text of these targets.
        is_used: Whether the settings of the span loss use the span; nested spans and spans of one token may be excluded.
    """

    start: int
    stop: int
    text: str
    is_used: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A training example, as the loss reads it.

    Args:
        row: Index of the training example, from 0.
        record: Id of its record.
        tokens: The tokens of prompt and answer.
        spans: The spans of the answer; None if the objective has no span loss.
    """

    row: int
    record: str
    tokens: Sequence[Token]
    spans: Sequence[Span] | None

    def as_json(self) -> dict[str, object]:
        """Return the example as JSON values."""
        spans = None if self.spans is None else [vars(each) for each in self.spans]
        return {**vars(self), "tokens": [vars(each) for each in self.tokens], "spans": spans}


def inspect_sample(subject: Subject, row: int) -> Sample:
    """Return a training example with its tokens and spans.

    Args:
        subject: The run or recipe.
        row: Index of the training example, from 0.  It is the value of "sample" in revisions.jsonl.

    Raises:
        ConfigError: there is no such example.
        DataError: the data cannot be used.
    """
    tokenizer = subject.tokenizer()
    config, data = subject.data(tokenizer)
    check_row(subject, row, len(data.train))
    example, objective = data.train[row], config.resolved_method.objective
    numbers = iter(range(len(example.token_ids)))
    tokens = [
        Token(token_id=token, text=verbatim(tokenizer, [token]), target=next(numbers) if is_target else None)
        for token, is_target in zip(example.token_ids, example.supervised, strict=True)
    ]
    spans: list[Span] | None = None
    if objective.uses_spans and example.has_answer:
        ends = [token for token in (tokenizer.eos_token_id, end_of_turn(tokenizer)) if token is not None]
        mark = build_marker(config, load_extractor(config.data.spans), tokenizer, ends)
        (sequence,) = mark([gold_sequence(example)])
        targets = [token.token_id for token in tokens if token.target is not None]
        used = set(counted_spans(sequence.spans, objective.span))
        spans = [
            Span(start=start, stop=stop, text=verbatim(tokenizer, targets[start:stop]), is_used=(start, stop) in used)
            for start, stop in sequence.spans
        ]
    return Sample(row=row, record=example.record.record_id, tokens=tokens, spans=spans)
