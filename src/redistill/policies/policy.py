"""A policy as the loop sees it: gold data and a source of sampled answers, joined into draws."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from redistill.contracts import Draw, DrawItem, Origin, TokenSequence, items_of
from redistill.policies.order import GoldBatches, Shuffled
from redistill.policies.source import Source, Wrapping

# The teacher's text is data like any other.
REWRITTEN: frozenset[Origin] = frozenset({"student", "mixture", "revised", "replay"})


class Policy(Wrapping):
    """Gold data and a source (contracts.SequencePolicy).

    Args:
        mark_spans: Adds spans to sequences that have none, or None where no term needs them.
        corpus: Blocks of text for the pre-training term, or None where it is left out.
        rewrite: Changes generated text, roll-outs excepted, before it is learned from; None leaves it as it is.
        drawing: Entered while a draw is made; the models' weights stay as they are inside.
    """

    def __init__(
        self,
        gold: GoldBatches,
        source: Source,
        mark_spans: Callable[[Sequence[TokenSequence]], list[TokenSequence]] | None = None,
        *,
        corpus: Shuffled[TokenSequence] | None = None,
        rewrite: Callable[[TokenSequence], TokenSequence] | None = None,
        drawing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._gold, self._source, self._mark_spans = gold, source, mark_spans
        self._corpus, self._rewrite, self._drawing = corpus, rewrite, drawing

    def draw(self, step: int) -> Draw:
        items = self._gold.items(step)
        with self._drawing():
            answers = self._source.sequences(step, items)
        # A source hands a gold answer through at its item's place: it is then read once, for all terms.
        is_gold = [place < len(items) and answer.origin == "dataset" for place, answer in enumerate(answers)]
        if self._rewrite is not None:
            answers = [self._rewrite(s) if s.origin in REWRITTEN and s.rollout is None else s for s in answers]
        if self._mark_spans is not None:
            answers = self._mark_spans(answers)
        drawn = [
            DrawItem(answer, frozenset({"sft", "distillation"} if both else {"distillation"}))
            for answer, both in zip(answers, is_gold, strict=True)
        ]
        handed_through = {place for place, both in enumerate(is_gold) if both}
        gold = items_of((item.sequence for place, item in enumerate(items) if place not in handed_through), "sft")
        corpus = () if self._corpus is None else tuple(self._corpus.items(step))
        return Draw(items=(*drawn, *gold), corpus=corpus)
