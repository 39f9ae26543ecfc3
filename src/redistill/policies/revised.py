"""SCRG around a source of student text: write, score, locate the error, correct it, write on (paper section 4.1).

The formulas are in redistill.revision; here they are put to work: one reading of the drafts by both models, then one
generation of the tails.  Gold sequences that a source hands through are never revised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch

from redistill.contracts import GenerationRequest, Sampling, TokenSequence
from redistill.data.collate import collate
from redistill.errors import ConfigError
from redistill.policies.generated import StudentGenerated
from redistill.policies.sources import GoldItem, PolicyTools, Revision, Source, Wrapping
from redistill.randomness import generator
from redistill.revision import Correction, correct, locate_error
from redistill.tensors import pad
from redistill.vocab_pass import Statistic, row_statistics

if TYPE_CHECKING:
    from redistill.policies import PolicyConfig


@dataclass(frozen=True, kw_only=True)
class Revised:
    """Student text whose worst token the teacher has replaced, and from there on written anew.

    Source: the paper's Eq. 3 and 4; the readings of them are listed in docs/methods/mgsr.md.

    Args:
        source: Who writes the drafts.
        teacher_token: "sample" draws the teacher's token from its distribution (the text's y ~ p), "argmax" takes the mode.
        detection: "reverse" scores a position by KL(q || p), student first as in Eq. 3; "forward" by KL(p || q).
        rounds: How many times a sequence is revised, >= 1; the paper's default is 1.

    Raises:
        ConfigError: rounds below 1, or a source that writes nothing.
    """

    source: "PolicyConfig" = field(default_factory=StudentGenerated)
    teacher_token: Literal["sample", "argmax"] = "sample"
    detection: Literal["reverse", "forward"] = "reverse"
    rounds: int = 1

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"rounds = {self.rounds}: must be >= 1; drop `revised` to train on unrevised text")
        if self.source.sampling is None:
            raise ConfigError("revised.source writes no student text; use student_generated, or mixed around revised")

    @classmethod
    def examples(cls) -> tuple[Self, ...]:
        return (cls(), cls(teacher_token="argmax", detection="forward", rounds=2))

    @property
    def sampling(self) -> Sampling | None:
        return self.source.sampling

    def bind(self, tools: PolicyTools) -> "RevisedSource":
        return RevisedSource(self, self.source.bind(tools), tools)


@dataclass(frozen=True)
class _Scores:
    """Per draft: the detection divergence and the teacher's token at every response position."""

    kl: list[list[float]]
    teacher_tokens: list[list[int]]


class RevisedSource(Wrapping):
    def __init__(self, settings: Revised, source: Source, tools: PolicyTools) -> None:
        assert tools.teacher is not None, "SCRG needs a teacher"
        self._settings, self._source, self._tools, self._teacher = settings, source, tools, tools.teacher

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        sequences = self._source.sequences(step, items)
        for number in range(self._settings.rounds):
            drafts = [place for place, sequence in enumerate(sequences) if sequence.origin in {"student", "revised"}]
            if drafts:
                revised = self._revise(step, number, [sequences[place] for place in drafts])
                for place, sequence in zip(drafts, revised, strict=True):
                    sequences[place] = sequence
        return sequences

    def _revise(self, step: int, number: int, drafts: list[TokenSequence]) -> list[TokenSequence]:
        scores = self._score(step, number, drafts)
        kl_BT, _ = _pad_float(scores.kl)
        student_BT, valid_BT = pad([draft.response_ids for draft in drafts], 0)
        teacher_BT, _ = pad(scores.teacher_tokens, 0)
        errors = locate_error(kl_BT, student_BT, teacher_BT, valid_BT.bool()).tolist()
        corrections = [
            correct(
                draft.response_ids,
                error,
                tokens[error],
                budget=self._tools.response_tokens,
                eos_ids=self._tools.end_ids,
            )
            for draft, error, tokens in zip(drafts, errors, scores.teacher_tokens, strict=True)
        ]
        tails = self._tails(step, number, drafts, corrections)
        revised = [
            _assemble(draft, correction.prefix_ids + tail) if correction.changed else draft
            for draft, correction, tail in zip(drafts, corrections, tails, strict=True)
        ]
        for draft, sequence, error, kl in zip(drafts, revised, errors, scores.kl, strict=True):
            if sequence is not draft:
                self._tools.on_revision(Revision(step, draft.sample, error, kl[error], draft, sequence))
        return revised

    def _score(self, step: int, number: int, drafts: list[TokenSequence]) -> _Scores:
        """One reading of every draft by both models, `score_batch_size` sequences at a time."""
        ask_kl: Statistic = "reverse_kl" if self._settings.detection == "reverse" else "forward_kl"
        ask_token: Statistic = "teacher_sample" if self._settings.teacher_token == "sample" else "teacher_argmax"
        kl: list[list[float]] = []
        tokens: list[list[int]] = []
        for start in range(0, len(drafts), self._tools.score_batch_size):
            part = drafts[start : start + self._tools.score_batch_size]
            batch = collate((), part, pad_id=self._tools.pad_id, device=self._tools.device)
            uniforms = np.concatenate(
                [
                    generator(self._tools.seed, "teacher-token", step, draft.sample, number).random(draft.num_targets)
                    for draft in part
                ]
            )
            hidden_ND, head = self._tools.student_rows(batch)
            found = row_statistics(
                hidden_ND,
                head,
                self._teacher.rows(batch),
                (ask_kl, ask_token),
                uniforms_N=torch.from_numpy(uniforms).to(hidden_ND.device),
            )
            lengths = [draft.num_targets for draft in part]
            kl += [rows.tolist() for rows in found[ask_kl].split(lengths)]
            tokens += [rows.tolist() for rows in found[ask_token].split(lengths)]
        return _Scores(kl, tokens)

    def _tails(
        self, step: int, number: int, drafts: list[TokenSequence], corrections: list[Correction]
    ) -> list[tuple[int, ...]]:
        """What the student writes after each corrected prefix; nothing where the sequence ends there."""
        open_places = [place for place, correction in enumerate(corrections) if correction.tail_budget > 0]
        tails: list[tuple[int, ...]] = [()] * len(drafts)
        requests = [
            GenerationRequest(
                prompt_ids=drafts[place].prompt_ids + corrections[place].prefix_ids,
                max_new_tokens=corrections[place].tail_budget,
                stream=("tail", step, drafts[place].sample, number),
            )
            for place in open_places
        ]
        sampling = self._settings.sampling
        assert sampling is not None
        if requests:
            for place, generation in zip(open_places, self._tools.generate(requests, sampling), strict=True):
                tails[place] = generation.token_ids
        return tails


def _assemble(draft: TokenSequence, response_ids: tuple[int, ...]) -> TokenSequence:
    prompt_ids = draft.prompt_ids
    return replace(
        draft,
        token_ids=prompt_ids + response_ids,
        supervised=(False,) * len(prompt_ids) + (True,) * len(response_ids),
        origin="revised",
        spans=(),
    )


def _pad_float(rows: list[list[float]]) -> tuple[torch.Tensor, int]:
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0.0] * (longest - len(row)) for row in rows], dtype=torch.float64), longest
