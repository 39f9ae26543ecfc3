"""Division of text into pieces that a BPE tokenizer encodes independently.

A text is cut before each space that follows a visible character.  In two families of tokenizers, no token extends over such a
cut:

- Byte-level BPE, such as GPT-2, Llama 3 and Qwen.  The pre-tokenizer divides a text into words with a regular expression, and a
  token lies within a word.  This module supports the expressions in `_PATTERNS`. With each of them, no word contains a cut, and
  the words after a cut do not depend on the text before it.
- BPE that encodes a space as "▁", such as Llama 2 and Gemma.  No merge joins "▁" to a character before it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer, normalizers

from redistill.data.special import SpecialTokens
from redistill.records import Json

_SPACE = "▁"
_CUT = re.compile(rf" (?<=[^\s{_SPACE}] )")  # a space after a visible character
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHER = r"[^\r\n\p{L}\p{N}]?"
_PATTERNS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    rf"{_WORDS}|{_OTHER}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",  # Llama 3
    rf"{_WORDS}|{_OTHER}\p{{L}}+|\p{{N}}|{_REST}",  # Qwen 2
    rf"{_OTHER}{_UPPER}*{_LOWER}+{_WORDS}?|{_OTHER}{_UPPER}+{_LOWER}*{_WORDS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # gpt-oss
)
_REPLACE: Json = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND: Json = {"type": "Prepend", "prepend": _SPACE}

Prefix = Literal["never", "first", "always", "every"]
"""Where a tokenizer inserts a space.

"first": at the start of a text that does not start with a space.  "always": as "first", and also after added tokens.  "every":
at the start of each text and after each added token, even before another space.
"""


@dataclass(frozen=True, kw_only=True)
class WordSplitter:
    """Divides texts into added tokens and pieces that can be encoded separately.

    A tokenizer finds added tokens, such as its special tokens, before it divides the rest of the text into words.

    Args:
        backend: Encodes the pieces.  It inserts no space, and encodes special tokens as plain text.
        prefix: Where the tokenizer inserts a space into a text before encoding; `split` inserts the same spaces.
        added: Maps the text of each added token to its id.
        special: Texts of the added tokens that are special.
        pattern: Matches any added token, the longest one first.
    """

    backend: Tokenizer
    prefix: Prefix
    added: Mapping[str, int]
    special: frozenset[str]
    pattern: re.Pattern[str]

    def split(self, text: str, split: bool) -> list[str | int]:
        """Divide a text into pieces and the ids of its added tokens, in order.

        If `split` is True, special tokens are treated as plain text.
        """
        found: list[str | int] = []
        done = 0
        for match in self.pattern.finditer(text):
            if not (split and match[0] in self.special):
                found += [*self._pieces(text[done : match.start()], done), self.added[match[0]]]
                done = match.end()
        return found + self._pieces(text[done:], done)

    def _pieces(self, part: str, start: int) -> list[str | int]:
        """Cut the text between two added tokens into pieces.

        `part` is this text, and `start` is its index in the whole text.  If the tokenizer inserts a space before `part`, the
        first piece begins with this space.
        """
        if not part:
            return []
        inserts = self.prefix == "always" or (self.prefix == "first" and start == 0)
        if self.prefix == "every" or (inserts and part[0] not in (" ", _SPACE)):
            part = f" {part}"
        first, *others = _CUT.split(part)
        return [first, *map(" ".__add__, others)]


def word_splitter(described: str, special: SpecialTokens) -> WordSplitter | None:
    """Create a splitter that divides texts as a tokenizer does.

    Args:
        described: The tokenizer as JSON, as in tokenizer.json.
        special: The special tokens of the tokenizer.

    Returns:
        The splitter. None if the tokenizer might not encode the pieces independently. For example, the tokenizer is not a BPE,
        its pre-tokenizer has an unknown regular expression, or an added token has the flag lstrip, rstrip or single_word.
    """
    parts: Mapping[str, Json] = json.loads(described)
    model, normalizer, before, added = (parts.get(name) for name in ("model", "normalizer", "pre_tokenizer", "added_tokens"))
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(added, list):
        return None
    if any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")):
        return None
    backend, prefix = Tokenizer.from_str(described), _prefix(model, normalizer, before)
    if prefix is not None:
        backend.normalizer, backend.pre_tokenizer = normalizers.Replace(" ", _SPACE), None
    elif not _is_byte_level(normalizer, before):
        return None
    tokens = [token for token in added if isinstance(token, dict)]
    if any(token[name] for token in tokens for name in ("single_word", "lstrip", "rstrip")):
        return None
    if len({token["normalized"] for token in tokens} | ({False} if normalizer else set())) > 1:
        return None  # tokens would be searched in the normalized text as well
    if {str(token["content"]) for token in tokens if token["special"]} != set(special.texts):
        return None
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    ids = {str(token["content"]): number for token in tokens if isinstance(number := token["id"], int)}
    pattern = re.compile("|".join(map(re.escape, sorted(ids, key=len, reverse=True))) or "(?!)")
    return WordSplitter(backend=backend, prefix=prefix or "never", added=ids, special=frozenset(special.texts), pattern=pattern)


def _is_byte_level(normalizer: Json, before: Json) -> bool:
    """Return whether a tokenizer is a byte-level BPE that this module supports.

    The pre-tokenizer must divide texts with regular expressions in `_PATTERNS`.

    `normalizer` and `before` are the normalizer and the pre-tokenizer of the tokenizer.
    """
    if normalizer not in (None, {"type": "NFC"}):
        return False
    steps = _members(before, "pretokenizers")
    return bool(steps) and all(map(_is_known, steps)) and steps[-1].get("type") == "ByteLevel"


def _members(step: Json, name: str) -> Sequence[Mapping[str, Json]]:
    """Return the steps of a normalizer or pre-tokenizer.

    If the type of `step` is "Sequence", its steps are under the key `name`; otherwise `step` is a single step.
    """
    inner = step.get(name) if isinstance(step, Mapping) and step.get("type") == "Sequence" else [step]
    return [member for member in inner if isinstance(member, Mapping)] if isinstance(inner, list) else []


def _is_known(step: Mapping[str, Json]) -> bool:
    """Return whether this module supports a step of a pre-tokenizer."""
    match step:
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return regex in _PATTERNS
        case {"type": "Digits"} | {"type": "ByteLevel", "add_prefix_space": False}:
            return True
    return False


def _prefix(model: Mapping[str, Json], normalizer: Json, before: Json) -> Prefix | None:
    """Return where a tokenizer inserts a space, if it encodes a space as "▁".

    The result is None for other tokenizers.

    `model`, `normalizer` and `before` are the model, the normalizer and the pre-tokenizer of the tokenizer.
    """
    merges = model.get("merges")
    if model.get("ignore_merges") or not isinstance(merges, list):
        return None
    if any(right.startswith(_SPACE) and not left.endswith(_SPACE) for left, right in merges):
        return None
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or _SPACE not in vocabulary:  # an unknown character could join others before it
        return None
    match list(_members(normalizer, "normalizers")), before:
        case [], {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never" | "first" | "always" as prefix}:
            return prefix
        case [first, last], None if (first, last) == (_PREPEND, _REPLACE):
            return "every"
        case [only], None | {"type": "Split", "pattern": {"String": " "}} if only == _REPLACE:
            return "never"
    return None
