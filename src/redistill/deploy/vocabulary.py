"""The vocabulary of a tokenizer in the form of GGUF.

llama.cpp has its own tokenizers. Byte-level BPE ("gpt2" in GGUF) needs the merges, and the name of the rule that divides a text
into words. SentencePiece ("llama" in GGUF) needs a score for each token. The rule is inferred from the settings in
tokenizer.json, not from the vocabulary.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from redistill.deploy.families import UnsupportedError
from redistill.interfaces import Tokenizer
from redistill.models.load import end_of_turn

if TYPE_CHECKING:
    from gguf import GGUFWriter

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS = ("words of GPT-2",)
_RULES: dict[tuple[tuple[str, ...], bool], str] = {
    (_WORDS, False): "gpt-2",
    (("single digits", *_WORDS), False): "smollm",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_TEKKEN,), True): "tekken",
}
"""llama.cpp's names of the rules that divide a text, by the steps of the rule and by the tokenizer's `ignore_merges`."""


class TokenType(IntEnum):
    """Types of tokens in GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        model: Kind of tokenizer in GGUF: "gpt2" or "llama".
        rule: llama.cpp's name of the rule that divides a text into words.
        tokens: Text of each token, by id.
        types: Type of each token.
        merges: Pairs of tokens that are merged, in order of priority.
        scores: Score of each token; the pair whose merged token has the highest score is merged first.  None for "gpt2".
        adds_space: Whether a space is put before a text; None for "gpt2".
    """

    model: str
    rule: str
    tokens: Sequence[str]
    types: Sequence[TokenType]
    merges: Sequence[tuple[str, str]]
    scores: Sequence[float] | None = None
    adds_space: bool | None = None


def vocabulary_of(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """Return the vocabulary of a tokenizer.

    Args:
        tokenizer: A tokenizer of transformers.
        rows: Number of rows of the embeddings.  Ids without a token get a placeholder of the type UNUSED.

    Raises:
        UnsupportedError: llama.cpp has no tokenizer of this kind.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(f"its tokenizer ({type(tokenizer).__name__}) has no tokenizer.json")
    described: dict[str, Any] = json.loads(backend.to_str())
    model, added = described["model"], {token["id"]: token for token in described["added_tokens"]}
    if model["type"] != "BPE":
        raise UnsupportedError(f"its tokenizer has the type {model['type']}, and only BPE is supported")
    vocabulary = {number: token for token, number in model["vocab"].items()}
    merges = [(first, second) for first, second in model["merges"]]
    is_sentencepiece = bool(model.get("byte_fallback"))
    unknown = getattr(tokenizer, "unk_token_id", None)
    unknown = None if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id) else unknown
    tokens, types = [], []
    for number in range(rows):
        token = added[number]["content"] if number in added else vocabulary.get(number)
        kind = _type(number, token, added, unknown, is_sentencepiece)
        # llama.cpp looks for these tokens in the text itself, in which no space is replaced by its sign.
        is_plain = is_sentencepiece and kind == TokenType.USER_DEFINED and added[number]["normalized"]
        tokens.append(f"[PAD{number}]" if token is None else token.replace("▁", " ") if is_plain else token)
        types.append(kind)
    if not is_sentencepiece:
        return Vocabulary(model="gpt2", rule=_rule(described), tokens=tokens, types=types, merges=merges)
    return Vocabulary(
        model="llama",
        rule="default",
        tokens=tokens,
        types=types,
        merges=merges,
        scores=_scores(tokens, types, merges),
        adds_space=_adds_space(described),
    )


def write_vocabulary(writer: "GGUFWriter", vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    """Write a vocabulary, its special tokens and its chat template as metadata.

    Args:
        writer: The writer of the GGUF file.
        vocabulary: The vocabulary of the tokenizer.
        tokenizer: Provides the special tokens and the chat template.
    """
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.rule)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types([int(kind) for kind in vocabulary.types])
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)
    if vocabulary.merges:
        # A space inside a token is written as its sign, since a space divides the two tokens.
        writer.add_token_merges([" ".join(part.replace(" ", "Ġ") for part in pair) for pair in vocabulary.merges])
    first, last = added_ends(tokenizer)
    writer.add_add_bos_token(first)
    writer.add_add_eos_token(last)
    special = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    special["unk"] = getattr(tokenizer, "unk_token_id", None)
    if (end := end_of_turn(tokenizer)) not in (None, tokenizer.eos_token_id):
        special["eot"] = end
    for name, number in special.items():
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def added_ends(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Return whether a tokenizer adds its begin token and its end token to a text."""
    ids = list(tokenizer("a")["input_ids"])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bos is not None and ids[:1] == [bos], eos is not None and len(ids) > 1 and ids[-1:] == [eos]


def _type(
    number: int, token: str | None, added: Mapping[int, Mapping[str, Any]], unknown: int | None, is_sentencepiece: bool
) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if is_sentencepiece and number == unknown:
        return TokenType.UNKNOWN
    if is_sentencepiece and _BYTE.fullmatch(token):
        return TokenType.BYTE
    if number in added:
        return TokenType.CONTROL if added[number]["special"] else TokenType.USER_DEFINED
    return TokenType.NORMAL


def _rule(described: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the rule that divides a text into words.

    `described` is a byte-level tokenizer as JSON.
    """
    normalizer = described["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":  # llama.cpp reads the text as it is, which is mostly NFC
        raise UnsupportedError(f"its tokenizer normalises texts with {normalizer['type']}, and llama.cpp does not")
    first = described["pre_tokenizer"] or {"type": "none"}
    steps = tuple(filter(None, map(_step, first.get("pretokenizers", [first]))))
    rule = _RULES.get((steps, bool(described["model"].get("ignore_merges"))))
    if rule is None:
        raise UnsupportedError("its tokenizer divides texts by a rule that matches no known rule of llama.cpp")
    return rule


def _step(step: Mapping[str, Any]) -> str:
    """Return a description of one step of a rule that divides texts.

    The result is "" for a step that does not divide a text.
    """
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": uses_words}:
            return _WORDS[0] if uses_words else ""
        case {"type": "Digits", "individual_digits": True}:
            return "single digits"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return "unknown"


def _adds_space(described: Mapping[str, Any]) -> bool:
    """Return whether a SentencePiece tokenizer puts a space before a text."""
    normalizer, words = described["normalizer"] or {}, described["pre_tokenizer"] or {}
    prepends = any(step["type"] == "Prepend" for step in normalizer.get("normalizers", [normalizer] if normalizer else []))
    return prepends or words.get("prepend_scheme", "never") != "never"


def _scores(tokens: Sequence[str], types: Sequence[TokenType], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Return the scores of a SentencePiece vocabulary.

    SentencePiece merges the pair whose merged token has the highest score. In a tokenizer.json, the first pair in the list of
    merges is merged first. The score of a token is therefore minus the index of its first merge.
    """
    first: dict[str, int] = {}
    for pair in merges:
        first.setdefault("".join(pair), len(first))
    lowest = {TokenType.NORMAL: -float(len(first)), TokenType.UNUSED: -10000.0}
    return [-float(first[token]) if token in first else lowest.get(kind, 0.0) for token, kind in zip(tokens, types)]
