"""Encoding of prompts, and of conversations with their answers, as token ids.

Only this module determines which tokens belong to the prompt and which to the answer.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from redistill.data.alpaca import front_ids
from redistill.data.encoding import Text, TextEncoder
from redistill.data.special import Range, SpecialTokenCounts, SpecialTokens
from redistill.data.templates import Rendering, literal_ranges, render_prompt, render_transcript, rendering_of
from redistill.errors import DataError
from redistill.interfaces import Tokenizer
from redistill.processes import signals
from redistill.randomness import generator
from redistill.records import Record

if TYPE_CHECKING:
    from redistill.data.tokenize import TokenizeConfig


class Spelled(NamedTuple):
    """Token ids of a conversation.

    Args:
        ids: Token ids.  The end token of the last answer is missing if the template does not write it.
        supervised: For each id, whether its token is a target (a token that the student is trained to predict).
        prompt: Number of ids before the last answer.
        ended: Whether `ids` includes the end token of the last answer.
    """

    ids: list[int]
    supervised: list[bool]
    prompt: int
    ended: bool

    def with_end(self, end_id: int) -> tuple[list[int], list[bool]]:
        """Return `ids` and `supervised`, with the end token appended if it is missing."""
        return (self.ids, self.supervised) if self.ended else ([*self.ids, end_id], [*self.supervised, True])


_Steps = Generator[list[Text], list[list[int]], Spelled]
"""Generator that yields lists of texts to encode, receives their token ids, and returns the encoded conversation."""


class SequenceEncoder:
    """Encodes records as token ids, for one tokenizer and template.

    A row may contain the text of a special token, such as "<|endoftext|>".

    - With the Alpaca template, this text is encoded as plain text.
    - In a raw prompt that is used verbatim, and in its answers, this text is encoded as a special token.
    - With a chat template, this text is encoded as plain text in messages. Only the template itself writes special tokens.

    Attributes:
        config: The settings of tokenization.
        counts: Counts of special tokens in the text of the rows that `spelled` has encoded.
    """

    def __init__(self, tokenizer: Tokenizer, config: "TokenizeConfig") -> None:
        self._tokenizer, self.config = tokenizer, config
        self._special, self.counts = SpecialTokens(tokenizer), SpecialTokenCounts()
        self._texts = TextEncoder(tokenizer, self._special)
        self._front = front_ids(tokenizer)

    def prompts(self, records: Sequence[Record]) -> list[list[int] | DataError]:
        """Encode the prompt of each record.

        The result has one element per record, in order: the token ids of the prompt.  If the template cannot render a prompt,
        its element is a DataError, which is not raised.
        """
        template, settings = self.config.template, self.config.chat
        found: list[list[int] | DataError] = []
        texts: list[Text] = []
        for record in records:
            signals.poll()
            try:
                text = render_prompt(record.prompt, template, self._tokenizer, settings)
                is_chat = self._rendering(record) == "chat"
                literal = literal_ranges(record.prompt, text, self._tokenizer, self._special, settings) if is_chat else ()
            except DataError as error:
                found.append(error)
            else:
                texts.append(self._text(record, text, literal))
                found.append([])
        encoded = iter(self._texts.encode(texts))
        both = zip(records, found, strict=True)
        return [ids if isinstance(ids, DataError) else self._with_front(record, next(encoded)) for record, ids in both]

    def spelled(self, records: Sequence[Record], seed: int, sample: int) -> Iterator["Spelled | DataError"]:
        """Encode each record with one of its answers; yield its ids or a DataError.

        An error is yielded and not raised. It states that the record has no answer, that the chat template rejects the
        record, or that there is no target (a token that the student is trained to predict).

        Args:
            records: A batch of records.
            seed: Seed of the run.
            sample: Number of records that were kept before this batch.  A record is kept if it can be encoded and its prompt is
                not too long.  The random choice of a reference (one of several correct answers) depends on this number.
        """
        known: dict[tuple[int, str], Spelled | DataError] = {}
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
                is_kept = isinstance(found, Spelled) and found.prompt <= self.config.prompt_tokens
                sample += is_kept
                if may_vary and not is_kept:  # the later choices assumed that this record is kept
                    break

    def _chosen(self, record: Record, seed: int, sample: int) -> str | None:
        return _chosen(record.references, self.config.reference, seed, sample) if record.references else None

    def _results(self, tasks: Sequence[_Steps]) -> list["Spelled | DataError"]:
        """Run the generators `tasks`, and return their results.

        The result of a generator is the encoded conversation, or the DataError that it raised. In each round, the texts that
        all generators request are encoded together.
        """
        results: dict[int, Spelled | DataError] = {}
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
        """Encode one record with the answer `answer`, as a generator.

        The generator yields lists of texts to encode, receives their token ids, and returns the encoded conversation.

        A stop is the end of a prompt or of an answer. The text up to each stop is encoded. Usually, the ids up to a stop begin
        with the ids up to the previous stop. If they do not, a token extends over the previous stop. The text between the two
        stops is then encoded separately.
        """
        config = self.config
        transcript = render_transcript(
            record,
            answer,
            config.template,
            self._tokenizer,
            every_turn=config.supervise == "every",
            special=self._special,
            settings=config.chat,
        )
        text, literal = transcript.text, transcript.literal
        stops = [stop for start_end in transcript.answers for stop in start_end]
        encoded = yield [self._text(record, text[:stop], literal) for stop in stops]
        ids: list[int] = []
        supervised: list[bool] = []
        prompt = done = 0
        for number, (stop, alone) in enumerate(zip(stops, encoded)):
            together = self._with_front(record, alone)
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
            raise DataError("the tokenizer returns no tokens for the prompt or the answer; change or remove the row")
        return Spelled(ids, supervised, prompt, transcript.ended)

    def _rendering(self, record: Record) -> Rendering:
        return rendering_of(type(record.prompt), self.config.template)

    def _with_front(self, record: Record, ids: list[int]) -> list[int]:
        """Add missing special tokens at the start of a record's token ids.

        These are the tokens that the tokenizer puts before a text.  Nothing is added to the text of a chat template, which
        contains its own special tokens.
        """
        front = [] if self._rendering(record) == "chat" else self._front
        return ids if ids[: len(front)] == front else front + ids

    def _text(self, record: Record, text: str, literal: tuple[Range, ...] = ()) -> Text:
        """Return `text`, a part of the rendered record, as a `Text` to encode.

        With the Alpaca template, all special tokens are encoded as plain text. With a chat template, the special tokens in the
        ranges `literal` are encoded as plain text. Ranges that extend beyond `text` are ignored.
        """
        is_data = self._rendering(record) == "alpaca"
        return Text(text, is_data, tuple((start, end) for start, end in literal if end <= len(text)))


def _chosen(references: tuple[str, ...], reference: str, seed: int, sample: int) -> str:
    """Return the reference (one of several correct answers) to train on.

    `reference` is "first", "longest", "shortest" or "random"; lengths are in characters.  Of equally long references, the first
    is chosen.  The random choice depends on `seed` and `sample`.
    """
    if reference == "longest":
        return max(references, key=len)
    if reference == "shortest":
        return min(references, key=len)
    if reference == "random":
        return references[int(generator(seed, "reference", sample).integers(len(references)))]
    return references[0]
