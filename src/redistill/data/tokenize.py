"""Tokenization of records.

Training and evaluation build prompts with the same code, so their prompts have the same format. Some tokenizers put special
tokens before a text by default: BOS for Llama, </s> for OPT, none for GPT-2 and Qwen. These tokens are added both in training
and in evaluation. Nothing is added to the text of a chat template, which contains its own special tokens.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, cast, get_args

import numpy as np

from redistill.data.chat import RESERVED, Argument, ChatSettings, fixed_date, is_date
from redistill.data.encoding import CHARACTERS_AT_ONCE
from redistill.data.examples import ExampleBuilder, Examples
from redistill.data.fingerprint import CACHED_BYTES, fingerprint, tokenizer_hash
from redistill.data.forms import answer_texts, texts_of
from redistill.data.rows import Rows, collection_paused
from redistill.data.sequences import SequenceEncoder, Spelled
from redistill.data.special import SpecialTokenCounts
from redistill.data.templates import Template
from redistill.errors import ConfigError, DataError, ModelError
from redistill.interfaces import Tokenizer
from redistill.processes import signals
from redistill.records import Json, Record
from redistill.storage.cache import Stored, cached

Supervise = Literal["last", "every"]
Reference = Literal["first", "longest", "shortest", "random"]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Settings of tokenization.

    Args:
        prompt_tokens: Maximum prompt length in tokens, >= 1. Training skips rows with longer prompts. Evaluation removes tokens
            at the start of a longer prompt.
        response_tokens: Maximum answer length in tokens, including the end token, >= 1.  A longer answer is truncated and has
            no end token.
        template: The prompt template. With "auto", conversations are rendered with the chat template of the tokenizer, and
            instructions with the template of Stanford Alpaca; prompts with a completion are used verbatim. With "chat", all
            rows are rendered with the chat template. With "alpaca", conversations are rendered with the Alpaca template, and
            other rows as with "auto".
        template_arguments: Arguments of the chat template by name, such as {enable_thinking: false}.  They are used in every
            rendering, in training and in evaluation.
        template_date: Date and time that a chat template prints, in ISO format, such as 2026-11-30T09:00:00.  If None and the
            template prints a date, the start time of the run is printed and stored in run.json.
        supervise: "last" trains on the last answer of a conversation, "every" on every answer of the assistant.
        reference: Which of several references (correct answers) to train on: "first", "longest" or "shortest" (in characters),
            or "random". The random choice depends on the seed of the run.

    Raises:
        ConfigError: a length is below 1; a choice is unknown; a template argument has a reserved or invalid name; or the date
            is not in ISO format.

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
    template: Template = "auto"
    template_arguments: dict[str, Argument] = field(default_factory=dict)
    template_date: str | None = None
    supervise: Supervise = "last"
    reference: Reference = "first"

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "response_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be >= 1; the papers use 256")
        for name, choices in (("template", Template), ("supervise", Supervise), ("reference", Reference)):
            if getattr(self, name) not in get_args(choices):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: must be one of {', '.join(get_args(choices))}")
        for argument in self.template_arguments:
            if argument in RESERVED or not argument.isidentifier():
                fault = "is set by redistill" if argument in RESERVED else "is not a name"
                raise ConfigError(f"template_arguments.{argument[:60]}: {fault}; give the name of a template variable")
        if self.template_date is not None and not is_date(self.template_date):
            raise ConfigError(f"template_date = {self.template_date!r}: must be in ISO format, such as 2026-11-30T09:00:00")

    @property
    def chat(self) -> ChatSettings:
        """The settings of the chat template."""
        return ChatSettings(self.template_arguments, self.template_date)


@dataclass(frozen=True, kw_only=True)
class RejectedRecord:
    """A record that training leaves out.

    Args:
        index: Index of the record among the given records, from 0.
        record_id: The id of the record.
        reason: The reason why the record is left out, in one line.
    """

    index: int
    record_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class TokenizeReport:
    """Counts of tokenized records, and the records that were left out.

    Args:
        num_cut: Number of kept records whose answer was truncated.
        too_long: Records whose prompt is longer than the setting `prompt_tokens`.
        rejected: Records that their template rejects, and records without a target (a token that the student is trained to
            predict). If answers are required, also records without an answer.
        special_tokens: Counts of special tokens in the text of the records.
    """

    num_cut: int
    too_long: tuple[RejectedRecord, ...]
    rejected: tuple[RejectedRecord, ...]
    special_tokens: SpecialTokenCounts = field(default_factory=SpecialTokenCounts)

    @property
    def num_too_long(self) -> int:
        """Number of records whose prompt is too long."""
        return len(self.too_long)


def tokenize_training(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    seed: int,
    *,
    role: str = "training data",
    prompts_alone: bool = False,
    cache: Callable[[str], None] | None = None,
) -> tuple[Examples, TokenizeReport]:
    """Tokenize records for training.

    A sequence consists of prompt, answer and end token. A mask marks its targets (tokens that the student is trained to
    predict). The sequence begins with exactly the ids that `tokenize_prompts` returns.  Prompt and answer are tokenized
    together.  If a token would contain the boundary between prompt and answer, the answer is tokenized separately.

    Args:
        records: The records.
        tokenizer: A transformers tokenizer with an end token.
        config: Length limits, template, and which answers to train on.
        seed: Seed of the run, used by `reference="random"`.
        role: Name of the records in error messages.
        prompts_alone: Whether a record without an answer becomes an example that has only its prompt.  If False, such records
            are left out and listed in the report.
        cache: Function that receives warnings about the cache, for example that a file cannot be written. If it is not None and
            `records` is a large `Rows`, the result is stored in the cache. None disables the cache.

    Returns:
        The examples, and a report with the records that were left out and the number of truncated answers.  Examples are
        created on access; their `sample` is 0, 1, 2, ... without gaps.

    Raises:
        DataError: no record is left.
        ConfigError: a record needs a chat template, but the tokenizer has none.
        ModelError: the tokenizer has no end token.
    """
    examples, report = tokenize_some(records, tokenizer, config, seed, prompts_alone=prompts_alone, cache=cache)
    if not examples:
        raise DataError(f"{role}: none of {len(records)} records is left: {_reasons(report, config)}")
    return examples, report


def tokenize_some(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    config: TokenizeConfig,
    seed: int,
    *,
    prompts_alone: bool = False,
    cache: Callable[[str], None] | None = None,
) -> tuple[Examples, TokenizeReport]:
    """Tokenize records for training; the result may have no example.

    The arguments and the result are those of `tokenize_training`.

    Raises:
        ConfigError: a record needs a chat template, but the tokenizer has none.
        ModelError: the tokenizer has no end token.
    """
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise ModelError(
            "tokenizer: has no end token (eos_token), so a student cannot learn to stop; set eos_token in tokenizer_config.json"
        )

    config = replace(config, template_date=fixed_date(tokenizer, config.template_date))

    def make() -> Stored:
        return _tokenized(records, SequenceEncoder(tokenizer, config), end_id, seed, prompts_alone)

    has_files = hasattr(tokenizer, "save_pretrained")  # the cache key is a hash of the files that a tokenizer saves
    if cache is not None and has_files and isinstance(records, Rows) and records.num_bytes >= CACHED_BYTES:
        settings = {**dataclasses.asdict(config), "seed": seed if config.reference == "random" else None}
        settings["prompts_alone"] = prompts_alone
        key = fingerprint(hashlib.sha256(records.contents.tobytes()).hexdigest(), tokenizer_hash(tokenizer), settings)
        stored = cached("tokens", key, make, report=cache, poll=signals.poll)
    else:
        stored = make()
    return Examples.of(records, stored.arrays), _report(records, stored, config)


def _reasons(report: TokenizeReport, config: TokenizeConfig) -> str:
    """Return why no record can be used, with the remedy."""
    first = f"{report.rejected[0].record_id}: {report.rejected[0].reason}" if report.rejected else ""
    long = f"{report.num_too_long} prompts are longer than prompt_tokens = {config.prompt_tokens}; raise prompt_tokens"
    if not report.rejected:
        return f"{long} or use other data" if report.too_long else "there are no records; use other data"
    rejected = f"{len(report.rejected)} were rejected (first: {first})"
    return f"{rejected}, and {long} or use other data" if report.too_long else f"{rejected}; use other data"


@collection_paused()
def _tokenized(records: Sequence[Record], encoder: SequenceEncoder, end_id: int, seed: int, prompts_alone: bool) -> Stored:
    """Tokenize records; return the arrays and JSON values to cache."""
    config, examples = encoder.config, ExampleBuilder()
    rejected: list[Json] = []
    too_long: list[tuple[int, int]] = []
    num_cut = num_prompts = 0
    for first, batch in _batches(records, config.reference):
        signals.poll()
        alone = iter(encoder.prompts([record for record in batch if not record.references]) if prompts_alone else ())
        for index, outcome in enumerate(encoder.spelled(batch, seed, len(examples) - num_prompts), first):
            if prompts_alone and not batch[index - first].references:
                outcome = _prompt_alone(next(alone))
                num_prompts += isinstance(outcome, Spelled) and outcome.prompt <= config.prompt_tokens
            if isinstance(outcome, DataError):
                rejected.append([index, str(outcome)])
            elif outcome.prompt > config.prompt_tokens:
                too_long.append((index, outcome.prompt))
            else:
                limit = outcome.prompt + config.response_tokens
                ids, supervised = outcome.with_end(end_id)  # a prompt alone has no end
                examples.add(index, outcome.prompt, ids[:limit], supervised[:limit])
                num_cut += len(ids) > limit
    arrays = {**examples.arrays(), "too_long": np.array(too_long, dtype=np.int64).reshape(-1, 2)}
    return Stored(arrays, {"num_cut": num_cut, "rejected": rejected, "special_tokens": encoder.counts.as_json()})


def _prompt_alone(ids: list[int] | DataError) -> Spelled | DataError:
    """Return the token ids of a prompt as a sequence without an answer.

    If `ids` is an error, the error is returned unchanged.
    """
    if isinstance(ids, DataError):
        return ids
    if not ids:
        return DataError("its prompt has no tokens in this tokenizer; change or remove the row")
    return Spelled(ids, [False] * len(ids), len(ids), ended=True)


class _About(TypedDict):
    """The JSON values that the cache stores in addition to the token ids of records.

    Args:
        num_cut: The field `num_cut` of `TokenizeReport`.
        rejected: Index and reason of each rejected record.
        special_tokens: The result of `SpecialTokenCounts.as_json`.
    """

    num_cut: int
    rejected: list[tuple[int, str]]
    special_tokens: dict[str, dict[str, int]]


def _report(records: Sequence[Record], stored: Stored, config: TokenizeConfig) -> TokenizeReport:
    about = cast("_About", stored.about)

    def left_out(index: int, reason: str) -> RejectedRecord:
        name = records.record_id(index) if isinstance(records, Rows) else records[index].record_id
        return RejectedRecord(index=index, record_id=name, reason=reason)

    return TokenizeReport(
        num_cut=about["num_cut"],
        too_long=tuple(
            left_out(index, f"its prompt has {length} tokens; prompt_tokens = {config.prompt_tokens}")
            for index, length in stored.arrays["too_long"].tolist()
        ),
        rejected=tuple(left_out(index, reason) for index, reason in about["rejected"]),
        special_tokens=SpecialTokenCounts.of(about["special_tokens"]),
    )


def _batches(records: Sequence[Record], reference: Reference) -> Iterator[tuple[int, list[Record]]]:
    """Yield batches of records, each with the index of its first record.

    The numbers of records and of characters per batch are limited. Batches are smaller if `reference` is "random". In this
    case, the answer of a record depends on the number of records kept before it. If a record is left out, the later records of
    its batch are therefore encoded again.
    """
    most = 64 if reference == "random" else 1024
    batch: list[Record] = []
    size = first = 0
    for index, record in enumerate(records):
        batch.append(record)
        size += sum(map(len, (*texts_of(record.prompt), *record.references, *answer_texts(record.answer))))
        if len(batch) == most or size >= CHARACTERS_AT_ONCE:
            yield first, batch
            batch, size, first = [], 0, index + 1
    if batch:
        yield first, batch


def tokenize_prompts(
    records: Sequence[Record], tokenizer: Tokenizer, config: TokenizeConfig, *, role: str = "prompts"
) -> list[tuple[int, ...]]:
    """Tokenize the prompt of each record; truncate long prompts on the left.

    A prompt longer than `prompt_tokens` keeps its BOS token and its last tokens. The end of a prompt must be kept, because it
    requests the answer ("### Response:").  `role` is the name of the records in error messages.

    Returns:
        One tuple of token ids per record, in order.

    Raises:
        ConfigError: a record needs a chat template, but the tokenizer has none.
        DataError: the chat template rejects a prompt, or a prompt has no token.
    """
    encoder = SequenceEncoder(tokenizer, config)
    prompts: list[tuple[int, ...]] = []
    for _, batch in _batches(records, "first"):
        for record, ids in zip(batch, encoder.prompts(batch)):
            if isinstance(ids, DataError):
                raise DataError(f"{role}: {record.record_id}: {ids}") from ids
            if not ids:
                raise DataError(f"{role}: {record.record_id}: the tokenizer returns no tokens for the prompt; remove the row")
            if len(ids) > config.prompt_tokens:
                front = ids[:1] if ids[0] == tokenizer.bos_token_id and config.prompt_tokens > 1 else []
                ids = front + ids[len(ids) - config.prompt_tokens + len(front) :]
            prompts.append(tuple(ids))
    return prompts


def response_text(ids: Sequence[int], tokenizer: Tokenizer, end_ids: Sequence[int]) -> str:
    """Decode the generated tokens `ids` up to the first token of `end_ids`.

    Special tokens are left out, and white space at both ends of the text is removed.
    """
    answer = list(itertools.takewhile(lambda token: token not in end_ids, ids))
    return tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
