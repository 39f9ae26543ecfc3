"""From character spans to token ranges, for any tokenizer, also for ids that a model wrote and no text was ever encoded to.

This module is handed a tokenizer and never makes one.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from redistill.data.spans.extract import CharSpan, SpanExtractor

Offset = tuple[int, int]
TokenRange = tuple[int, int]

REPLACEMENT = "\ufffd"  # what decoders write for bytes that are no character, or not one yet
# A character has at most 4 bytes.  Twice that many tokens without a clean end are bytes that will never be a character.
MAX_PENDING = 8
# Tokens before the next one that are decoded with it, for what a decoder does at the start of its input.
CONTEXT = 8


class Decoder(Protocol):
    """The one thing that is asked of a tokenizer."""

    def decode(self, token_ids: Any, *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...


def align(char_spans: Iterable[CharSpan], offsets: Sequence[Offset], text: str) -> tuple[TokenRange, ...]:
    """Token ranges of character spans.

    A token belongs to a span if any of its characters other than white space at its ends does.  Byte-level tokenizers count
    the space before a word into its first token, so that without the trimming "lazy dog" would lose its first token.

    Args:
        char_spans: Phrases of `text`; they may overlap.
        offsets: For each token, its characters [start, end) in `text`, in order; (0, 0) for special tokens.  Tokens that are
            bytes of one character may share its offset.
        text: What the offsets refer to.

    Returns:
        Half-open ranges (first, behind last) over the tokens, sorted, each once.  No range is empty or holds a special token:
        a span with one in its middle gives a range on either side.

    Example:
        >>> align([CharSpan(4, 12, "NP")], [(0, 3), (3, 8), (8, 12), (0, 0)], "The lazy dog")
        ((1, 3),)
    """
    visible = [(index, *_trim(offset, text)) for index, offset in enumerate(offsets)]
    visible = [(index, start, end) for index, start, end in visible if start < end]
    starts = [start for _, start, _ in visible]
    ends = [end for _, _, end in visible]
    specials = [index for index, offset in enumerate(offsets) if tuple(offset) == (0, 0)]
    ranges: set[TokenRange] = set()
    for span in char_spans:
        left, right = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if left < right:
            ranges.update(_around(specials, visible[left][0], visible[right - 1][0] + 1))
    return tuple(sorted(ranges))


def token_spans(
    responses: Sequence[Sequence[int]], tokenizer: Decoder, extractor: SpanExtractor, special_ids: Collection[int] = ()
) -> list[tuple[TokenRange, ...]]:
    """Token ranges of the phrases in each response.

    Args:
        responses: Token ids of each response, such as a model wrote them.
        tokenizer: Decodes them.
        extractor: Finds phrases in the decoded texts, all texts in one call.
        special_ids: Ids that are no text; no range holds one.
    """
    decoded = [offsets_from_ids(ids, tokenizer, special_ids) for ids in responses]
    phrases = extractor.extract([text for text, _ in decoded])
    return [align(spans, offsets, text) for spans, (text, offsets) in zip(phrases, decoded, strict=True)]


def offsets_from_ids(ids: Sequence[int], tokenizer: Decoder, special_ids: Collection[int] = ()) -> tuple[str, list[Offset]]:
    """The text of generated ids, and the characters of it that each id wrote.

    The text grows token by token, and each step decodes only a few tokens before the new one: linear in the number of ids,
    and right for tokens that are parts of a character (byte-level BPE, byte fallback), and for
    tokenizers that drop the space before the first word of what they decode (metaspace).

    Args:
        ids: Ids as a model wrote them.
        tokenizer: Anything with `decode`.
        special_ids: Ids to leave out of the text.

    Returns:
        The text - what `tokenizer.decode` makes of the ids that are not special, wherever their bytes are valid UTF-8 - and
        one offset per id: (0, 0) for special ids, the shared character for ids that are pieces of one, never decreasing.
    """
    special = frozenset(special_ids)
    kept = [index for index, token in enumerate(ids) if token not in special]
    text, written = _grow([ids[index] for index in kept], tokenizer)
    offsets = [(0, 0)] * len(ids)
    for index, offset in zip(kept, written, strict=True):
        offsets[index] = offset
    return text, offsets


def _grow(ids: list[int], tokenizer: Decoder) -> tuple[str, list[Offset]]:
    def decode(first: int, behind: int) -> str:
        return tokenizer.decode(ids[first:behind], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    pieces: list[str] = []
    offsets: list[Offset] = []
    window = clean = 0  # text up to token `clean` is settled; tokens from `window` give the context of the next
    before = ""  # decode(window, clean)
    base = settled = 0  # characters of the text up to `clean`, and up to the last whole character
    for position in range(1, len(ids) + 1):
        after = decode(window, position)
        if not after.startswith(before):  # invalid bytes changed what stood before them: begin anew behind it
            window, before = clean, ""
            after = decode(window, position)
        whole = after.rstrip(REPLACEMENT)
        start, settled = settled, max(settled, base + len(whole) - len(before))
        pending = whole != after
        offsets.append((start, settled + pending))  # a token that ends within a character reaches to that character's end
        if not pending or position - clean >= MAX_PENDING or position == len(ids):
            pieces.append(after[len(before) :])
            base = settled = base + len(pieces[-1])
            before = after
            if clean - window >= CONTEXT:
                window = clean
                before = decode(window, position)
            clean = position
    text = "".join(pieces)
    return text, [(start, min(end, len(text))) for start, end in offsets]


def _trim(offset: Offset, text: str) -> Offset:
    start, end = offset
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _around(specials: list[int], first: int, behind: int) -> Iterator[TokenRange]:
    """The parts of the range that lie between special tokens."""
    for special in specials[bisect_left(specials, first) : bisect_left(specials, behind)]:
        if first < special:
            yield first, special
        first = special + 1
    if first < behind:
        yield first, behind
