"""The sequences of an update: gold answers, and the answers of a policy."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from redistill.contracts import Draw, DrawItem, Origin, TokenSequence, items_of
from redistill.errors import ConfigError
from redistill.policies.order import GoldBatches, Shuffled
from redistill.policies.source import Source, Wrapping

# Origins of the text that `rewrite` changes.  "teacher" is not among them, since the reference code treats the teacher's text
# as data.
REWRITTEN: frozenset[Origin] = frozenset({"student", "mixture", "revised", "replay"})


class Policy(Wrapping):
    """Combines gold answers with the answers of a policy in each update.

    The class implements `contracts.SequencePolicy`.

    Args:
        gold: The training examples with their gold answers (the answers in the data set), in the order of training.
        source: Returns an answer for each prompt of a step.  The method `bind` of a policy creates the source, such as
            `Fixed().bind(tools)`.
        mark_spans: Function that receives sequences without spans, and returns copies with spans; None if no term of the
            objective uses spans.
        corpus: Blocks of text for the pre-training term of the objective; None without this term.
        rewrite: Function that receives a generated sequence, and returns the sequence to train on.  It is called for all
            text that the student generated, alone or with the teacher.  The only exceptions are roll-outs, which have
            values for the policy gradient.  If None, no sequence is changed.
        drawing: Function that returns the context manager inside which the source is called.  The weights of the models do
            not change inside this context.

    Example:
        >>> from redistill.policies import Fixed
        >>> from redistill.testing.fixture import make_fixture  # two random models of a few thousand parameters
        >>> tools = make_fixture().tools
        >>> draw = Policy(tools.gold, Fixed().bind(tools)).draw(step=0)
        >>> sorted(draw.items[0].roles)  # a gold answer that is also the sampled answer
        ['distillation', 'sft']
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
        """Return this process's sequences of update `step`, counted from 0.

        Raises:
            ConfigError: the policy that generates the answers returned fewer sequences than prompts.
        """
        items = self._gold.items(step)
        with self._drawing():
            answers = self._source.sequences(step, items)
        if len(answers) < len(items):
            raise ConfigError(
                f"policy: returned {len(answers)} sequences for {len(items)} prompts; must return at least one per prompt"
            )
        # A source may return the gold answer of an item at the item's index.  One forward pass then serves all terms.
        is_gold = [index < len(items) and answer.origin == "dataset" for index, answer in enumerate(answers)]
        if self._rewrite is not None:
            answers = [self._rewrite(s) if s.origin in REWRITTEN and s.rollout is None else s for s in answers]
        if self._mark_spans is not None:
            answers = self._mark_spans(answers)
        drawn = [
            DrawItem(answer, frozenset({"sft", "distillation"} if both else {"distillation"}))
            for answer, both in zip(answers, is_gold, strict=True)
        ]
        gold = items_of((item.gold for item, both in zip(items, is_gold) if item.gold is not None and not both), "sft")
        corpus = () if self._corpus is None else tuple(self._corpus.items(step))
        return Draw(items=(*drawn, *gold), corpus=corpus)
