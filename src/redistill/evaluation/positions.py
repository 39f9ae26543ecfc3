"""Divergences of student and teacher at each token of an answer.

An evaluation writes them to positions.jsonl for a sample of its answers.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from redistill.contracts import Batch, Generation, Teacher, TokenSequence
from redistill.data.spans.align import token_texts
from redistill.evaluation.measurements import Sampled, rounded
from redistill.interfaces import Tokenizer
from redistill.models.families import body, eval_mode, head
from redistill.policies.scorer import Scorer
from redistill.records import Json
from redistill.storage import files
from redistill.vocab_pass import Head, Statistic

POSITIONS = "positions.jsonl"
STATISTICS: tuple[Statistic, ...] = ("forward_kl", "student_logprob", "teacher_logprob")
"""The row statistics of a line of positions.jsonl."""


def by_token(
    scorer: Scorer, tokenizer: Tokenizer, sequences: Sequence[TokenSequence], ask: Sequence[Statistic]
) -> list[dict[str, Json]]:
    """Return the text of each token of the answers, with statistics of both models.

    Each model runs once on each sequence.

    Args:
        scorer: Computes the statistics.
        tokenizer: Decodes the tokens.
        sequences: Prompts with their answers; all tokens of an answer are targets.
        ask: Names of the statistics.

    Returns:
        For each sequence: "tokens", the text of each token of the answer; and for each statistic, one number for each token,
        rounded to four significant digits.  A number that is not finite is None.
    """
    if not sequences:
        return []
    found = scorer.statistics(sequences, ask)
    table_MN = torch.stack([torch.cat(found[name]).double() for name in ask]).cpu()  # one copy to the host
    rows = table_MN.split([sequence.num_targets for sequence in sequences], dim=1)
    return [
        {"tokens": token_texts(sequence.response_ids, tokenizer)}
        | {name: _numbers(value_N) for name, value_N in zip(ask, row_MN, strict=True)}
        for sequence, row_MN in zip(sequences, rows, strict=True)
    ]


def answer_positions(
    model: nn.Module,
    teacher: Teacher,
    tokenizer: Tokenizer,
    sample: Sequence[Sampled],
    answers: Sequence[Generation],
    seed: int,
    *,
    batch_size: int,
    vocabulary: int | None,
) -> Iterator[dict[str, Json]]:
    """Yield the lines of positions.jsonl, one for each answer.

    Args:
        model: The student, on its device; run in eval mode, without gradient.
        teacher: A teacher whose distributions cover the whole vocabulary.
        tokenizer: The student's tokenizer.
        sample: The prompts.
        answers: The answer to each prompt.
        seed: The evaluation seed of the answers.
        batch_size: Sequences per forward pass.
        vocabulary: Number of token ids that student and teacher share; None if all token ids are used.
    """

    @torch.no_grad()
    def read_student(batch: Batch) -> tuple[torch.Tensor, Head]:
        with eval_mode(model):
            hidden_BTD = body(model)(batch.input_ids_BT, batch.attention_mask_BT)
        return hidden_BTD.flatten(0, 1)[batch.position_N], head(model, vocabulary)

    device = head(model).weight_VD.device
    scorer = Scorer(read_student, teacher, pad_id=0, batch_size=batch_size, device=device)
    for start in range(0, len(sample), batch_size):
        some = slice(start, start + batch_size)
        sequences = [_sequence(each.row[1], answer) for each, answer in zip(sample[some], answers[some], strict=True)]
        for (dataset, (record, _)), found in zip(sample[some], by_token(scorer, tokenizer, sequences, STATISTICS), strict=True):
            yield {"dataset": dataset, "id": record.record_id, "seed": seed, **found}


def write_positions(folder: Path, lines: Iterable[dict[str, Json]], limit: int) -> None:
    """Write positions.jsonl to a folder, in at most `limit` bytes.

    The first line that would exceed the limit and all later lines are left out.

    Args:
        folder: The evaluation folder.
        lines: The lines; no line is computed after the first one that is left out.
        limit: Maximum size of the file in bytes.
    """
    kept, size = list[dict[str, Json]](), 0
    for line in lines:
        size += files.line_size(line)
        if size > limit:
            break
        kept.append(line)
    files.rewrite_lines(folder / POSITIONS, kept)


def _sequence(prompt_ids: tuple[int, ...], answer: Generation) -> TokenSequence:
    supervised = (False,) * len(prompt_ids) + (True,) * len(answer.token_ids)
    return TokenSequence(sample=0, token_ids=prompt_ids + answer.token_ids, supervised=supervised, origin="student")


def _numbers(value_N: torch.Tensor) -> list[Json]:
    return [rounded(value) if math.isfinite(value) else None for value in value_N.tolist()]
