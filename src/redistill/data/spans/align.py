"""Conversion of character spans to token ranges.

The conversion works for any tokenizer. The token ids may be generated, so they may differ from the ids that the tokenizer
returns for the same text.  This module uses a tokenizer only to decode ids.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence

from redistill.data.spans.extract import CharSpan, SpanExtractor
from redistill.interfaces import Tokenizer

Offset = tuple[int, int]
TokenRange = tuple[int, int]

REPLACEMENT = "\ufffd"  # what decoders output for bytes that are not a complete character
# A character has at most 4 bytes.  If 8 tokens contain no complete character, their bytes are invalid.
MAX_PENDING = 8
# Number of preceding tokens that are decoded with the next one, because decoders treat the start of their input differently.
CONTEXT = 8


def align(char_spans: Iterable[CharSpan], offsets: Sequence[Offset], text: str) -> tuple[TokenRange, ...]:
    """Convert character spans to token ranges.

    A token belongs to a span if the span contains at least one character of the token. White space at both ends of a token does
    not count: many tokenizers include the space before a word in a token.

    Args:
        char_spans: Phrases of `text`; they may overlap.
        offsets: The characters [start, end) of each token in `text`, in order; (0, 0) for special tokens.  Tokens that are
            bytes of the same character may have the same offset.
        text: The text that the offsets refer to.

    Returns:
        Half-open token ranges [first, stop), sorted and unique. No range is empty or contains a special token. A span around a
        special token gives two ranges, one before the token and one after it.

    Example:
        >>> align([CharSpan(4, 12, "NP")], [(0, 3), (3, 8), (8, 12), (0, 0)], "The lazy dog")
        ((1, 3),)
    """
    trimmed = [(index, *_trim(offset, text)) for index, offset in enumerate(offsets)]
    visible = [(index, start, end) for index, start, end in trimmed if start < end]
    starts = [start for _, start, _ in visible]
    ends = [end for _, _, end in visible]
    specials = [index for index, offset in enumerate(offsets) if tuple(offset) == (0, 0)]
    ranges: set[TokenRange] = set()
    for span in char_spans:
        left, right = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if left < right:
            ranges.update(_without_specials(specials, visible[left][0], visible[right - 1][0] + 1))
    return tuple(sorted(ranges))


def token_spans(
    responses: Sequence[Sequence[int]], tokenizer: Tokenizer, extractor: SpanExtractor, special_ids: Collection[int] = ()
) -> list[tuple[TokenRange, ...]]:
    """Find the token ranges of the phrases in each response.

    Args:
        responses: Token ids of each response, as a model generated them.
        tokenizer: Decodes the ids.
        extractor: Extracts phrases from the decoded texts, in one call.
        special_ids: Token ids to leave out of the decoded texts; no range contains one of them.

    Returns:
        One tuple of half-open token ranges [first, stop) per response, sorted and unique, as `align` returns them.
    """
    decoded = [offsets_from_ids(ids, tokenizer, special_ids) for ids in responses]
    phrases = extractor.extract([text for text, _ in decoded])
    return [align(spans, offsets, text) for spans, (text, offsets) in zip(phrases, decoded, strict=True)]


def offsets_from_ids(ids: Sequence[int], tokenizer: Tokenizer, special_ids: Collection[int] = ()) -> tuple[str, list[Offset]]:
    """Decode generated ids, and locate the characters of each id in the text.

    Each step decodes the new token with a few tokens before it, so the cost is linear in the number of ids.

    A token may be a part of a character (byte-level BPE, byte fallback). The tokenizer may drop the space before the first word
    of a decoded text (metaspace). The offsets are correct in both cases.

    Args:
        ids: Token ids as a model generated them.
        tokenizer: Decodes the ids.
        special_ids: Token ids to leave out of the text.

    Returns:
        The text and one offset [start, end) per id. The offset of a special id is (0, 0). The offsets of other ids never
        decrease. Ids that are parts of one character all have the offset of that character. If the bytes of the non-special ids
        are valid UTF-8, the text equals the result of `tokenizer.decode` for these ids.
    """
    special = frozenset(special_ids)
    text, found = _decode_incrementally([token for token in ids if token not in special], tokenizer)
    offsets = iter(found)
    return text, [(0, 0) if token in special else next(offsets) for token in ids]


def token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Decode `ids`, and return the text of each token.

    The texts of all tokens, one after the other, are the decoded text with special tokens.  If several tokens are parts of one
    character, the first of them has the character, and the others have the text "".

    Args:
        ids: Token ids as a model generated them.
        tokenizer: Decodes the ids.
    """
    text, offsets = offsets_from_ids(ids, tokenizer)
    texts, covered = [], 0
    for start, end in offsets:
        texts.append(text[max(start, covered) : end])
        covered = max(covered, end)
    return texts


def _decode_incrementally(ids: list[int], tokenizer: Tokenizer) -> tuple[str, list[Offset]]:
    def decode(first: int, stop: int) -> str:
        return tokenizer.decode(ids[first:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    pieces: list[str] = []
    offsets: list[Offset] = []
    window = clean = 0  # the text up to token `clean` is final; tokens from `window` on are the context of the next token
    before = ""  # decode(window, clean)
    base = settled = 0  # number of characters up to token `clean`, and up to the last complete character
    for position in range(1, len(ids) + 1):
        after = decode(window, position)
        if not after.startswith(before):  # invalid bytes changed the text before them: restart the window at `clean`
            window, before = clean, ""
            after = decode(window, position)
        whole = after.rstrip(REPLACEMENT)
        start, settled = settled, max(settled, base + len(whole) - len(before))
        pending = whole != after
        offsets.append((start, settled + pending))  # a token that ends within a character extends to the end of that character
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


def _without_specials(specials: list[int], first: int, stop: int) -> Iterator[TokenRange]:
    """Yield the parts of the token range [first, stop) that contain no special token."""
    for special in specials[bisect_left(specials, first) : bisect_left(specials, stop)]:
        if first < special:
            yield first, special
        first = special + 1
    if first < stop:
        yield first, stop
