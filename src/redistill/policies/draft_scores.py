"""Scores of the tokens of drafts, and the teacher's tokens, for SCRG.

SCRG is sequence correction and re-generation (MGSR, arXiv 2407.10068, Eq. 3).  It finds the token of a draft at which student
and teacher disagree most, and replaces this token by the teacher's token.  The score of a token measures the disagreement.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from redistill.contracts import TokenSequence
from redistill.policies.scorer import Scorer
from redistill.randomness import generator
from redistill.vocab_pass import NUMBERS_PER_DRAW, Statistic

Detection = Literal["reverse", "forward", "surprise", "first", "random"]
_STATISTICS: dict[Detection, tuple[Statistic, ...]] = {
    "reverse": ("reverse_kl",),
    "forward": ("forward_kl",),
    "surprise": ("teacher_logprob", "teacher_entropy"),
    "first": ("reverse_kl",),
    "random": ("reverse_kl",),  # only logged; computed so that this control costs as much as "reverse"
}

Scores = tuple[torch.Tensor, torch.Tensor]
"""For each token of a draft, its score and the teacher's token.  Both tensors are [T] for one draft, [B, T] for several."""


class ScoresDrafts(Protocol):
    """Interface of objects that score drafts, such as `DraftScores`."""

    def of(self, step: int, number: int, drafts: Sequence[TokenSequence]) -> Scores:
        """Return the scores of all tokens of the drafts, and the teacher's tokens.

        Both tensors have the shape [B, T].
        """


class DraftScores:
    """Computes scores of the tokens of drafts, and the teacher's tokens.

    A score measures the disagreement of student and teacher at a token.  Drafts may be generated in chunks of some tokens.
    Then `has_error` scores each chunk and stores the scores, and `of` returns the stored scores.

    Args:
        scorer: Computes statistics of both models.
        detection: Name of the score; `Revised` has the definitions.
        ask_token: Name of the statistic that contains the teacher's token.
        seed: The run's seed.
        threshold_nats: Score in nats above which `has_error` reports an error; None if drafts are not generated in chunks.
    """

    def __init__(
        self, scorer: Scorer, detection: Detection, ask_token: Statistic, seed: int, threshold_nats: float | None = None
    ) -> None:
        self._scorer, self._statistics, self._ask_token = scorer, _STATISTICS[detection], ask_token
        self._seed, self._threshold_nats = seed, threshold_nats
        self._chunks: dict[tuple[int, tuple[int, ...]], Scores] = {}  # drafts of step `self._step`, by sample and text so far
        self._step = -1

    def of(self, step: int, number: int, drafts: Sequence[TokenSequence]) -> Scores:
        """Return the scores of all tokens of the drafts, and the teacher's tokens.

        Both results are [B, T] tensors on the CPU.  Each model runs once on each draft, unless all drafts were scored in
        chunks.

        Args:
            step: Number of the update, from 0.
            number: Number of the round of revision, from 0.
            drafts: The drafts.
        """
        known = [self._chunks.get((draft.sample, draft.token_ids)) for draft in drafts] if number == 0 else []
        found = [scores for scores in known if scores is not None]
        if not drafts or len(found) < len(drafts):
            found = self._scored(step, number, drafts, [0] * len(drafts))
        score_BT, token_BT = (pad_sequence([*rows], batch_first=True) for rows in zip(*found, strict=True))
        return score_BT, token_BT

    def has_error(self, step: int, texts: Sequence[TokenSequence]) -> list[bool]:
        """Score the last chunk of each text; return whether each chunk has an error.

        An error is a token that differs from the teacher's token and whose score exceeds the threshold.

        Args:
            step: Number of the update, from 0.
            texts: The drafts so far, in which only the tokens of the last chunk are targets.
        """
        assert self._threshold_nats is not None, "has_error needs threshold_nats"
        if step != self._step:
            self._step, self._chunks = step, {}
        before = [self._chunks.get((text.sample, text.prompt_ids)) for text in texts]
        starts = [0 if scores is None else len(scores[0]) for scores in before]
        found = self._scored(step, 0, texts, starts)
        for text, earlier, (score_T, token_T) in zip(texts, before, found, strict=True):
            whole = (
                (score_T, token_T) if earlier is None else (torch.cat([earlier[0], score_T]), torch.cat([earlier[1], token_T]))
            )
            self._chunks[text.sample, text.token_ids] = whole
        return [
            bool(((score_T > self._threshold_nats) & (token_T != torch.tensor(text.response_ids))).any())
            for text, (score_T, token_T) in zip(texts, found, strict=True)
        ]

    def _scored(self, step: int, number: int, texts: Sequence[TokenSequence], starts: Sequence[int]) -> list[Scores]:
        """Return the scores of the targets of each text, and the teacher's tokens.

        `starts` has the number of response tokens before the targets of each text.  This number selects the random numbers,
        so that the result does not depend on how a draft is divided into chunks.
        """
        streams = [generator(self._seed, "teacher-token", step, text.sample, number) for text in texts]
        stops = [start + text.num_targets for start, text in zip(starts, texts, strict=True)]
        uniforms = [
            stream.random((stop, NUMBERS_PER_DRAW))[start:] for stream, start, stop in zip(streams, starts, stops, strict=True)
        ]
        rows = self._scorer.statistics(texts, (*self._statistics, self._ask_token), uniforms)
        if not texts:
            return []
        found = {name: torch.cat(each) for name, each in rows.items()}
        score_N = found[self._statistics[0]]
        if self._statistics[0] == "teacher_logprob":
            score_N = -score_N - found["teacher_entropy"]
        both_2N = torch.stack([score_N.double(), found[self._ask_token].double()]).cpu()  # one copy to the host
        parts = both_2N.split([text.num_targets for text in texts], dim=1)
        return [(score_T, token_T.long()) for score_T, token_T in parts]
