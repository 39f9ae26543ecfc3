"""SCRG around a source of student text: generate, score, locate the error, correct it, continue (paper section 4.1).

A round runs both models once on the drafts, applies the formulas of redistill.policies.correction, and generates the tails.
Gold sequences that a source returns are never revised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

import torch

from redistill.contracts import GenerationRequest, Needs, TokenSequence
from redistill.errors import ConfigError
from redistill.policies.correction import Correction, correct, locate_error
from redistill.policies.generated import StudentGenerated
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Revision, Source, Wrapping, WrappingNode
from redistill.randomness import generator
from redistill.tensors import pad
from redistill.vocab_pass import NUMBERS_PER_DRAW, Statistic

if TYPE_CHECKING:
    from redistill.policies import PolicyConfig


Detection = Literal["reverse", "forward", "surprise", "random"]
_STATISTICS: dict[Detection, tuple[Statistic, ...]] = {
    "reverse": ("reverse_kl",),
    "forward": ("forward_kl",),
    "surprise": ("teacher_logprob", "teacher_entropy"),
    "random": ("reverse_kl",),  # logged; and the control then has the cost of "reverse"
}


@dataclass(frozen=True, kw_only=True)
class Revised(WrappingNode):
    """Student text in which the teacher replaces the error token, and the student regenerates what follows.

    Source: the paper's Eq. 3 and 4; docs/methods/mgsr.md lists their interpretations.

    Args:
        source: Generates the drafts.
        teacher_token: "sample" samples the teacher's token from its distribution (the paper's y ~ p), "argmax" takes the mode.
        detection: "reverse" scores a position by KL(q || p), student first as in Eq. 3; "forward" by KL(p || q); "surprise" by
            -log p(y) - H(p), the excess surprisal of the student's token y; "random", a control, samples the position.
        rounds: Number of revisions of a sequence, >= 1; the paper's default is 1.
        in_order: Whether a later round searches only from the previous error on.
        mode: "replace" returns the revised sequence instead of the draft; "append" returns both.

    Raises:
        ConfigError: rounds below 1, or a source that generates no student text.
    """

    source: "PolicyConfig" = field(default_factory=StudentGenerated)
    teacher_token: Literal["sample", "argmax"] = "sample"
    detection: Detection = "reverse"
    rounds: int = 1
    in_order: bool = False
    mode: Literal["replace", "append"] = "replace"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds = {self.rounds}: must be >= 1; remove `revised` to train on unrevised text")
        if self.source.sampling is None:
            raise ConfigError(
                f"revised.source = {type(self.source).__name__}: generates no student text; use student_generated, or mixed "
                "around revised"
            )

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (
            cls(),
            cls(teacher_token="argmax", detection="forward", rounds=2),
            cls(detection="surprise", rounds=3, in_order=True),
            cls(detection="random", mode="append"),
        )

    @property
    def needs(self) -> Needs:
        return self.source.needs | Needs(teacher=True, statistics=True)

    def bind(self, tools: PolicyTools) -> "RevisedSource":
        return RevisedSource(self, self.source.bind(tools), tools)


def revises(node: object) -> bool:
    """Whether a policy, or one that it wraps, is `Revised`: a prefix memory then saves repeated forward passes on drafts."""
    return isinstance(node, Revised) or (hasattr(node, "source") and revises(node.source))


@dataclass(frozen=True)
class _DraftScores:
    """Per draft, at every response position: the detection score and the teacher's token."""

    scores: list[list[float]]
    teacher_tokens: list[list[int]]


class RevisedSource(Wrapping):
    def __init__(self, settings: Revised, source: Source, tools: PolicyTools) -> None:
        assert tools.scorer is not None, "checked by `needs` when the recipe was read"
        self._settings, self._source, self._tools, self._scorer = settings, source, tools, tools.scorer

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        sequences = list(self._source.sequences(step, items))
        indices = [index for index, sequence in enumerate(sequences) if sequence.origin in {"student", "mixture", "revised"}]
        drafts = [sequences[index] for index in indices]
        revised = self._all_rounds(step, drafts) if drafts else []
        if self._settings.mode == "append":
            return sequences + [after for before, after in zip(drafts, revised, strict=True) if after is not before]
        for index, sequence in zip(indices, revised, strict=True):
            sequences[index] = sequence
        return sequences

    def _all_rounds(self, step: int, drafts: list[TokenSequence]) -> list[TokenSequence]:
        starts = [0] * len(drafts)
        for number in range(self._settings.rounds):
            drafts, errors = self._revise(step, number, drafts, starts)
            if self._settings.in_order:
                starts = [start if error < 0 else error for start, error in zip(starts, errors, strict=True)]
        return drafts

    def _revise(
        self, step: int, number: int, drafts: list[TokenSequence], starts: list[int]
    ) -> tuple[list[TokenSequence], list[int]]:
        """One round: the revised drafts and the positions of their errors; a draft without an error is unchanged, with -1."""
        scored = self._score(step, number, drafts)
        errors = self._locate(step, number, drafts, scored, starts)
        corrections = [
            correct(
                draft.response_ids,
                error,
                tokens[error],
                budget=self._tools.response_tokens,
                eos_ids=self._tools.end_ids,
            )
            for draft, error, tokens in zip(drafts, errors, scored.teacher_tokens, strict=True)
        ]
        tails = self._tails(step, number, drafts, corrections)
        revised = [
            _assemble(draft, correction.prefix_ids + tail) if correction.changed else draft
            for draft, correction, tail in zip(drafts, corrections, tails, strict=True)
        ]
        for draft, sequence, error, scores in zip(drafts, revised, errors, scored.scores, strict=True):
            if sequence is not draft:
                self._tools.on_revision(Revision(step, draft.sample, error, scores[error], draft, sequence))
        return revised, errors

    def _locate(
        self, step: int, number: int, drafts: list[TokenSequence], scored: _DraftScores, starts: list[int]
    ) -> list[int]:
        """The position of each draft's error, at its start or later; -1 without one."""
        scores = scored.scores
        if self._settings.detection == "random":
            scores = [
                generator(self._tools.seed, "error", step, draft.sample, number).random(draft.num_targets).tolist()
                for draft in drafts
            ]
        student_BT, valid_BT = pad([draft.response_ids for draft in drafts], 0)
        teacher_BT, _ = pad(scored.teacher_tokens, 0)
        is_searched_BT = torch.arange(student_BT.shape[1]) >= torch.tensor(starts)[:, None]
        return locate_error(_pad_float(scores), student_BT, teacher_BT, valid_BT.bool() & is_searched_BT).tolist()

    def _score(self, step: int, number: int, drafts: list[TokenSequence]) -> _DraftScores:
        """Scores and teacher tokens, from one forward pass of each model over every draft."""
        settings = self._settings
        statistics = _STATISTICS[settings.detection]
        ask_token: Statistic = "teacher_sample" if settings.teacher_token == "sample" else "teacher_argmax"
        uniforms = [
            generator(self._tools.seed, "teacher-token", step, draft.sample, number).random(
                (draft.num_targets, NUMBERS_PER_DRAW)
            )
            for draft in drafts
        ]
        found = self._scorer.statistics(drafts, (*statistics, ask_token), uniforms)
        scores = found[statistics[0]]
        if settings.detection == "surprise":
            pairs = zip(found["teacher_logprob"], found["teacher_entropy"], strict=True)
            scores = [-logprob_N - entropy_N for logprob_N, entropy_N in pairs]
        return _DraftScores([rows.tolist() for rows in scores], [rows.tolist() for rows in found[ask_token]])

    def _tails(
        self, step: int, number: int, drafts: list[TokenSequence], corrections: list[Correction]
    ) -> list[tuple[int, ...]]:
        """The student's continuation of each corrected prefix; empty where the response ends at the prefix."""
        unfinished = [index for index, correction in enumerate(corrections) if correction.tail_budget > 0]
        tails: list[tuple[int, ...]] = [()] * len(drafts)
        requests = [
            GenerationRequest(
                prompt_ids=drafts[index].prompt_ids + corrections[index].prefix_ids,
                max_new_tokens=corrections[index].tail_budget,
                seed=self._tools.seed,
                stream=("tail", step, drafts[index].sample, number),
            )
            for index in unfinished
        ]
        sampling = self._settings.sampling
        assert sampling is not None
        if requests:
            for index, generation in zip(unfinished, self._tools.engine.generate(requests, sampling), strict=True):
                tails[index] = generation.token_ids
        return tails


def _assemble(draft: TokenSequence, response_ids: tuple[int, ...]) -> TokenSequence:
    prompt_ids = draft.prompt_ids
    return replace(
        draft,
        token_ids=prompt_ids + response_ids,
        supervised=(False,) * len(prompt_ids) + (True,) * len(response_ids),
        origin="revised",
        spans=(),
        rollout=None,
    )


def _pad_float(rows: list[list[float]]) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64)
