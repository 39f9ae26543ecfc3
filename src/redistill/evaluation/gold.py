"""Teacher-forced scores of a model on gold answers: cross entropy, and KL and agreement with the teacher."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from redistill.contracts import Example, Teacher, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import DataError
from redistill.evaluation.answers import Line
from redistill.models.families import body, eval_mode, head
from redistill.processes import signals
from redistill.records import Record
from redistill.vocab_pass import Statistic, row_statistics


def teacher_forced(
    model: nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    *,
    batch_size: int,
    vocabulary: int | None = None,
) -> dict[str, float]:
    r"""Teacher-forced scores of the student on gold answers, as means over all their targets.

    .. math:: \text{cross\_entropy} = -\log q(y_i), \quad
              \text{kl} = \mathrm{KL}(p_i \,\|\, q_i), \quad \text{agreement} = [\arg\max p_i = \arg\max q_i]

    cross_entropy and kl are nats per token; agreement is a fraction in [0, 1].  p is the teacher, q the student; both are
    computed in fp32 for weights of any dtype.

    Args:
        model: The student, on its device; run in eval mode, without gradient.
        teacher: None, or a teacher without full distributions, omits kl and agreement.
        examples: Gold sequences; without any the result is empty.
        batch_size: Sequences per forward pass.
        vocabulary: Number of classes shared with the teacher; None uses all of the model's.
    """
    return token_means(gold_sums(model, teacher, examples, batch_size, vocabulary))


def gold_examples(records: Sequence[Record], tokenizer: Any, config: TokenizeConfig) -> list[Example]:
    """Gold sequences of test records with their first reference; empty if all prompts exceed the length limits of training."""
    with contextlib.suppress(DataError):
        return tokenize_training(records, tokenizer, replace(config, reference="first"), seed=0)[0]
    return []


@torch.no_grad()
def gold_sums(
    model: nn.Module, teacher: Teacher | None, examples: Sequence[Example], batch_size: int, vocabulary: int | None
) -> list[Line]:
    """For each example its number of targets, and each statistic summed over them."""
    has_full = teacher is not None and teacher.capabilities.full_vocabulary
    ask: list[Statistic] = ["cross_entropy", "forward_kl", "agreement"] if has_full else ["cross_entropy"]
    sequences = [
        TokenSequence(sample=e.sample, token_ids=e.token_ids, supervised=e.supervised, origin="dataset")
        for e in sorted(examples, key=lambda example: len(example.token_ids))
    ]
    sums: list[Line] = []
    with eval_mode(model):
        student_head = head(model, vocabulary)
        for start in range(0, len(sequences), batch_size):
            signals.poll()
            some = sequences[start : start + batch_size]
            batch = collate(items_of(some, "distillation"), pad_id=0, device=student_head.weight_VD.device)
            hidden_ND = body(model)(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]
            if teacher is not None and has_full:
                teacher.prepare(some)
            target = teacher.rows(batch) if teacher is not None and has_full else None
            found = row_statistics(hidden_ND, student_head, target, ask, token_N=batch.target_N)
            sequence_N = batch.sequence_N.cpu()
            by_name = {
                name: torch.zeros(len(some), dtype=torch.float64).index_add_(0, sequence_N, value_N.cpu().double()).tolist()
                for name, value_N in found.items()
            }
            for index, sequence in enumerate(some):
                sums.append({"targets": sequence.num_targets, **{name: values[index] for name, values in by_name.items()}})
    return sums


def token_means(sums: Sequence[Line]) -> dict[str, float]:
    """Means over all targets of the sums of `gold_sums`; empty without examples."""
    if not sums:
        return {}
    targets = sum(line["targets"] for line in sums)
    names = {"cross_entropy": "cross_entropy", "forward_kl": "kl", "agreement": "agreement"}
    return {shown: math.fsum(line[name] for line in sums) / targets for name, shown in names.items() if name in sums[0]}
