"""Tokenization of records.

No other module determines where a prompt ends and an answer begins.

Training and evaluation build prompts with the same code, so a model is evaluated on the prompts that it was trained on.  The
special tokens that the tokenizer puts before a text by default (BOS for Llama, </s> for OPT, none for GPT-2 and Qwen) are added
in training *and* in evaluation; published code adds them in only one of the two.  A chat template contains its own special
tokens, so none are added to it.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypedDict, cast, get_args

import numpy as np

from redistill.data.encoding import CHARACTERS_AT_ONCE, Text, TextEncoder
from redistill.data.examples import ExampleBuilder, Examples
from redistill.data.fingerprint import CACHED_BYTES, fingerprint, tokenizer_hash
from redistill.data.forms import texts_of
from redistill.data.rows import Rows, collection_paused
from redistill.data.special import Range, SpecialTokenCounts, SpecialTokens
from redistill.data.templates import Template, literal_ranges, render_prompt, render_transcript
from redistill.errors import ConfigError, DataError, ModelError
from redistill.interfaces import Tokenizer
from redistill.processes import signals
from redistill.randomness import generator
from redistill.records import Json, RawPrompt, Record
from redistill.storage.cache import Stored, cached

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
        special_tokens: Special tokens in the text of the records.
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
    cache: Callable[[str], None] | None = None,
) -> tuple[Examples, TokenizeReport]:
    """Tokenize records for training.

    A sequence is prompt, answer and end token, with a mask of the targets.  It begins with exactly the ids that
    `tokenize_prompts` returns.  The answer's ids are those that tokenizing prompt and answer together appends to them; where a
    token spans the boundary, the answer is tokenized on its own.

    Args:
        records: Records; one without a reference is rejected.
        tokenizer: A transformers tokenizer with an end token.
        config: Length limits, template, and which answers to train on.
        seed: Seed of the run, used by `reference="random"`.
        cache: Keeps the result for many `Rows` in the cache, which all processes map, and calls this with a line if the cache
            cannot be used.

    Returns:
        The examples, created on access, whose `sample` counts from 0 without gaps; and the report.

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

    def make() -> Stored:
        return _tokenized(records, _Encoder(tokenizer, config), end_id, seed)

    if cache is not None and isinstance(records, Rows) and records.num_bytes >= CACHED_BYTES:
        settings = {**dataclasses.asdict(config), "seed": seed if config.reference == "random" else None}
        key = fingerprint(hashlib.sha256(records.contents.tobytes()).hexdigest(), tokenizer_hash(tokenizer), settings)
        stored = cached("tokens", key, make, report=cache, poll=signals.poll)
    else:
        stored = make()
    examples, report = Examples.of(records, stored.arrays), _report(records, stored, config)
    if not examples:
        first = f" (first: {report.rejected[0].record_id}: {report.rejected[0].reason})" if report.rejected else ""
        raise DataError(
            f"training data: none of {len(records)} records is left: {report.num_too_long} prompts are longer than "
            f"prompt_tokens = {config.prompt_tokens}, {len(report.rejected)} were rejected{first}; raise prompt_tokens or use "
            "other data"
        )
    return examples, report


@collection_paused()
def _tokenized(records: Sequence[Record], encoder: "_Encoder", end_id: int, seed: int) -> Stored:
    """The examples as arrays, and the records that were left out."""
    config, examples = encoder.config, ExampleBuilder()
    rejected: list[Json] = []
    too_long: list[tuple[int, int]] = []
    num_cut = 0
    for first, batch in _batches(records, config.reference):
        signals.poll()
        for index, outcome in enumerate(encoder.spelled(batch, seed, len(examples)), first):
            if isinstance(outcome, DataError):
                rejected.append([index, str(outcome)])
            elif outcome.prompt > config.prompt_tokens:
                too_long.append((index, outcome.prompt))
            else:
                limit = outcome.prompt + config.response_tokens
                ids, supervised = outcome.with_end(end_id)
                examples.add(index, outcome.prompt, ids[:limit], supervised[:limit])
                num_cut += len(ids) > limit
    arrays = {**examples.arrays(), "too_long": np.array(too_long, dtype=np.int64).reshape(-1, 2)}
    return Stored(arrays, {"num_cut": num_cut, "rejected": rejected, "special_tokens": encoder.counts.as_json()})


class _About(TypedDict):
    """What a cache entry says of tokenized rows, besides their arrays."""

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
    """The records in batches with the index of their first, limited in number and in characters.

    The choice of a random reference depends on how many earlier records are kept, so those batches are small.
    """
    most = 64 if reference == "random" else 1024
    batch: list[Record] = []
    size = first = 0
    for index, record in enumerate(records):
        batch.append(record)
        size += sum(map(len, (*texts_of(record.prompt), *record.references)))
        if len(batch) == most or size >= CHARACTERS_AT_ONCE:
            yield first, batch
            batch, size, first = [], 0, index + 1
    if batch:
        yield first, batch


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
    prompts: list[tuple[int, ...]] = []
    for _, batch in _batches(records, "first"):
        for record, ids in zip(batch, encoder.prompts(batch)):
            if isinstance(ids, DataError):
                raise DataError(f"{record.record_id}: {ids}") from ids
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
    if reference == "longest":
        return max(references, key=len)
    if reference == "shortest":
        return min(references, key=len)
    if reference == "random":
        return references[int(generator(seed, "reference", sample).integers(len(references)))]
    return references[0]


class _Spelled(NamedTuple):
    """Token ids of a conversation.

    Args:
        ids: Token ids, without the end token where the template has none.
        supervised: For each id, whether it is a target.
        prompt: Number of ids before the last answer.
        ended: Whether the last answer has its end token.
    """

    ids: list[int]
    supervised: list[bool]
    prompt: int
    ended: bool

    def with_end(self, end_id: int) -> tuple[list[int], list[bool]]:
        """The ids and targets with the end token."""
        return (self.ids, self.supervised) if self.ended else ([*self.ids, end_id], [*self.supervised, True])


_Steps = Generator[list[Text], list[list[int]], _Spelled]
"""A generator that yields texts to encode, is sent their ids, and returns the result."""


class _Encoder:
    """Encodes records as token ids, for one tokenizer and template.

    In an Alpaca prompt, special tokens in the text of the row are encoded as plain text: a literal "<|endoftext|>" is no end
    token.  A chat template contains special tokens, and those in its messages are encoded as plain text.  Special tokens of raw
    prompts, and of their answers, are special.  `counts` has the number of both.
    """

    def __init__(self, tokenizer: Tokenizer, config: TokenizeConfig) -> None:
        self._tokenizer, self.config = tokenizer, config
        self._special, self.counts = SpecialTokens(tokenizer), SpecialTokenCounts()
        self._texts = TextEncoder(tokenizer, self._special)
        self._front: list[int] = []  # the special tokens that the tokenizer puts before a text by default
        if config.template != "chat":
            plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
            self._front = full[: next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)]

    def prompts(self, records: Sequence[Record]) -> list["list[int] | DataError"]:
        """The token ids of each prompt, or why it cannot be rendered."""
        template = self.config.template
        found: list[list[int] | DataError] = []
        texts: list[Text] = []
        for record in records:
            signals.poll()
            try:
                text = render_prompt(record.prompt, template, self._tokenizer)
                literal = literal_ranges(record.prompt, text, self._tokenizer, self._special) if template == "chat" else ()
            except DataError as error:
                found.append(error)
            else:
                texts.append(self._text(record, text, literal))
                found.append([])
        encoded = iter(self._texts.encode(texts))
        return [ids if isinstance(ids, DataError) else self._with_front(next(encoded)) for ids in found]

    def spelled(self, records: Sequence[Record], seed: int, sample: int) -> Iterator["_Spelled | DataError"]:
        """The ids of each record with its answer, or why it has none.

        Args:
            records: A batch.
            seed: Seed of the run.
            sample: The sample of the first record that is kept.
        """
        known: dict[tuple[int, str], _Spelled | DataError] = {}
        may_vary = self.config.reference == "random" and any(len(record.references) > 1 for record in records)
        done = 0
        while done < len(records):
            chosen = [self._chosen(records[k], seed, sample + k - done) for k in range(done, len(records))]
            new = [(k, answer) for k, answer in enumerate(chosen, done) if answer is not None and (k, answer) not in known]
            known |= zip(new, self._results([self._steps(records[k], answer) for k, answer in new]))
            for answer in chosen:
                found = DataError("the record has no answer") if answer is None else known[done, answer]
                self.counts.add(records[done], answer, self._special, self.config.template)
                yield found
                done += 1
                is_kept = isinstance(found, _Spelled) and found.prompt <= self.config.prompt_tokens
                sample += is_kept
                if may_vary and not is_kept:  # the samples of the records after it are lower by one
                    break

    def _chosen(self, record: Record, seed: int, sample: int) -> str | None:
        return _chosen(record.references, self.config.reference, seed, sample) if record.references else None

    def _results(self, tasks: Sequence[_Steps]) -> list["_Spelled | DataError"]:
        """The results of generators; the texts that they request at the same time are encoded together."""
        results: dict[int, _Spelled | DataError] = {}
        waiting: dict[int, list[Text]] = {}

        def proceed(number: int, ids: list[list[int]] | None) -> None:
            try:
                waiting[number] = next(tasks[number]) if ids is None else tasks[number].send(ids)
            except StopIteration as finished:
                results[number] = finished.value
            except DataError as error:
                results[number] = error

        for number in range(len(tasks)):
            signals.poll()
            proceed(number, None)
        while waiting:
            requests, waiting = waiting, {}
            encoded = iter(self._texts.encode([text for texts in requests.values() for text in texts]))
            for number, texts in requests.items():
                proceed(number, [next(encoded) for _ in texts])
        return [results[number] for number in range(len(tasks))]

    def _steps(self, record: Record, answer: str) -> _Steps:
        """Encode one record; the ids of text[done:until] are those that text[:until] appends to the ids of text[:done]."""
        config = self.config
        transcript = render_transcript(
            record,
            answer,
            config.template,
            self._tokenizer,
            every_turn=config.supervise == "every",
            special=self._special,
        )
        text, literal = transcript.text, transcript.literal
        stops = [stop for start_end in transcript.answers for stop in start_end]
        encoded = yield [self._text(record, text[:stop], literal) for stop in stops]
        ids: list[int] = []
        supervised: list[bool] = []
        prompt = done = 0
        for number, (stop, alone) in enumerate(zip(stops, encoded)):
            together = self._with_front(alone)
            if together[: len(ids)] == ids:
                ids = together
            else:
                shifted = tuple((start - done, end - done) for start, end in literal if start >= done)
                (more,) = yield [self._text(record, text[done:stop], shifted)]
                ids = ids + more
            is_answer = number % 2 == 1
            prompt = prompt if is_answer else len(ids)
            supervised += [is_answer] * (len(ids) - len(supervised))
            done = stop
        if not ids or supervised[0] or len(ids) == prompt:
            raise DataError("its prompt or its answer has no tokens in this tokenizer")
        return _Spelled(ids, supervised, prompt, transcript.ended)

    def _with_front(self, ids: list[int]) -> list[int]:
        """The ids of the first text of a sequence, with leading special tokens."""
        return ids if ids[: len(self._front)] == self._front else self._front + ids

    def _text(self, record: Record, text: str, literal: tuple[Range, ...] = ()) -> Text:
        """A text of the record to encode, with the ranges of `literal` that it contains."""
        is_data = self.config.template == "alpaca" and not isinstance(record.prompt, RawPrompt)
        return Text(text, is_data, tuple((start, end) for start, end in literal if end <= len(text)))
