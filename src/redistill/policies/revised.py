"""SCRG (sequence correction and re-generation) for a source of student text.

The method is described in section 4.1 of MGSR (arXiv 2407.10068).  The source generates drafts.  A round of revision has
three parts.  Each model scores the drafts in one forward pass.  The error token of a draft, at which the models disagree
most, is replaced by the teacher's token (redistill.policies.correction).  Then the student generates the tail: a
continuation of the corrected prefix.  Gold answers that the source returns are not revised.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import torch
from torch.nn.utils.rnn import pad_sequence

from redistill.contracts import (
    MAX_WEIGHT,
    EngineCapabilities,
    Generation,
    GenerationRequest,
    Needs,
    Sampling,
    StateValue,
    TokenSequence,
)
from redistill.errors import ConfigError, check_field
from redistill.policies.chunked import ChunkedEngine
from redistill.policies.correction import Correction, correct, is_finished, locate_error
from redistill.policies.draft_scores import Detection, DraftScores, ScoresDrafts
from redistill.policies.generated import StudentGenerated, answered
from redistill.policies.order import GoldItem
from redistill.policies.source import PolicyTools, Revision, Source, Wrapping, WrappingNode, check_student_text, replaced
from redistill.randomness import generator
from redistill.records import Json
from redistill.tensors import pad
from redistill.vocab_pass import NUCLEUS, Statistic

TeacherToken = Literal["sample", "nucleus", "argmax"]
_ASKED: dict[TeacherToken, tuple[Statistic, Sampling]] = {
    "sample": ("teacher_sample", Sampling()),
    "nucleus": ("teacher_nucleus_sample", Sampling(top_p=NUCLEUS)),
    "argmax": ("teacher_argmax", Sampling(temperature=0.0)),
}
"""For each value of `teacher_token`: how the token at the error is chosen, and how the teacher generates further tokens."""
USUAL_CHUNK = 16
"""Default size in tokens of the chunks in which drafts are generated for the detection "first"."""
_CHUNKS_NEED = "mode replace and source student_generated"
_COUNTS = "revision_counts"  # key of a checkpoint's state


@dataclass(frozen=True, kw_only=True)
class Revised(WrappingNode):
    r"""Student text in which the token of largest disagreement is replaced.

    This token (the error token) is replaced by the teacher's token.  The student then generates all tokens after it again.

    Source: MGSR (arXiv 2407.10068), Eq. 3 and 4, where the method is called SCRG (sequence correction and re-generation).
    docs/methods/mgsr.md lists the interpretations of these equations.

    .. math:: j = \arg\max_{i} \mathrm{KL}(q_i \,\|\, p_i) \;\text{ over }\; y_i^s \ne y_i^t, \quad
        y = (y_{<j}^s,\; y_j^t,\; y_{>j}), \quad y_{>j} \sim q(\cdot \mid x, y_{\le j})

    x is the prompt, y^s the student's draft and y the revised text.  q_i and p_i are the distributions of student and teacher
    that predict token i, and y_i^t is the teacher's token.  j is the position of the error token.

    Args:
        source: Generates the drafts.
        teacher_token: "sample" samples the teacher's token from its distribution (y ~ p in the paper); "nucleus" samples it
            from the most probable classes that have 0.9 of the mass; "argmax" uses its most probable token.
        teacher_tokens: Number of tokens that the teacher generates from the error token on, >= 1, before the student
            continues; 1 is the paper's method.  With "all" the teacher generates the whole rest of the response.
        detection: The score that measures the disagreement.  The error token has the largest score among the positions
            where the teacher's token differs from the student's.  "reverse" is KL(q || p), with the student first as in Eq.
            3, and "forward" is KL(p || q).  "surprise" is -log p(y) - H(p), where y is the student's token and H(p) the
            entropy of p. "first" selects the first position at which KL(q || p) exceeds `threshold_nats`, because the first
            error may cause later disagreement.  If there is no such position, the draft is unchanged.  "random" is a
            control with random scores.
        threshold_nats: Threshold of KL(q || p) for the detection "first", > 0; None for other detections.
        chunk_tokens: Size of chunks in tokens, >= 1, for the detection "first".  Drafts are generated chunk by chunk.  Both
            models score each chunk, and a draft is not continued after the chunk that contains its error.  Up to rounding,
            the revised text is the same as without chunks.  With "all", each draft is generated completely before it is
            scored.  None selects 16 if detection, mode and source allow chunks, and "all" otherwise.  If the engine does
            not store the states of prefixes, drafts are always generated completely.
        rounds: Number of revisions of a sequence, >= 1; the paper's default is 1.
        in_order: Whether a later round can replace only tokens from the previous error token on.
        mode: "replace" returns the revised sequence instead of the draft; "append" returns both.
        error_weight: Weight of the error token in the divergence term, > 0; 1 is the paper's method.  The divergence at a
            position does not depend on the token at this position, because it compares distributions over all classes.
            With the weight 1, a revision therefore changes only the divergence at the tokens after the error.  With several
            rounds, the error token of each round has this weight, unless a later round replaces it or a token before it.

    Raises:
        ConfigError: a value is out of range; threshold_nats is missing, or set for a detection without a threshold;
            chunk_tokens is combined with a detection, mode or source that does not allow chunks; or the source generates no
            student text.

    Example:
        >>> Revised(rounds=2).needs.statistics
        True
        >>> Revised(rounds=0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: rounds = 0: must be >= 1; remove `revised` to train on unrevised text

    See also: correction.locate_error, correction.correct.
    """

    teacher_token: TeacherToken = "sample"
    teacher_tokens: int | Literal["all"] = 1
    detection: Detection = "reverse"
    threshold_nats: float | None = None
    chunk_tokens: int | Literal["all"] | None = None
    rounds: int = 1
    in_order: bool = False
    mode: Literal["replace", "append"] = "replace"
    error_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds = {self.rounds}: must be >= 1; remove `revised` to train on unrevised text")
        if self.teacher_tokens != "all" and self.teacher_tokens < 1:
            raise ConfigError(f"teacher_tokens = {self.teacher_tokens}: must be >= 1, or all; the paper uses 1")
        if (self.detection == "first") != (self.threshold_nats is not None):
            raise ConfigError(
                f"threshold_nats = {self.threshold_nats}: detection {self.detection} "
                + ("needs a threshold; 1 is usual" if self.detection == "first" else "uses no threshold; leave it out")
            )
        if self.threshold_nats is not None and not 0 < self.threshold_nats < math.inf:
            raise ConfigError(f"threshold_nats = {self.threshold_nats}: must be > 0 and finite; 1 is usual")
        if isinstance(self.chunk_tokens, int):
            check_field(self, "chunk_tokens", self.chunk_tokens >= 1, f"must be >= 1, or all; {USUAL_CHUNK} is usual")
            remedy = "set these, or leave chunk_tokens out"
            check_field(
                self,
                "chunk_tokens",
                self._allows_chunks,
                f"needs detection first, {_CHUNKS_NEED}; {remedy}",
            )
        if not 0 < self.error_weight <= MAX_WEIGHT:
            raise ConfigError(f"error_weight = {self.error_weight}: must lie in (0, {MAX_WEIGHT}]; the paper's method is 1")
        check_student_text("revised", self.source, "mixed with the source revised")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        """Return instances of this class with different settings, for tests.

        `redistill.testing` checks that each instance has the properties that every policy must have.
        """
        return (
            cls(),
            cls(teacher_token="argmax", detection="forward", rounds=2),
            cls(detection="surprise", rounds=3, in_order=True),
            cls(detection="random", mode="append"),
            cls(teacher_token="nucleus", teacher_tokens=3, detection="first", threshold_nats=0.1),
            cls(detection="first", threshold_nats=0.1, chunk_tokens=2),
            cls(teacher_tokens="all"),
            cls(rounds=2, error_weight=4.0),
        )

    @property
    def needs(self) -> Needs:
        return self.source.needs | Needs(teacher=True, statistics=True, teacher_text=self.teacher_tokens != 1)

    @property
    def _allows_chunks(self) -> bool:
        return self.detection == "first" and self.mode == "replace" and isinstance(self.source, StudentGenerated)

    def chunk_size(self, engine: EngineCapabilities) -> int | None:
        """Return the number of tokens of a chunk; None for complete drafts.

        Drafts are generated in chunks of this size.

        Args:
            engine: Features of the engine that generates the drafts.

        Example:
            >>> from redistill.generation.local import LOCAL
            >>> Revised(detection="first", threshold_nats=1.0).chunk_size(LOCAL)
            16
        """
        if self.chunk_tokens == "all" or not self._allows_chunks or not engine.prefix_memory:
            return None
        return self.chunk_tokens or USUAL_CHUNK

    def bind(self, tools: PolicyTools) -> "RevisedSource":
        scores, size = draft_scores(self, tools), self.chunk_size(tools.engine.capabilities)
        drafting = tools if size is None else replace(tools, engine=ChunkedEngine(tools.engine, size, scores.has_error))
        return RevisedSource(self, self.source.bind(drafting), tools, scores)


def chunk_notes(policy: object, engine: EngineCapabilities) -> Iterator[str]:
    """Yield a sentence if a policy generates complete drafts without need.

    With the detection "first", the policy needs a draft only up to its first error.

    Args:
        policy: The settings of a policy.  Its attribute `source`, if it has one, is the inner policy.
        engine: Features of the engine that generates the drafts.

    Example:
        >>> from redistill.generation.local import LOCAL
        >>> list(chunk_notes(Revised(detection="first", threshold_nats=1.0, chunk_tokens=4), LOCAL))
        []
        >>> next(chunk_notes(Revised(detection="first", threshold_nats=1.0, mode="append"), LOCAL))
        'policy revised generates complete drafts for detection first: chunks need mode replace and source student_generated'
    """
    if (
        isinstance(policy, Revised)
        and policy.detection == "first"
        and policy.chunk_tokens != "all"
        and policy.chunk_size(engine) is None
    ):
        need = "an engine that stores the states of prefixes (local)" if policy._allows_chunks else _CHUNKS_NEED
        yield f"policy revised generates complete drafts for detection first: chunks need {need}"
    if hasattr(policy, "source"):
        yield from chunk_notes(policy.source, engine)


def revises(node: object) -> bool:
    """Return whether a policy, or a policy that it wraps, is `Revised`.

    A revised text has the same first tokens as its draft.  The caller can therefore store the hidden states of drafts and
    reuse them.
    """
    return isinstance(node, Revised) or (hasattr(node, "source") and revises(node.source))


def draft_scores(settings: Revised, tools: PolicyTools) -> DraftScores:
    """Return the object that scores the drafts of a `Revised` policy."""
    assert tools.scorer is not None, "a teacher with statistics of tokens is required"
    ask_token, _ = _ASKED[settings.teacher_token]
    return DraftScores(tools.scorer, settings.detection, ask_token, tools.seed, settings.threshold_nats)


class RevisedSource(Wrapping):
    """Returns the sequences of a `Revised` policy; created by `Revised.bind`.

    Args:
        settings: The policy.
        source: Generates the drafts.
        tools: The objects that the policy uses.
        scores: Computes the scores of drafts.  If drafts are generated in chunks, this must be the object that scored the
            chunks, because it has stored their scores.  If None (only allowed without chunks), a new object is created.
    """

    def __init__(self, settings: Revised, source: Source, tools: PolicyTools, scores: ScoresDrafts | None = None) -> None:
        assert settings.sampling is not None, "the source must generate student text"
        self._settings, self._source, self._tools = settings, source, tools
        self._scores, self._sampling = scores or draft_scores(settings, tools), settings.sampling
        self._counts = (0, 0, 0)  # revisions of the last step, those with a tail, and those with an unchanged tail

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        sequences = self._source.sequences(step, items)
        indices = [index for index, sequence in enumerate(sequences) if sequence.origin in {"student", "mixture", "revised"}]
        drafts = [sequences[index] for index in indices]
        revised, starts, self._counts = drafts, [0] * len(drafts), (0, 0, 0)
        for number in range(self._settings.rounds if drafts else 0):
            revised, errors = self._revise(step, number, revised, starts)
            if self._settings.in_order:
                starts = [start if error < 0 else error for start, error in zip(starts, errors, strict=True)]
        everywhere = self._tools.processes.gather([self._counts])
        revisions, tails, same = map(sum, zip(*everywhere, strict=True))
        self._counts = (revisions, tails, same)
        if self._settings.mode == "append":
            return [*sequences, *(after for before, after in zip(drafts, revised, strict=True) if after is not before)]
        return replaced(sequences, indices, revised)

    def metrics(self) -> Mapping[str, Json]:
        """Return metrics of the revisions of the last step.

        The metrics are the number of revisions, and the fraction of unchanged tails.  The tail of a revised sequence is all
        tokens after the error token.  A tail is unchanged if it equals that of the draft.  Sequences without a tail are not
        counted in the fraction.  The fraction is omitted if there is no tail.  It is also omitted if drafts are generated in
        chunks, since most of these drafts end soon after their error.
        """
        revisions, tails, same = self._counts
        is_complete = self._settings.chunk_size(self._tools.engine.capabilities) is None
        fraction = {"unchanged_tails": same / tails} if tails and is_complete else {}
        return {**self._source.metrics(), "revisions": revisions, **fraction}

    def state_dict(self) -> Mapping[str, StateValue]:
        return {**self._source.state_dict(), _COUNTS: self._counts}

    def load_state_dict(self, state: Mapping[str, StateValue]) -> None:
        # Checkpoints of older versions have no counts, or no number of tails: each revision then counted as one.
        revisions, *tails, same = cast("Sequence[int]", state.get(_COUNTS, (0, 0)))
        self._counts = (revisions, tails[0] if tails else revisions, same)
        self._source.load_state_dict({name: value for name, value in state.items() if name != _COUNTS})

    def _revise(
        self, step: int, number: int, drafts: list[TokenSequence], starts: list[int]
    ) -> tuple[list[TokenSequence], list[int]]:
        """Run round `number` of revision; return the revised drafts and error tokens.

        An error token is a token that was replaced.  The function returns the position of each error token.  A draft without
        an error token is returned unchanged, with the position -1.  `starts` has a position for each draft; tokens before
        this position are not replaced.
        """
        score_BT, teacher_BT = self._scores.of(step, number, drafts)
        student_BT, valid_BT = pad([draft.response_ids for draft in drafts], 0)
        is_searched_BT = valid_BT.bool() & (torch.arange(student_BT.shape[1]) >= torch.tensor(starts)[:, None])
        ranked_BT = self._random_scores(step, number, drafts) if self._settings.detection == "random" else score_BT
        if self._settings.threshold_nats is not None:
            is_searched_BT &= score_BT > self._settings.threshold_nats
            ranked_BT = -torch.arange(score_BT.shape[1]).double().expand_as(score_BT)
        errors: list[int] = locate_error(ranked_BT, student_BT, teacher_BT, is_searched_BT).tolist()
        corrections = [
            correct(draft.response_ids, error, tokens[error], budget=self._tools.response_tokens, eos_ids=self._tools.end_ids)
            for draft, error, tokens in zip(drafts, errors, teacher_BT.tolist(), strict=True)
        ]
        tails = self._tails(step, number, drafts, corrections)
        revised = [
            self._weighted(draft, answered(draft, correction.prefix_ids + tail, "revised"), error)
            if correction.changed
            else draft
            for draft, correction, tail, error in zip(drafts, corrections, tails, errors, strict=True)
        ]
        for draft, sequence, error, scores in zip(drafts, revised, errors, score_BT.tolist(), strict=True):
            if sequence is not draft:
                tail = sequence.response_ids[error + 1 :]
                is_same = bool(tail) and tail == draft.response_ids[error + 1 :]
                self._counts = (self._counts[0] + 1, self._counts[1] + bool(tail), self._counts[2] + is_same)
                self._tools.on_revision(Revision(step, draft.sample, error, scores[error], draft, sequence))
        return revised, errors

    def _weighted(self, draft: TokenSequence, revised: TokenSequence, error: int) -> TokenSequence:
        """Return the revised sequence with weights.

        Targets before the error have the weights of the draft, the error token has `error_weight`, and later targets have 1.
        """
        if self._settings.error_weight == 1 and not draft.weights:
            return revised
        weights = (*draft.target_weights[:error], self._settings.error_weight)
        return replace(revised, weights=weights + (1.0,) * (revised.num_targets - len(weights)))

    def _random_scores(self, step: int, number: int, drafts: list[TokenSequence]) -> torch.Tensor:
        """Return random scores [B, T] for the tokens of the drafts."""
        streams = [(generator(self._tools.seed, "error", step, draft.sample, number), draft.num_targets) for draft in drafts]
        return pad_sequence([torch.from_numpy(stream.random(length)) for stream, length in streams], batch_first=True)

    def _tails(
        self, step: int, number: int, drafts: list[TokenSequence], corrections: list[Correction]
    ) -> list[tuple[int, ...]]:
        """Generate the tail of each corrected prefix; return the token ids.

        If the setting `teacher_tokens` is above 1, the teacher generates the first tokens of the tail.  The student
        generates the rest.  The tail is empty if `tail_budget` of the correction is 0.
        """
        tails: list[tuple[int, ...]] = [()] * len(drafts)
        count = self._settings.teacher_tokens
        budgets = [correction.tail_budget for correction in corrections]
        for purpose, limit in (("teacher-tail", None if count == "all" else count - 1), ("tail", None)):
            if limit == 0 or (count == "all" and purpose == "tail"):
                continue
            unfinished = [index for index, budget in enumerate(budgets) if budget > 0]
            requests = [
                GenerationRequest(
                    prompt_ids=drafts[index].prompt_ids + corrections[index].prefix_ids + tails[index],
                    max_new_tokens=budgets[index] if limit is None else min(limit, budgets[index]),
                    seed=self._tools.seed,
                    stream=(purpose, step, drafts[index].sample, number),
                )
                for index in unfinished
            ]
            for index, generation in zip(unfinished, self._generate(purpose, requests), strict=True):
                tails[index] += generation.token_ids
                is_done = is_finished(tails[index], self._tools.end_ids)
                budgets[index] = 0 if is_done else budgets[index] - len(generation.token_ids)
        return tails

    def _generate(self, purpose: str, requests: list[GenerationRequest]) -> list[Generation]:
        if not requests:
            return []
        if purpose == "tail":
            return self._tools.engine.generate(requests, self._sampling)
        assert self._tools.teacher is not None, "a teacher that generates text is required"
        return self._tools.teacher.generate(requests, _ASKED[self._settings.teacher_token][1])
