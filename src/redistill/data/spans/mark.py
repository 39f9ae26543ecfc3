"""Addition of the spans of phrases to training sequences.

A span is the range of the targets (tokens that the student is trained to predict) of one phrase.  The span loss compares
teacher and student within each span.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

from redistill.contracts import TokenSequence
from redistill.data.spans.align import TokenRange, token_spans
from redistill.data.spans.extract import SpanExtractor
from redistill.interfaces import Tokenizer


class SpanMarker:
    """Adds the spans of phrases to training sequences.

    The results for sequences of the data set are cached, because these sequences recur in every epoch.  A span is a half-open
    range [start, stop) of indices of targets: index 0 is the first target of the sequence.

    Args:
        extractor: Extracts phrases from text.
        tokenizer: Decodes the targets.
        special_ids: Token ids to leave out of the decoded text, such as the end token.
    """

    def __init__(self, extractor: SpanExtractor, tokenizer: Tokenizer, special_ids: Collection[int]) -> None:
        self._extractor, self._tokenizer, self._special_ids = extractor, tokenizer, special_ids
        self._cached: dict[int, TokenSequence] = {}

    def __call__(self, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Return copies of the sequences, in the same order, each with its spans added.

        A span is a half-open range [start, stop) of target indices.  It lies within one run of consecutive targets, such as the
        answer of one assistant turn.
        """
        new = [s for s in sequences if not self._is_cached(s)]
        runs = [(number, start, ids) for number, s in enumerate(new) for start, ids in target_runs(s)]
        found = token_spans([ids for _, _, ids in runs], self._tokenizer, self._extractor, self._special_ids)
        spans: list[list[TokenRange]] = [[] for _ in new]
        for (number, start, _), ranges in zip(runs, found, strict=True):
            spans[number] += [(start + first, start + stop) for first, stop in ranges]
        marked = {id(s): replace(s, spans=tuple(ranges)) for s, ranges in zip(new, spans, strict=True)}
        self._cached |= {s.sample: marked[id(s)] for s in new if s.origin == "dataset"}
        return [marked.get(id(s)) or self._cached[s.sample] for s in sequences]

    def _is_cached(self, sequence: TokenSequence) -> bool:
        cached = self._cached.get(sequence.sample) if sequence.origin == "dataset" else None
        return cached is not None and cached.token_ids == sequence.token_ids


def target_runs(sequence: TokenSequence) -> list[tuple[int, tuple[int, ...]]]:
    """Find the runs of consecutive targets in a sequence.

    A target is a token that the student is trained to predict.

    Returns:
        For each run, the index of its first target among all targets of the sequence, and its token ids.

    Example:
        >>> s = TokenSequence(sample=0, token_ids=(5, 6, 7, 8), supervised=(False, True, False, True), origin="dataset")
        >>> target_runs(s)
        [(0, (6,)), (1, (8,))]
    """
    runs: list[tuple[int, tuple[int, ...]]] = []
    number = 0
    for supervised, group in itertools.groupby(zip(sequence.supervised, sequence.token_ids), key=lambda pair: pair[0]):
        if supervised:
            runs.append((number, tuple(token for _, token in group)))
            number += len(runs[-1][1])
    return runs
