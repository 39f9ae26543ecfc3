"""Division of ASCII text into words, as byte-level BPE tokenizers divide it.

Such a tokenizer divides a text with the regular expression of its pre-tokenizer.  It encodes each of the resulting words
independently of the other words.

These regular expressions use Unicode classes, such as \\p{L}, that the module `re` does not support.  For ASCII text, each
class has an equivalent that `re` supports.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from redistill.data.special import SpecialTokens
from redistill.records import Json

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OTHER = r"[^\r\n\p{L}\p{N}]?"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS = (
    _GPT2,
    rf"{_WORDS}|{_OTHER}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}",  # Llama 3
    rf"{_WORDS}|{_OTHER}\p{{L}}+|\p{{N}}|{_REST}",  # Qwen 2
    rf"{_OTHER}{_UPPER}*{_LOWER}+{_WORDS}?|{_OTHER}{_UPPER}+{_LOWER}*{_WORDS}?|\p{{N}}{{1,3}}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # gpt-oss
)
_ASCII = (
    (_UPPER, "[A-Z]"),
    (_LOWER, "[a-z]"),
    (r"\p{L}\p{N}]", "A-Za-z0-9]"),
    (r"\p{L}", "[A-Za-z]"),
    (r"\p{N}", "[0-9]"),
)


def _in_ascii(pattern: str) -> re.Pattern[str]:
    for unicode, ascii_class in _ASCII:
        pattern = pattern.replace(unicode, ascii_class)
    return re.compile(pattern, re.ASCII)


_KNOWN = {pattern: _in_ascii(pattern) for pattern in _PATTERNS}
"""Maps the pattern of a pre-tokenizer to its equivalent for ASCII.

`encoding` depends on two properties of each pattern.  First, if the pattern is applied to the text of one of its matches, the
result is one match: this whole text.  Second, a match ends at every position between a letter and a colon or line break.
"""
_DIGITS = {True: re.compile(r"[0-9]|[^0-9]+"), False: re.compile(r"[0-9]+|[^0-9]+")}


@dataclass(frozen=True)
class WordSplitter:
    """Divides texts into words and added tokens, as a tokenizer does.

    An added token is a text, such as a special token, that a tokenizer finds before it divides the rest of the text into words.

    Args:
        steps: Patterns of the pre-tokenizers.  The first pattern divides a text, and each further pattern divides the resulting
            words.
        added: Maps the text of each added token to True if the token is special, else to False.
        pattern: Matches any added token.  If several added tokens begin at the same index, it matches the longest of them.
    """

    steps: tuple[re.Pattern[str], ...]
    added: Mapping[str, bool]
    pattern: re.Pattern[str]

    def parts(self, text: str, split: bool) -> list[str]:
        """Divide a text into its added tokens and the texts between them, in order.

        If `split` is True, special tokens are treated as plain text.
        """
        parts, done = [], 0
        for match in self.pattern.finditer(text):
            if split and self.added[match[0]]:
                continue
            if match.start() > done:
                parts.append(text[done : match.start()])
            parts.append(match[0])
            done = match.end()
        return [*parts, text[done:]] if done < len(text) else parts

    def split(self, text: str) -> list[str]:
        """Divide an ASCII text into words; a text that is an added token is one word."""
        if text in self.added:
            return [text]
        words = [text]
        for step in self.steps:
            words = step.findall(text) if len(words) == 1 else [found for word in words for found in step.findall(word)]
        return words


def word_splitter(described: str, special: SpecialTokens) -> WordSplitter | None:
    """Create a splitter that divides texts as a tokenizer does.

    Args:
        described: The tokenizer as JSON, as in tokenizer.json.
        special: The special tokens of the tokenizer.

    Returns:
        The splitter, or None if it would not divide every text as the tokenizer does.  None is returned if the tokenizer is not
        byte-level BPE, uses dropout or a normalizer other than NFC, or has an unknown pattern.  None is also returned for
        certain added tokens, such as those with one of the flags lstrip, rstrip and single_word.
    """
    parts: Mapping[str, Json] = json.loads(described)
    model, normalizer, before, added = (parts.get(name) for name in ("model", "normalizer", "pre_tokenizer", "added_tokens"))
    if not (isinstance(model, dict) and model.get("type") == "BPE" and model.get("dropout") is None):
        return None
    if normalizer not in (None, {"type": "NFC"}) or not isinstance(before, dict) or not isinstance(added, list):
        return None
    found = before.get("pretokenizers") if before.get("type") == "Sequence" else [before]
    steps = found if isinstance(found, list) else []
    patterns = [_pattern(step) for step in steps if isinstance(step, dict)]
    is_byte_level = bool(steps) and isinstance(steps[-1], dict) and steps[-1].get("type") == "ByteLevel"
    if not is_byte_level or any(pattern is None for pattern in patterns):
        return None
    tokens = [token for token in added if isinstance(token, dict)]
    flags = [{bool(token[name]) for token in tokens} for name in ("single_word", "lstrip", "rstrip")]
    texts = {str(token["content"]): bool(token["special"]) for token in tokens}
    if any(True in found for found in flags) or len({token["normalized"] for token in tokens}) > 1:
        return None
    if {text for text, is_special in texts.items() if is_special} != set(special.texts) or any(map(_is_cut, texts)):
        return None
    longest = "|".join(map(re.escape, sorted(texts, key=len, reverse=True)))
    return WordSplitter(tuple(p for p in patterns if p and p.pattern), texts, re.compile(longest or "(?!)"))


def _is_cut(token: str) -> bool:
    """Return whether an added token contains a position at which `encoding` may cut a text.

    This is a position between an ASCII letter and a colon or line break.
    """
    return re.search(r"[A-Za-z][:\n]", token) is not None


def _pattern(step: Mapping[str, Json]) -> re.Pattern[str] | None:
    """Return the pattern that a pre-tokenizer divides text with, or None if it is unknown.

    An empty pattern stands for a pre-tokenizer that does not divide text.
    """
    match step:
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return _KNOWN.get(regex)
        case {"type": "Digits", "individual_digits": bool(alone)}:
            return _DIGITS[alone]
        case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
            return _KNOWN[_GPT2] if rest.get("use_regex", True) else re.compile("")
    return None
