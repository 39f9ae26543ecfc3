"""Phrases onto sequences: what the span loss needs to know of each response that is learnt from."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from redistill.contracts import TokenSequence
from redistill.data.spans.align import Decoder, TokenRange, token_spans
from redistill.data.spans.extract import SpanExtractor


class SpanMarker:
    """Adds spans to sequences; those of the data set are remembered, since they come again every epoch.

    Spans of both models are the same by construction: they are ranges over the same token ids.

    Args:
        extractor: Finds phrases in text.
        tokenizer: Decodes the targets.
        special_ids: Ids that are no text, such as the end token.
    """

    def __init__(self, extractor: SpanExtractor, tokenizer: Decoder, special_ids: Collection[int]) -> None:
        self._extractor, self._tokenizer, self._special_ids = extractor, tokenizer, special_ids
        self._remembered: dict[int, TokenSequence] = {}

    def __call__(self, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
        """The sequences with spans, in order; each targets run (an assistant turn) is a text of its own."""
        fresh = [s for s in sequences if not self._is_remembered(s)]
        runs = [(number, start, ids) for number, s in enumerate(fresh) for start, ids in target_runs(s)]
        found = token_spans([ids for _, _, ids in runs], self._tokenizer, self._extractor, self._special_ids)
        spans: list[list[TokenRange]] = [[] for _ in fresh]
        for (number, start, _), ranges in zip(runs, found, strict=True):
            spans[number] += [(start + first, start + behind) for first, behind in ranges]
        marked = {id(s): replace(s, spans=tuple(ranges)) for s, ranges in zip(fresh, spans, strict=True)}
        self._remembered |= {s.sample: marked[id(s)] for s in fresh if s.origin == "dataset"}
        return [marked.get(id(s)) or self._remembered[s.sample] for s in sequences]

    def _is_remembered(self, sequence: TokenSequence) -> bool:
        known = self._remembered.get(sequence.sample) if sequence.origin == "dataset" else None
        return known is not None and known.token_ids == sequence.token_ids


def target_runs(sequence: TokenSequence) -> list[tuple[int, tuple[int, ...]]]:
    """The sequence's uninterrupted runs of targets: the number of each one's first target, and its ids.

    Example:
        >>> s = TokenSequence(sample=0, token_ids=(5, 6, 7, 8), supervised=(False, True, False, True), origin="dataset")
        >>> target_runs(s)
        [(0, (6,)), (1, (8,))]
    """
    runs: list[tuple[int, tuple[int, ...]]] = []
    number = 0
    before = False
    for token, supervised in zip(sequence.token_ids, sequence.supervised, strict=True):
        if supervised:
            if before:
                start, ids = runs[-1]
                runs[-1] = (start, (*ids, token))
            else:
                runs.append((number, (token,)))
            number += 1
        before = supervised
    return runs
