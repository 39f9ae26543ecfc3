"""Teacher-forced scores of a model on gold answers.

The scores are the cross entropy, the KL divergence from the teacher, and the agreement with the teacher.  Optional scores
are the acceptance of the model's tokens by the teacher, calibration, entropies, and the overlap of the most probable
tokens.
"""

import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from redistill.contracts import ONE_PROCESS, Example, Processes, Teacher, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.errors import DataError
from redistill.evaluation.acceptance import accepted
from redistill.evaluation.answers import part
from redistill.evaluation.calibration import calibration_error, calibration_gaps
from redistill.interfaces import Tokenizer
from redistill.models.families import body, eval_mode, head
from redistill.processes import signals
from redistill.records import ACCEPTANCE, Record
from redistill.vocab_pass import Statistic, row_statistics

_STATISTICS: Mapping[str, tuple[Statistic, ...]] = {
    "acceptance": ("acceptance",),
    "calibration": ("student_confidence", "student_argmax"),
    "entropy": ("student_entropy", "teacher_entropy"),
    "overlap": ("top_overlap",),
}
"""For each value of `EvaluationConfig.teacher_forced`, the statistics of tokens from which the scores are computed."""
_OF_TEACHER = frozenset({"acceptance", "teacher_entropy", "top_overlap"})
_MEANS = ("agreement", "student_entropy", "teacher_entropy", "top_overlap")


def teacher_forced(
    model: nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    *,
    batch_size: int,
    extra: Collection[str] = (),
    vocabulary: int | None = None,
    processes: Processes = ONE_PROCESS,
) -> dict[str, float]:
    r"""Return teacher-forced scores of the student, as means over all gold targets.

    .. math:: \text{cross\_entropy} = -\log q_i(y_i), \quad
              \text{kl} = \mathrm{KL}(p_i \,\|\, q_i), \quad \text{agreement} = [\arg\max p_i = \arg\max q_i]

    A gold target is a token of an answer in the data.  y_i is the i-th gold target, p_i is the teacher's distribution at this
    token, and q_i is the student's.  The bracket is 1 if the equation holds, and otherwise 0.  cross_entropy and kl are in nats
    per token; agreement is a fraction in [0, 1].  Both distributions are computed in fp32 for weights of any dtype.

    Args:
        model: The student, on its device; run in eval mode, without gradient.
        teacher: Teacher for kl and agreement.  Both scores are omitted if `teacher` is None or provides only some classes.
        examples: Gold sequences.
        batch_size: Sequences per forward pass.
        extra: Further scores, as in `EvaluationConfig.teacher_forced`.  Without a teacher, scores that need a teacher are
            omitted.
        vocabulary: Number of token ids shared with the teacher; only ids below this number are used.  If None, all token ids of
            the model are used.
        processes: Rank and number of processes; each process computes a part of the sequences.

    Returns:
        The mean of each score by its name, the same in every process.  The mapping is empty if there are no examples.
    """
    sums = processes.gather(_gold_sums(model, teacher, part(examples, processes), batch_size, extra, vocabulary))
    if not sums:
        return {}
    targets = sum(example["targets"] for example in sums)
    total = {name: math.fsum(example[name] for example in sums) for name in sums[0]}
    names = {"cross_entropy": "cross_entropy", "forward_kl": "kl"} | {name: name for name in (*_MEANS, *ACCEPTANCE)}
    means = {shown: total[name] / targets for name, shown in names.items() if name in total}
    return means | ({"ece": calibration_error(total, targets)} if "calibration" in extra else {})


def forced_names(extra: Collection[str], *, has_teacher: bool) -> list[str]:
    """Return the names of the scores that a complete evaluation has.

    Args:
        extra: The value of `EvaluationConfig.teacher_forced`.
        has_teacher: Whether there is a teacher that provides distributions over the whole vocabulary.

    Returns:
        The name of the KL divergence, and one name for each value in `extra`.  Without a teacher, names of scores that need
        a teacher are omitted.

    Example:
        >>> forced_names(["acceptance", "entropy"], has_teacher=False)
        ['student_entropy']
    """
    found = (_STATISTICS[each][0] for each in extra)
    needed = ["kl"] if has_teacher else []
    return needed + [
        "ece" if name == "student_confidence" else name for name in found if has_teacher or name not in _OF_TEACHER
    ]


def gold_examples(records: Sequence[Record], tokenizer: Tokenizer, config: TokenizeConfig) -> Sequence[Example]:
    """Return the gold sequences of test records: each prompt with its first reference.

    The list is empty if all prompts exceed the length limits of training.
    """
    with contextlib.suppress(DataError):
        return tokenize_training(records, tokenizer, replace(config, reference="first"), seed=0)[0]
    return []


@torch.no_grad()
def _gold_sums(
    model: nn.Module,
    teacher: Teacher | None,
    examples: Sequence[Example],
    batch_size: int,
    extra: Collection[str],
    vocabulary: int | None,
) -> list[dict[str, float]]:
    """Return the number of targets and the sum of each score, for each example.

    The scores are summed over the targets of an example.  The scores are the cross entropy, the scores in `extra` and, with
    a teacher, the KL divergence and the agreement.  The keys of each dict are "targets" and the names of the scores.
    """
    full = teacher if teacher is not None and teacher.capabilities.full_vocabulary else None
    ask: list[Statistic] = ["cross_entropy"] if full is None else ["cross_entropy", "forward_kl", "agreement"]
    ask += [name for each in extra for name in _STATISTICS[each] if full is not None or name not in _OF_TEACHER]
    sequences = [
        TokenSequence(sample=e.sample, token_ids=e.token_ids, supervised=e.supervised, origin="dataset")
        for e in sorted(examples, key=lambda example: len(example.token_ids))
    ]
    sums: list[dict[str, float]] = []
    with eval_mode(model):
        student_head = head(model, vocabulary)
        for start in range(0, len(sequences), batch_size):
            signals.poll()
            some = sequences[start : start + batch_size]
            batch = collate(items_of(some, "distillation"), pad_id=0, device=student_head.weight_VD.device)
            hidden_ND = body(model)(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]
            if full is not None:
                full.prepare(some)
            target = None if full is None else full.rows(batch)
            found = row_statistics(hidden_ND, student_head, target, ask, token_N=batch.target_N)
            if "acceptance" in found:
                found |= accepted(found["acceptance"], batch.sequence_N, batch.position_N)
            if "student_confidence" in found:
                found |= calibration_gaps(found.pop("student_confidence"), found.pop("student_argmax") == batch.target_N)
            summed = {"targets": [sequence.num_targets for sequence in some]}
            for name, value_N in found.items():
                zero_B = torch.zeros(len(some), dtype=torch.float64)
                summed[name] = zero_B.index_add_(0, batch.sequence_N.cpu(), value_N.cpu().double()).tolist()
            sums += [{name: values[index] for name, values in summed.items()} for index in range(len(some))]
    return sums
