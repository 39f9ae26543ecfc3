"""Tokenization of records.

No other module determines where a prompt ends and an answer begins.

Training and evaluation build prompts with the same code, so a model is evaluated on the prompts that it was trained on.  The
special tokens that the tokenizer puts before a text by default (BOS for Llama, </s> for OPT, none for GPT-2 and Qwen) are added
in training *and* in evaluation; published code adds them in only one of the two.  A chat template contains its own special
tokens, so none are added to it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from redistill.contracts import Example
from redistill.data.templates import Template, Transcript, render_prompt, render_transcript
from redistill.errors import ConfigError, DataError, ModelError
from redistill.interfaces import Tokenizer
from redistill.processes import signals
from redistill.randomness import generator
from redistill.records import RawPrompt, Record

Supervise = Literal["last", "every"]
Reference = Literal["first", "longest", "shortest", "random"]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Settings of tokenization.

    Args:
        prompt_tokens: Maximum prompt length in tokens, >= 1.  Training leaves longer prompts out; evaluation keeps their last
            tokens.
        response_tokens: Maximum answer length in tokens with the end token, >= 1.  A longer answer is truncated and has no end
            token.
        template: "alpaca" or "chat"; see `templates.render_prompt`.
        supervise: "last" trains on the last answer of a conversation, "every" on every answer of the assistant.
        reference: Which of several references to train on; "random" depends on the seed of the run.

    Raises:
        ConfigError: a length is below 1, or a choice is unknown.

    Example:
        >>> TokenizeConfig(template="chat").prompt_tokens
        256
        >>> TokenizeConfig(response_tokens=0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: response_tokens = 0: must be >= 1; the papers use 256
    """

    prompt_tokens: int = 256
    response_tokens: int = 256
    template: Template = "alpaca"
    supervise: Supervise = "last"
    reference: Reference = "first"

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "response_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 1; the papers use 256")
        for name, choices in (("template", Template), ("supervise", Supervise), ("reference", Reference)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(get_args(choices))}")


@dataclass(frozen=True, kw_only=True)
class RejectedRecord:
    """A record that training leaves out.

    Args:
        index: Its index among the given records, from 0.
        record_id: Its id.
        reason: The reason, in one line.
    """

    index: int
    record_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """Counts of tokenized records, and the records that were left out.

    Args:
        num_cut: Number of kept records whose answer was truncated.
        too_long: Records whose prompt is longer than `prompt_tokens`.
        rejected: Records without a target token, or that the chat template rejects.
    """

    num_cut: int
    too_long: tuple[RejectedRecord, ...]
    rejected: tuple[RejectedRecord, ...]

    @property
    def num_too_long(self) -> int:
        """Number of records whose prompt is too long."""
        return len(self.too_long)


def tokenize_training(
    records: Sequence[Record], tokenizer: Tokenizer, config: TokenizeConfig, seed: int
) -> tuple[list[Example], TokenizeReport]:
    """Tokenize records for training.

    A sequence is prompt, answer and end token, with a mask of the targets.  It begins with exactly the ids that
    `tokenize_prompts` returns.  The answer's ids are those that tokenizing prompt and answer together appends to them; where a
    token spans the boundary, the answer is tokenized on its own.

    Args:
        records: Records; one without a reference is rejected.
        tokenizer: A transformers tokenizer with an end token.
        config: Length limits, template, and which answers to train on.
        seed: Seed of the run, used by `reference="random"`.

    Returns:
        The examples, whose `sample` counts from 0 without gaps, and the report.

    Raises:
        DataError: no record is left.
        ConfigError: "chat" with a tokenizer that has no chat template.
        ModelError: the tokenizer has no end token.
    """
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise ModelError(
            "tokenizer: has no end token (eos_token), so a student cannot learn to stop; set eos_token in its folder"
        )
    encoder = _Encoder(tokenizer, config)
    examples: list[Example] = []
    rejected: list[RejectedRecord] = []
    too_long: list[RejectedRecord] = []
    num_cut = 0
    for index, record in enumerate(records):
        signals.poll()
        try:
            example, was_cut = encoder.example(record, end_id, seed, len(examples))
        except DataError as error:
            rejected.append(RejectedRecord(index=index, record_id=record.record_id, reason=str(error)))
            continue
        if len(example.prompt_ids) > config.prompt_tokens:
            reason = f"its prompt has {len(example.prompt_ids)} tokens; prompt_tokens = {config.prompt_tokens}"
            too_long.append(RejectedRecord(index=index, record_id=record.record_id, reason=reason))
            continue
        examples.append(example)
        num_cut += was_cut
    if not examples:
        first = f" (first: {rejected[0].record_id}: {rejected[0].reason})" if rejected else ""
        raise DataError(
            f"training data: none of {len(records)} records is left: {len(too_long)} prompts are longer than prompt_tokens = "
            f"{config.prompt_tokens}, {len(rejected)} were rejected{first}; raise prompt_tokens or use other data"
        )
    return examples, TokenizeReport(num_cut=num_cut, too_long=tuple(too_long), rejected=tuple(rejected))


def tokenize_prompts(records: Sequence[Record], tokenizer: Tokenizer, config: TokenizeConfig) -> list[tuple[int, ...]]:
    """Tokenize the prompt of each record, truncated on the left to `prompt_tokens`.

    A longer prompt keeps its last tokens, because its end requests the answer ("### Response:"), and its BOS token.

    Returns:
        One tuple of token ids per record, in order.

    Raises:
        ConfigError: "chat" with a tokenizer that has no chat template.
        DataError: the chat template rejects a prompt, or a prompt has no token.
    """
    encoder = _Encoder(tokenizer, config)
    prompts = []
    for record in records:
        signals.poll()
        try:
            ids = encoder.prompt(record, render_prompt(record.prompt, config.template, tokenizer))
        except DataError as error:
            raise DataError(f"{record.record_id}: {error}") from error
        if not ids:
            raise DataError(f"{record.record_id}: its prompt has no tokens in this tokenizer; remove the row")
        if len(ids) > config.prompt_tokens:
            front = ids[:1] if ids[0] == tokenizer.bos_token_id and config.prompt_tokens > 1 else []
            ids = front + ids[len(ids) - config.prompt_tokens + len(front) :]
        prompts.append(tuple(ids))
    return prompts


def response_text(ids: Sequence[int], tokenizer: Tokenizer, end_ids: Sequence[int]) -> str:
    """Decode an answer up to its end token; strips special tokens and white space."""
    answer = list(itertools.takewhile(lambda token: token not in end_ids, ids))
    return tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()


def _chosen(references: tuple[str, ...], reference: Reference, seed: int, sample: int) -> str:
    """The reference to train on; ties go to the first."""
    if not references:
        raise DataError("the record has no answer")
    if reference == "longest":
        return max(references, key=len)
    if reference == "shortest":
        return min(references, key=len)
    if reference == "random":
        return references[int(generator(seed, "reference", sample).integers(len(references)))]
    return references[0]


class _Encoder:
    """Encodes text as token ids, for one tokenizer and template.

    In an Alpaca prompt, special tokens in the text of the row are encoded as plain text: a literal "<|endoftext|>" is no end
    token.  Chat templates contain special tokens as text, and raw prompts may, so there they are encoded as special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, config: TokenizeConfig) -> None:
        self._tokenizer, self._config = tokenizer, config
        self._front: list[int] = []  # the special tokens that the tokenizer puts before a text by default
        if config.template != "chat":
            plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
            self._front = full[: next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)]

    def prompt(self, record: Record, text: str) -> list[int]:
        """Token ids of the first text of a sequence, with leading special tokens."""
        ids = self._encode(record, text)
        return ids if ids[: len(self._front)] == self._front else self._front + ids

    def example(self, record: Record, end_id: int, seed: int, sample: int) -> tuple[Example, bool]:
        """One training sequence, and whether its answer was truncated."""
        config = self._config
        answer = _chosen(record.references, config.reference, seed, sample)
        transcript = render_transcript(record, answer, config.template, self._tokenizer, every_turn=config.supervise == "every")
        token_ids, supervised, prompt_length = self._transcript(record, transcript)
        if not transcript.ended:
            token_ids.append(end_id)
            supervised.append(True)
        if not token_ids or supervised[0] or len(token_ids) - prompt_length <= (not transcript.ended):
            raise DataError("its prompt or its answer has no tokens in this tokenizer")
        limit = prompt_length + config.response_tokens
        example = Example(
            sample=sample,
            record=record,
            prompt_ids=tuple(token_ids[:prompt_length]),
            token_ids=tuple(token_ids[:limit]),
            supervised=tuple(supervised[:limit]),
        )
        return example, len(token_ids) > limit

    def _transcript(self, record: Record, transcript: Transcript) -> tuple[list[int], list[bool], int]:
        """Token ids, mask of answer tokens, and number of ids before the last answer."""
        ids: list[int] = []
        supervised: list[bool] = []
        prompt_length = done = 0
        for start, end in transcript.answers:
            ids += self._continuation(record, ids, transcript.text, done, start)
            prompt_length = len(ids)
            supervised += [False] * (len(ids) - len(supervised))
            ids += self._continuation(record, ids, transcript.text, start, end)
            supervised += [True] * (len(ids) - len(supervised))
            done = end
        return ids, supervised, prompt_length

    def _continuation(self, record: Record, ids: list[int], text: str, done: int, until: int) -> list[int]:
        """The ids that text[done:until] appends to `ids`, the ids of text[:done]."""
        together = self.prompt(record, text[:until])
        return together[len(ids) :] if together[: len(ids)] == ids else self._encode(record, text[done:until])

    def _encode(self, record: Record, text: str) -> list[int]:
        is_data = self._config.template == "alpaca" and not isinstance(record.prompt, RawPrompt)
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_data)["input_ids"]
