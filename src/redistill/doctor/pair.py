"""Checks 9 to 13, 18 and 19: vocabularies, modes, quality and numbers of teacher and student."""

import torch

from redistill.contracts import Batch, Teacher
from redistill.doctor.findings import Finding, Findings, NotExamined, quoted
from redistill.doctor.subject import GOLD_ROWS, Loaded, Subject
from redistill.errors import NotFiniteError, VocabularyError, WeightsError
from redistill.models.families import head
from redistill.models.load import compatibility_warnings, end_token_ids
from redistill.policies.order import gold_sequence
from redistill.training.guards import read_again
from redistill.vocab_pass import row_statistics
from redistill.vocab_pass.walk import cuts

ROWS_AT_ONCE = 64
SAME, CLEAR = 1e-6, 0.05
"""Nats per token: below the first two models are taken as one; beyond the second one is clearly better."""


def refused(subject: Subject, kind: type[Exception], what: str, right: str) -> Findings:
    """A finding if the models were refused with an error of this kind."""
    if not isinstance(subject.found, kind):
        return []
    measured, _, remedy = str(subject.found).rpartition("; ")
    return [Finding(what=what, measured=measured, right=right, remedy=remedy)]


def token_ids(subject: Subject) -> Findings:
    """(9) Token ids of teacher and student differ."""
    return refused(subject, VocabularyError, "token ids of teacher and student differ", "one token for each id")


def new_weights(subject: Subject) -> Findings:
    """(18) Weights are missing in the file and would be initialised at random."""
    return refused(subject, WeightsError, "weights would be initialised at random", "every weight of the config in the file")


def teacher_of(loaded: Loaded) -> Teacher:
    """The teacher; raises NotExamined without one."""
    if loaded.opened.teacher is None:
        raise NotExamined("the recipe has no teacher")
    return loaded.opened.teacher


def gold_batch(loaded: Loaded) -> Batch:
    """The gold answers of the examples as one batch."""
    from redistill.contracts import items_of
    from redistill.data.collate import collate

    sequences = [gold_sequence(example) for example in loaded.opened.data.train]
    opened = loaded.opened
    return collate(items_of(sequences, "sft", "distillation"), pad_id=opened.models.pad_id, device=opened.accelerator.device)


def padded_rows(subject: Subject) -> Findings:
    """(10) Rows of a head that stand for no token are not cut."""
    loaded = subject.loaded
    teacher, models = teacher_of(loaded), loaded.opened.models
    sizes = {"student": head(models.student).num_classes}
    if models.teacher is not None:
        sizes["teacher"] = head(models.teacher).num_classes
    first = read_first_row(loaded, teacher)
    right = min(sizes.values())
    if all(width == right for width in first.values()) and models.vocabulary == right:
        return []
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return [
        Finding(
            what="padded rows of a head are not cut",
            measured=", ".join(f"{width} classes of the {name}" for name, width in first.items()),
            right=f"{right} classes of both, since the heads have {listed} rows",
            remedy="return logits over the shared vocabulary only",
        )
    ]


@torch.no_grad()
def read_first_row(loaded: Loaded, teacher: Teacher) -> dict[str, int]:
    """Number of classes of one row of the student's logits and, for a teacher with the full vocabulary, of the teacher's."""
    batch, opened = gold_batch(loaded), loaded.opened
    opened.student.eval()
    with opened.accelerator.autocast():
        hidden_ND, student_head = opened.student.rows(batch)
        widths = {"student": student_head.logits(hidden_ND[:1]).shape[1]}
        if teacher.capabilities.full_vocabulary:
            target = teacher.rows(batch)(slice(0, 1))
            assert isinstance(target, torch.Tensor)
            widths["teacher"] = target.shape[1]
    return widths


def training_mode(subject: Subject) -> Findings:
    """(11) The teacher is in training mode, so that its dropout is active or its parameters are trained."""
    loaded = subject.loaded
    teacher, model = teacher_of(loaded), loaded.opened.models.teacher
    if not teacher.capabilities.full_vocabulary:
        raise NotExamined("the teacher does not return the full vocabulary")
    batch = gold_batch(loaded)
    first, second = (teacher_logits(loaded, teacher, batch, slice(0, ROWS_AT_ONCE)) for _ in range(2))
    difference = float((first - second).abs().nan_to_num().max())
    training = 0 if model is None else sum(module.training for module in model.modules())
    trained = 0 if model is None else sum(parameter.requires_grad for parameter in model.parameters())
    if not (training or trained or difference):
        return []
    return [
        Finding(
            what="the teacher is in training mode",
            measured=f"{training} modules in training mode, {trained} trainable parameters; two passes differ by {difference:.3g}",
            right="eval mode, no trainable parameter and equal logits",
            remedy="call eval() and requires_grad_(False) on the teacher",
        )
    ]


@torch.no_grad()
def teacher_logits(loaded: Loaded, teacher: Teacher, batch: Batch, rows: slice) -> torch.Tensor:
    """The teacher's logits of some rows, after a new pass of its body."""
    sequences = [gold_sequence(example) for example in loaded.opened.data.train]
    teacher.prepare(sequences)
    with loaded.opened.accelerator.autocast():
        logits_NV = teacher.rows(batch)(rows)
    teacher.release()
    assert isinstance(logits_NV, torch.Tensor), "a teacher with the full vocabulary"
    return logits_NV.float()


def weak_teacher(subject: Subject) -> Findings:
    """(12) The teacher is no better than the student on gold answers."""
    loaded = subject.loaded
    teacher = teacher_of(loaded)
    if not teacher.capabilities.full_vocabulary:
        raise NotExamined("the teacher does not return the full vocabulary")
    student, taught = cross_entropies(loaded, teacher)
    gain = student - taught
    if gain >= CLEAR:
        return []
    is_note = abs(gain) > SAME and gain > -CLEAR
    return [
        Finding(
            what="the teacher is not clearly better than the student" if is_note else "the teacher is no better than the student",
            measured=f"cross entropy of {min(GOLD_ROWS, len(loaded.opened.data.train))} gold answers {taught:.3f} (teacher) and "
            f"{student:.3f} (student) nats per token",
            right="a teacher with the lower cross entropy",
            remedy="choose a better teacher, or fine-tune it first (teacher.finetune)",
            is_note=is_note,
        )
    ]


@torch.no_grad()
def cross_entropies(loaded: Loaded, teacher: Teacher) -> tuple[float, float]:
    """Nats per gold token of student and teacher."""
    batch, opened = gold_batch(loaded), loaded.opened
    opened.student.eval()
    with opened.accelerator.autocast():
        hidden_ND, student_head = opened.student.rows(batch)
        student = float(row_statistics(hidden_ND, student_head, None, ["cross_entropy"], token_N=batch.target_N)["cross_entropy"].mean())
        target, total = teacher.rows(batch), 0.0
        for rows in cuts(slice(0, batch.num_sampled_rows), ROWS_AT_ONCE):
            logits_NV = target(rows)
            assert isinstance(logits_NV, torch.Tensor), "a teacher with the full vocabulary"
            total += float(torch.nn.functional.cross_entropy(logits_NV.float(), batch.target_N[rows], reduction="sum"))
    return student, total / batch.num_sampled_rows


def other_tokenizer(subject: Subject) -> Findings:
    """(13) End tokens or chat templates of teacher and student differ."""
    if subject.teacher_tokenizer is None:
        if subject.config.teacher is None:
            raise NotExamined("the recipe has no teacher")
        return []
    found = []
    for warning in compatibility_warnings(subject.teacher_tokenizer, subject.tokenizer):
        measured, _, remedy = warning.partition(": ")
        found.append(
            Finding(
                what="the tokenizers of teacher and student differ",
                measured=measured,
                right="one end token and one chat template",
                remedy=remedy,
            )
        )
    if not found and isinstance(subject.found, Loaded) and subject.found.opened.models.teacher is not None:
        models = subject.found.opened.models
        end_ids = end_token_ids(models.teacher, subject.teacher_tokenizer)
        if models.end_ids[0] not in end_ids:
            name = quoted(subject.tokenizer.decode([models.end_ids[0]]))
            found.append(
                Finding(
                    what="the teacher does not end its answers with the student's end token",
                    measured=f"{name} is no end token of the teacher",
                    right="one end token",
                    remedy="set eos_token in one of the tokenizers",
                )
            )
    return found


def not_finite(subject: Subject) -> Findings:
    """(19) Logits are not finite, or overflow in the chosen precision."""
    if isinstance(subject.found, NotFiniteError):
        return refused(subject, NotFiniteError, "logits are not finite", "finite logits")
    loaded = subject.loaded
    opened = loaded.opened
    with_teacher = opened.teacher is not None and opened.teacher.capabilities.full_vocabulary
    (about,) = read_again(
        [gold_batch(loaded)], opened.student, opened.teacher if with_teacher else None, opened.accelerator.autocast
    )
    found = []
    for role in ("student", "teacher"):
        if role in about and about[role]["not_finite"]:
            found.append(
                Finding(
                    what=f"logits of the {role} are not finite",
                    measured=f"{about[role]['not_finite']} of its logits on {len(opened.data.train)} gold answers are NaN or infinite "
                    f"with training.precision = {opened.config.training.precision}",
                    right="finite logits",
                    remedy=f"download the weights of the {role} again, or set its dtype to float32 and training.precision to fp32",
                )
            )
    return found
