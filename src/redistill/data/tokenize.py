"""Records as token ids: the only place that knows where a prompt ends and an answer begins.

Training and evaluation prompts are made by the same lines, so a model is asked what it was taught.  Special tokens are put in
front as the tokenizer does by its own convention (BOS for Llama, </s> for OPT, none for GPT-2 and Qwen), in training *and* in
evaluation; published code did so in one of them only.  A chat template writes its own, and nothing is added to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from redistill.contracts import Example
from redistill.data.templates import Template, Transcript, render_prompt, render_transcript
from redistill.errors import ConfigError, DataError, ModelError
from redistill.processes import signals
from redistill.randomness import generator
from redistill.records import RawPrompt, Record

Supervise = Literal["last", "every"]
Reference = Literal["first", "longest", "shortest", "random"]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """How records become token ids.

    Args:
        prompt_tokens: The longest prompt, >= 1.  A longer one is left out of training; in evaluation its end is kept.
        response_tokens: The longest answer with its end token, >= 1; a longer one is cut and has no end token.
        template: "alpaca" or "chat", as `templates.render_prompt` has it.
        supervise: Whether the last answer of a conversation is learned, or every answer of the assistant.
        reference: Which of several right answers is learned; "random" is drawn anew for each run seed.

    Raises:
        ConfigError: a length below 1 or a word that is none of the choices.
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
    """A record that is not learned from: its place among those given, from 0, and why."""

    place: int
    record_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """What became of the records: kept, left out for a long prompt, rejected; `num_cut` of the kept ones have a cut answer.

    A long prompt is a matter of the length limit; a rejected record has nothing to learn, or the chat template refuses it.
    """

    num_records: int
    num_kept: int
    num_cut: int
    too_long: tuple[RejectedRecord, ...]
    rejected: tuple[RejectedRecord, ...]

    @property
    def num_too_long(self) -> int:
        return len(self.too_long)


def tokenize_training(
    records: Sequence[Record], tokenizer: Any, config: TokenizeConfig, seed: int
) -> tuple[list[Example], TokenizeReport]:
    """Gold sequences: prompt, answer, end token, and which tokens are targets, by position.

    A prompt's ids are the ids that `tokenize_prompts` gives, and always the beginning of the sequence: the answer is what
    tokenising both adds to them, or, where the border merges, the answer tokenised on its own.

    Args:
        records: Each with at least one reference.
        tokenizer: A transformers tokenizer with an end token.
        config: Lengths, template, and what is learned.
        seed: The run's seed, for `reference="random"`.

    Returns:
        The examples, numbered by `sample` from 0, and the report.

    Raises:
        DataError: no record is left.
        ConfigError: "chat" with a tokenizer that has no chat template.
        ModelError: the tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError("tokenizer: has no end token (eos_token), so a student could not learn to stop; set one in its folder")
    encoder = _Encoder(tokenizer, config.template)
    examples: list[Example] = []
    rejected: list[RejectedRecord] = []
    too_long: list[RejectedRecord] = []
    num_cut = 0
    for place, record in enumerate(records):
        signals.poll()
        sample = len(examples)
        try:
            example, was_cut = _example(record, encoder, tokenizer, config, seed, sample)
        except DataError as error:
            rejected.append(RejectedRecord(place=place, record_id=record.record_id, reason=str(error)))
            continue
        if len(example.prompt_ids) > config.prompt_tokens:
            reason = f"its prompt has {len(example.prompt_ids)} tokens; prompt_tokens = {config.prompt_tokens}"
            too_long.append(RejectedRecord(place=place, record_id=record.record_id, reason=reason))
            continue
        examples.append(example)
        num_cut += was_cut
    if not examples:
        first = f" (first: {rejected[0].record_id}: {rejected[0].reason})" if rejected else ""
        raise DataError(
            f"training data: none of {len(records)} records is left: {len(too_long)} prompts are longer than prompt_tokens = "
            f"{config.prompt_tokens}, {len(rejected)} have nothing to learn{first}; raise prompt_tokens or give other data"
        )
    report = TokenizeReport(
        num_records=len(records),
        num_kept=len(examples),
        num_cut=num_cut,
        too_long=tuple(too_long),
        rejected=tuple(rejected),
    )
    return examples, report


def tokenize_prompts(records: Sequence[Record], tokenizer: Any, config: TokenizeConfig) -> list[tuple[int, ...]]:
    """The prompt of each record, at most `prompt_tokens` long.

    A longer prompt keeps its last tokens, since its end asks for the answer ("### Response:"), and its BOS stays in front.

    Returns:
        One tuple of ids per record, in order.

    Raises:
        ConfigError: "chat" with a tokenizer that has no chat template.
        DataError: a prompt that the chat template refuses, or that has no token.
    """
    encoder = _Encoder(tokenizer, config.template)
    prompts = []
    for record in records:
        signals.poll()
        try:
            ids = encoder.prompt(record, render_prompt(record.prompt, config.template, tokenizer))
        except DataError as error:
            raise DataError(f"{record.record_id}: {error}") from error
        if not ids:
            raise DataError(f"{record.record_id}: its prompt has no tokens in this tokenizer; leave the row out")
        if len(ids) > config.prompt_tokens:
            front = ids[:1] if ids[0] == tokenizer.bos_token_id and config.prompt_tokens > 1 else []
            ids = front + ids[len(ids) - config.prompt_tokens + len(front) :]
        prompts.append(tuple(ids))
    return prompts


def response_text(ids: Sequence[int], tokenizer: Any, end_ids: Sequence[int]) -> str:
    """The text of an answer up to its end token, without special tokens and outer white space."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), len(ids))
    text = tokenizer.decode(list(ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


def _example(
    record: Record, encoder: "_Encoder", tokenizer: Any, config: TokenizeConfig, seed: int, sample: int
) -> tuple[Example, bool]:
    """One gold sequence, and whether its answer had to be cut."""
    answer = _chosen(record.references, config.reference, seed, sample)
    transcript = render_transcript(record, answer, config.template, tokenizer, every_turn=config.supervise == "every")
    token_ids, supervised, prompt_length = encoder.transcript(record, transcript)
    if not transcript.ended:
        token_ids.append(tokenizer.eos_token_id)
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


def _chosen(references: tuple[str, ...], reference: Reference, seed: int, sample: int) -> str:
    """The reference to learn from; ties go to the first."""
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
    """Text to ids, for one tokenizer and template.

    In an Alpaca prompt the row's text is data: a literal "<|endoftext|>" in it is no end token.  Chat templates write special
    tokens as text, and a raw prompt may, so there they count.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._front = [] if template == "chat" else _front_ids(tokenizer)

    def prompt(self, record: Record, text: str) -> list[int]:
        """The ids of a text that stands first, with what belongs in front of it."""
        ids = self._encode(record, text)
        return ids if ids[: len(self._front)] == self._front else self._front + ids

    def transcript(self, record: Record, transcript: Transcript) -> tuple[list[int], list[bool], int]:
        """All ids, which of them are answers, and how many stand before the last answer."""
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
        """What text[done:until] adds to `ids`, the ids of text[:done]."""
        together = self.prompt(record, text[:until])
        return together[len(ids) :] if together[: len(ids)] == ids else self._encode(record, text[done:until])

    def _encode(self, record: Record, text: str) -> list[int]:
        is_data = self._template == "alpaca" and not isinstance(record.prompt, RawPrompt)
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=is_data)["input_ids"])


def _front_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of a text by its own convention."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return full[:start]
