"""Encoding of many texts as token ids at once.

The ids of each text are exactly those that the tokenizer returns for this text alone.

Many texts share their template and most of their words. Each text is therefore divided into pieces of about one word, and each
distinct piece is encoded only once. The module `words` chooses the pieces so that the ids of a text are the ids of its pieces,
one after the other.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import NamedTuple

import tokenizers
from transformers import PreTrainedTokenizerFast

from redistill.data.special import Range, SpecialTokens
from redistill.data.words import WordSplitter, word_splitter
from redistill.interfaces import Tokenizer
from redistill.processes import signals

CHARACTERS_KEPT = 2_000_000
"""Maximum number of characters of the pieces of text whose ids are cached; if there are more, the cache is cleared."""

CHARACTERS_AT_ONCE = 1_000_000
"""Approximate number of characters per call of the tokenizer."""

_SAMPLES = ("Below is a task:\n\n### Input:\nA, b\n\nAnswer:\n", "a:b  \n\n c", " x\n", "é: 12\nb:\u0301 ", "")


class Text(NamedTuple):
    """A text to encode, and which of its special tokens are encoded as plain text.

    Args:
        text: The text.
        split: If True, all special tokens in the text are encoded as plain text.
        literal: Character ranges [start, end) of special tokens that are encoded as plain text, even if `split` is False. They
            are called literal ranges.
    """

    text: str
    split: bool
    literal: tuple[Range, ...] = ()


class TextEncoder:
    """Encodes texts without the special tokens that the tokenizer adds by default.

    Args:
        tokenizer: A tokenizer of transformers.
        special: The special tokens of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, special: SpecialTokens) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._backend = _plain_backend(tokenizer)
        self._stand_ins: _StandIns | None = None
        self._words = None if self._backend is None else word_splitter(self._backend.to_str(), special)
        self._known: dict[str | int, list[int]] = {}
        self._num_kept = 0
        if self._words is not None:
            texts = [Text(text, split) for text in (*_SAMPLES, *special.texts[:3]) for split in (True, False)]
            if self.encode(texts) != [self._alone(text.text, text.split) for text in texts]:
                self._words = None

    def encode(self, texts: Sequence[Text]) -> list[list[int]]:
        """Return the token ids of each text, in the order of the texts."""
        ids: dict[Text, list[int]] = {}
        different = dict.fromkeys(texts)
        plain = [text for text in different if not text.literal]
        if self._words is not None:
            pieces = {text: self._words.split(text.text, text.split) for text in plain}
            known = self._ids_of(set(chain.from_iterable(pieces.values())), self._words)
            ids |= {text: list(chain.from_iterable(map(known.__getitem__, found))) for text, found in pieces.items()}
        else:
            for split in (True, False):
                same = [text for text in plain if text.split == split]
                ids |= zip(same, self._encoded([text.text for text in same], split))
        literal = [text for text in different if text.literal]
        ids |= zip(literal, self._with_literals(literal))
        return [list(ids[text]) for text in texts]

    def _ids_of(self, pieces: Set[str | int], words: WordSplitter) -> Mapping[str | int, list[int]]:
        """Return a mapping from each element of `pieces` to its token ids.

        `pieces` contains results of `WordSplitter.split`: pieces of text, and ids of added tokens. An id is mapped to a list
        that contains only this id. The mapping is a cache, so it may also contain pieces of earlier calls.
        """
        if self._num_kept > CHARACTERS_KEPT:
            self._known.clear()
            self._num_kept = 0
        for block in _blocks(sorted(piece for piece in pieces if isinstance(piece, str) and piece not in self._known)):
            signals.poll()
            self._known |= zip(block, (found.ids for found in words.backend.encode_batch_fast(block, add_special_tokens=False)))
            self._num_kept += sum(map(len, block))
        self._known |= {piece: [piece] for piece in pieces if isinstance(piece, int)}
        return self._known

    def _encoded(self, texts: Sequence[str], split: bool) -> list[list[int]]:
        """Return the token ids of each text.

        If `split` is True, special tokens in the texts are encoded as plain text.
        """
        if self._backend is None:
            return [self._alone(text, split) for text in texts]
        found: list[list[int]] = []
        for block in _blocks(texts):
            signals.poll()
            _reset(self._backend, split)
            found += [encoding.ids for encoding in self._backend.encode_batch_fast(block, add_special_tokens=False)]
        return found

    def _alone(self, text: str, split: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False, split_special_tokens=split, verbose=False)["input_ids"]

    def _with_literals(self, texts: Sequence[Text]) -> list[list[int]]:
        """Return the token ids of texts that have literal ranges.

        The results are in the order of the texts.  Special tokens in the literal ranges (`Text.literal`) are encoded as
        plain text, and all others as special tokens.
        """
        if not texts:
            return []
        if self._stand_ins is None:
            self._stand_ins = _StandIns(self._tokenizer, self._backend, self._special)
        return [self._stand_ins.encode(text) or self._apart(text) for text in texts]

    def _apart(self, text: Text) -> list[int]:
        """Divide a text at special tokens, encode each part, and return all token ids.

        The text is not divided at special tokens in its literal ranges (`Text.literal`), which are encoded as plain text.
        """
        assert self._stand_ins is not None
        ids: list[int] = []
        done = 0
        for start, end in [*self._special.find(text.text, text.literal), (len(text.text), len(text.text))]:
            ids += self._alone(text.text[done:start], True) if start > done else []
            ids += [self._stand_ins.ids[text.text[start:end]]] if end > start else []
            done = end
        return ids


class _StandIns:
    """Encodes texts in which some special tokens are encoded as plain text.

    The character ranges of these special tokens are called the literal ranges of the text.

    The tokenizer's backend (its implementation in Rust) encodes either all special tokens of a text as plain text, or none.
    In this class, the backend encodes all of them as plain text. Before encoding, each special token outside the literal
    ranges is replaced by a stand-in, which is an added token that is not special. After encoding, the id of each stand-in is
    replaced by the id of its special token.

    Args:
        tokenizer: The tokenizer.
        backend: The tokenizer's backend; None if it cannot be used, for example because the tokenizer is implemented in Python.
        special: The special tokens of the tokenizer.
    """

    _MARK = "\U0010f000"

    def __init__(self, tokenizer: Tokenizer, backend: tokenizers.Tokenizer | None, special: SpecialTokens) -> None:
        vocabulary = tokenizer.get_vocab()
        self._special = special
        self.ids = {token: vocabulary[token] for token in special.texts}
        self._of = {token: self._MARK + chr(0x10F100 + number) for number, token in enumerate(special.texts)}
        self._backend = None if backend is None else tokenizers.Tokenizer.from_str(backend.to_str())
        if self._backend is not None:
            _reset(self._backend, True)
            self._backend.add_special_tokens([special.added[token] for token in special.texts])  # some lack the flag "special"
            for token, stand_in in self._of.items():
                flags = {name: bool(getattr(special.added[token], name, False)) for name in ("lstrip", "rstrip", "single_word")}
                self._backend.add_tokens([tokenizers.AddedToken(stand_in, normalized=False, special=False, **flags)])
            self._originals = {self._backend.token_to_id(self._of[token]): number for token, number in self.ids.items()}

    def encode(self, text: Text) -> list[int] | None:
        """Return the token ids of a text, or None if stand-ins cannot be used.

        Stand-ins replace special tokens before encoding.  They cannot be used if the tokenizer has no backend in Rust, or if
        the text contains `_MARK`, the first character of each stand-in.
        """
        if self._backend is None or self._MARK in text.text:
            return None
        parts, done = [], 0
        for start, end in self._special.find(text.text, text.literal):
            parts += [text.text[done:start], self._of[text.text[start:end]]]
            done = end
        encoded = self._backend.encode("".join([*parts, text.text[done:]]), add_special_tokens=False).ids
        return [self._originals.get(token, token) for token in encoded]


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Group texts into blocks of about `CHARACTERS_AT_ONCE` characters."""
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= CHARACTERS_AT_ONCE:
            yield block
            block, size = [], 0
    if block:
        yield block


def _plain_backend(tokenizer: Tokenizer) -> tokenizers.Tokenizer | None:
    """Return the tokenizer's backend in Rust, or None if it must not be used directly.

    None is returned for a tokenizer implemented in Python, and for a tokenizer whose class overrides the methods that encode
    texts.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_plain = isinstance(backend, tokenizers.Tokenizer) and all(
        getattr(type(tokenizer), name, None) is getattr(PreTrainedTokenizerFast, name)
        for name in ("__call__", "_encode_plus", "encode")
    )
    return backend if is_plain else None


def _reset(backend: tokenizers.Tokenizer, split: bool) -> None:
    """Turn off truncation and padding, and set how `backend` encodes special tokens.

    If `split` is True, special tokens are encoded as plain text.  The options are set before each encoding, because any call of
    the tokenizer may change them.
    """
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != split:
        backend.encode_special_tokens = split
