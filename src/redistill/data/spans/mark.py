"""Addition of the spans of phrases to training sequences.

A target is a token that the student is trained to predict.  A span is the range of targets that belong to one phrase.  The
span loss compares teacher and student within each span.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from redistill.contracts import TokenSequence
from redistill.data.spans.align import TokenRange, token_spans
from redistill.data.spans.extract import SpanExtractor
from redistill.interfaces import Tokenizer
from redistill.randomness import generator


class SpanMarker:
    """Adds the spans of phrases to training sequences.

    The results for sequences of the data set are cached, because these sequences recur in every epoch.  A span is a half-open
    range [start, stop) of indices of targets: index 0 is the first target of the sequence.

    Args:
        extractor: Extracts phrases from text.
        tokenizer: Decodes the targets.
        special_ids: Token ids to leave out of the decoded text, such as the end token.
        random_seed: If not None, the spans of each sequence are moved to random positions (`moved_at_random`).  The positions
            depend on this seed, on the index of the training example, and on the position of the targets.
    """

    def __init__(
        self,
        extractor: SpanExtractor,
        tokenizer: Tokenizer,
        special_ids: Collection[int],
        random_seed: int | None = None,
    ) -> None:
        self._extractor, self._tokenizer, self._special_ids = extractor, tokenizer, special_ids
        self._random_seed = random_seed
        self._cached: dict[int, TokenSequence] = {}

    def __call__(self, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Return copies of the sequences, each with the spans of its phrases added.

        A span is a half-open range [start, stop) of target indices.  It lies within one group of consecutive targets, such as
        the answer of one assistant turn.
        """
        new = [s for s in sequences if not self._is_cached(s)]
        runs = [(number, start, ids) for number, s in enumerate(new) for start, ids in target_runs(s)]
        found = token_spans([ids for _, _, ids in runs], self._tokenizer, self._extractor, self._special_ids)
        spans: list[list[TokenRange]] = [[] for _ in new]
        for (number, start, ids), ranges in zip(runs, found, strict=True):
            if self._random_seed is not None:
                random = generator(self._random_seed, "spans", new[number].sample, start)
                ranges = moved_at_random(ranges, len(ids), random)
            spans[number] += [(start + first, start + stop) for first, stop in ranges]
        marked = {id(s): replace(s, spans=tuple(ranges)) for s, ranges in zip(new, spans, strict=True)}
        self._cached |= {s.sample: marked[id(s)] for s in new if s.origin == "dataset"}
        return [marked.get(id(s)) or self._cached[s.sample] for s in sequences]

    def _is_cached(self, sequence: TokenSequence) -> bool:
        cached = self._cached.get(sequence.sample) if sequence.origin == "dataset" else None
        return cached is not None and cached.token_ids == sequence.token_ids


def moved_at_random(spans: Sequence[TokenRange], num_tokens: int, random: np.random.Generator) -> tuple[TokenRange, ...]:
    """Return spans of the same lengths at random positions.

    Random spans are a control for the span loss: they show whether it matters that spans are phrases.  Spans that overlap are
    moved together and keep their relative positions, so nested spans remain nested.  Spans that did not overlap do not overlap
    afterwards.

    Args:
        spans: Half-open ranges of tokens.
        num_tokens: Number of tokens; all spans lie in [0, num_tokens).
        random: Generator of the random numbers.

    Returns:
        The moved spans, sorted.

    Example:
        >>> spans = moved_at_random([(0, 3), (1, 3), (4, 6)], 9, generator(10, "spans", 0))
        >>> sorted(stop - start for start, stop in spans)
        [2, 2, 3]
    """
    groups: list[list[TokenRange]] = []  # of overlapping spans
    for span in sorted(spans):
        if groups and span[0] < max(stop for _, stop in groups[-1]):
            groups[-1].append(span)
        else:
            groups.append([span])
    widths = [max(stop for _, stop in group) - group[0][0] for group in groups]
    free = num_tokens - sum(widths)
    gaps = np.diff(np.sort(random.integers(free + 1, size=len(groups))), prepend=0).tolist()
    moved: list[TokenRange] = []
    position = 0
    for gap, index in zip(gaps, random.permutation(len(groups)).tolist(), strict=True):
        offset = position + gap - groups[index][0][0]
        moved += [(start + offset, stop + offset) for start, stop in groups[index]]
        position += gap + widths[index]
    return tuple(sorted(moved))


def target_runs(sequence: TokenSequence) -> list[tuple[int, tuple[int, ...]]]:
    """Find the groups of consecutive targets in a sequence.

    A target is a token that the student is trained to predict.

    Returns:
        A pair for each group: the index of its first target among all targets of the sequence, and the token ids of its
        targets.

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
