"""Special tokens in the text of rows.

A chat template writes special tokens, such as the token that ends a turn.  The same characters in a message are plain text, not
a special token.  In a rendered conversation, this module finds the special tokens that come from messages and not from the
template.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

from redistill.data.forms import answer_texts, texts_of
from redistill.interfaces import Tokenizer
from redistill.records import Json, RawPrompt, Record

Range = tuple[int, int]
Message = Mapping[str, object]

_NAMES = frozenset({"role", "type", "name", "id", "tool_call_id"})
"""Keys of a message whose values are not content, but names and identifiers."""


class SpecialTokens:
    """The special tokens of a tokenizer, as text.

    Attributes:
        added: Maps the text of each special token to the tokenizer's object for this token.
        texts: Texts of the special tokens, the longest first.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokens: Mapping[int, object] = getattr(tokenizer, "added_tokens_decoder", {})
        named: Sequence[int] = getattr(tokenizer, "all_special_ids", ())  # a tokenizer implemented in Python may not flag these
        added = {str(token): token for number, token in tokens.items() if number in named or getattr(token, "special", False)}
        self.added: Mapping[str, object] = {text: token for text, token in added.items() if text}
        self.texts = tuple(sorted(self.added, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or "(?!)")
        self._longest = len(self.texts[0]) if self.texts else 0
        self._first, self._last = (_any_of(text[end] for text in self.texts) for end in (0, -1))
        self._joined = "\0".join(self.texts)

    def find(self, text: str, literal: Sequence[Range] = ()) -> list[Range]:
        """Return the character ranges of special tokens in `text`, from left to right.

        If two special tokens begin at the same index, only the longer one is found.  `literal` contains the ranges of special
        tokens that are plain text; special tokens that overlap one of these ranges are left out.
        """
        if not self._first.search(text):
            return []
        found = [match.span() for match in self._pattern.finditer(text)]
        return [(start, end) for start, end in found if not any(start < until and begin < end for begin, until in literal)]

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Count how often each special token occurs in the texts."""
        return Counter(text[start:end] for text in texts for start, end in self.find(text))

    def literal_ranges(self, text: str, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> list[Range]:
        """Find the special tokens in `text` that come from messages; return their ranges.

        A range is a pair [start, end) of character indices.  A special token is included even if only a part of it comes from a
        message.

        To find these tokens, the conversation is rendered again with changed messages. In the messages, an unused character is
        inserted before each character that may belong to a special token.

        Some templates search messages for a special token, such as "</think>", and render the changed conversation differently.
        The result then has no range of this token, so the token is encoded as a special token.

        Args:
            text: The rendered conversation.
            messages: The messages of the conversation.
            render: A function that renders messages with the chat template.
        """
        if not any(self._concerns(content) for content in _contents(messages)):
            return []
        found = self.find(text)
        tokens = sorted({text[start:end] for start, end in found})
        flags = _marked(text, messages, render, tokens)
        if flags is not None:
            return [(start, end) for start, end in found if any(flags[start:end])]
        literal: list[Range] = []
        for token in tokens:
            flags = _marked(text, messages, render, [token]) or _marked(text, messages, render, [token], edges=False)
            if flags is not None:
                literal += [(a, b) for a, b in found if text[a:b] == token and any(flags[a:b])]
        return sorted(literal)

    def _concerns(self, content: str) -> bool:
        """Return whether `content` contains a special token or may contain a part of one."""
        core = content.strip()
        if not core or not self.texts:
            return False
        is_edge = self._first.search(core[-self._longest :]) or self._last.search(core[: self._longest])
        return bool(is_edge) or core in self._joined or bool(self.find(content))


@dataclass
class SpecialTokenCounts:
    """Numbers of special tokens in the text of rows.

    Args:
        kept: Counts by special token in raw prompts (prompts that are used verbatim) and their answers. There, the text of a
            special token is encoded as a special token.
        as_text: Counts by special token in instructions, messages and their answers. There, the text of a special token is
            encoded as plain text.
        kept_rows: Number of rows that contain tokens counted in `kept`.
        as_text_rows: Number of rows that contain tokens counted in `as_text`.
    """

    kept: Counter[str] = field(default_factory=Counter)
    as_text: Counter[str] = field(default_factory=Counter)
    kept_rows: int = 0
    as_text_rows: int = 0

    def add(self, record: Record, answer: str | None, special: SpecialTokens, template: str) -> None:
        """Add the numbers of special tokens in a prompt and its answer to the counts.

        Tokens that are encoded as special tokens are counted in the field `kept`. Tokens that are encoded as plain text are
        counted in the field `as_text`.

        Args:
            record: The record whose prompt is searched.
            answer: The answer to train on; if None, only the prompt is searched.
            special: The special tokens of the tokenizer.
            template: "auto", "alpaca" or "chat". Special tokens in a `RawPrompt` are counted in `as_text` if `template` is
                "chat", and otherwise in `kept`.
        """
        answers = [] if answer is None else [answer, *answer_texts(record.answer)]
        found = special.count([*texts_of(record.prompt), *answers])
        if not found:
            return
        if isinstance(record.prompt, RawPrompt) and template != "chat":
            self.kept.update(found)
            self.kept_rows += 1
        else:
            self.as_text.update(found)
            self.as_text_rows += 1

    def as_json(self) -> dict[str, Json]:
        """Return the counts as JSON values, without counts that are zero."""
        found: dict[str, Json] = {}
        if self.kept_rows:
            found |= {"kept": dict(self.kept), "kept_rows": self.kept_rows}
        return found | ({"as_text": dict(self.as_text), "as_text_rows": self.as_text_rows} if self.as_text_rows else {})

    @classmethod
    def of(cls, found: Mapping[str, Json]) -> Self:
        """Create counts from the JSON values that `as_json` returned."""
        kept, as_text = (cast("dict[str, int]", found.get(name, {})) for name in ("kept", "as_text"))
        rows = (cast("int", found.get(name, 0)) for name in ("kept_rows", "as_text_rows"))
        return cls(Counter(kept), Counter(as_text), *rows)

    def described(self) -> Iterator[str]:
        """Yield lines for a terminal that describe the counts.

        The first line is about the field `kept`, the second about the field `as_text`. A line is left out if its field has no
        counts.
        """
        if self.kept_rows:
            yield f"special tokens in {_rows(self.kept_rows)} of raw text are encoded as special tokens: {_named(self.kept)}"
        if self.as_text_rows:
            yield f"special tokens in the text of {_rows(self.as_text_rows)} are encoded as plain text: {_named(self.as_text)}"


def _any_of(letters: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the letters.

    If `letters` is empty, the pattern matches nothing.
    """
    return re.compile("|".join(map(re.escape, sorted(set(letters)))) or "(?!)")


def _rows(count: int) -> str:
    return f"{count} {'row' if count == 1 else 'rows'}"


def _named(tokens: Counter[str]) -> str:
    """List the five most frequent tokens with their counts, as text.

    The text ends with the number of tokens that are not listed.
    """
    shown = ", ".join(f"{token} ({count})" for token, count in tokens.most_common(5))
    return shown + (f" and {len(tokens) - 5} others" if len(tokens) > 5 else "")


def _contents(value: object) -> Iterator[str]:
    """Yield all strings in messages, except the values of certain keys.

    `_NAMES` lists these keys, such as "role".
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in _NAMES:
                yield from _contents(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _contents(inner)


def _marked(
    text: str,
    messages: Sequence[Message],
    render: Callable[[Sequence[Message]], str],
    tokens: Sequence[str],
    *,
    edges: bool = True,
) -> list[bool] | None:
    """Find the characters of `text` that may belong to a special token of a message.

    These characters come from a message, and are part of one of `tokens`. If `edges` is True, the characters of an incomplete
    token at the start or end of a message are found too, since the template may write the rest of the token.

    To find the characters, an unused character is inserted before each of them in the messages, and the messages are rendered
    again.

    Returns:
        A list with one value for each character of `text`: True if the character was found. None if the template rejects the
        changed messages or renders them differently.
    """
    used = set(text).union(*map(set, _contents(messages)))
    marker = next(chr(code) for code in range(0xF0000, 0xFFFFD) if chr(code) not in used)

    def mark(value: object) -> object:
        if isinstance(value, str):
            risky = _risky(value, tokens, edges=edges)
            return "".join(marker + letter if index in risky else letter for index, letter in enumerate(value))
        if isinstance(value, Mapping):
            return {name: inner if name in _NAMES else mark(inner) for name, inner in value.items()}
        return [mark(inner) for inner in value] if isinstance(value, Sequence) else value

    try:
        rendered = render([{name: inner if name in _NAMES else mark(inner) for name, inner in m.items()} for m in messages])
    except ValueError:  # a template may reject the marker
        return None
    if rendered.replace(marker, "") != text:
        return None
    flags: list[bool] = []
    is_marked = False
    for letter in rendered:
        if letter != marker:
            flags.append(is_marked)
        is_marked = letter == marker
    return flags


def _risky(content: str, tokens: Sequence[str], *, edges: bool) -> set[int]:
    """Return the indices of the characters of `content` that may belong to a token.

    These are the characters of all occurrences of `tokens` in `content`. If `edges` is True, a part of a token at the start or
    end of `content` counts too. The text around `content` may contain the rest of this token.
    """
    start, end = len(content) - len(content.lstrip()), len(content.rstrip())
    core = content[start:end]
    found: set[int] = set()
    for token in tokens:
        at = content.find(token)
        while at >= 0:
            found.update(range(at, at + len(token)))
            at = content.find(token, at + 1)
        for length in range(1, len(token)) if edges else ():
            if core.endswith(token[:length]):
                found.update(range(end - length, end))
            if core.startswith(token[-length:]):
                found.update(range(start, start + length))
        if edges and core and core in token:
            found.update(range(start, end))
    return found
