"""Checks 9 to 13, 18 and 19: the models and tokenizers of teacher and student."""

import math

import torch

from redistill.contracts import Teacher
from redistill.data.alpaca import has_alpaca_jinja
from redistill.doctor.findings import Finding, Findings, NotExamined, quoted
from redistill.doctor.reading import ROWS_AT_ONCE, gold_batch
from redistill.doctor.subject import Loaded, Subject
from redistill.errors import NotFiniteError, VocabularyError, WeightsError
from redistill.models.families import head
from redistill.models.load import end_token_ids
from redistill.models.tokenizers import compatibility_warnings
from redistill.policies.order import gold_sequence
from redistill.vocab_pass.rules import whole

SAME, CLEAR = 1e-6, 0.1
"""Limits of the difference of the cross entropies of two models, in nats per token.

If the difference is at most `SAME`, the models are regarded as the same model. If the difference is at least `CLEAR`, the model
with the lower cross entropy is regarded as clearly better.
"""


def refused(subject: Subject, kind: type[Exception], what: str, right: str) -> Findings:
    """Return a finding if loading the models raised an error of type `kind`.

    Without such an error, the result is empty. `what` and `right` are fields of the finding. The error message ends with a
    remedy, after a semicolon; the text before it becomes the measured value of the finding.
    """
    if not isinstance(subject.found, kind):
        return []
    measured, _, remedy = str(subject.found).rpartition("; ")
    return [Finding(what=what, measured=measured, right=right, remedy=remedy)]


def token_ids(subject: Subject) -> Findings:
    """Check 9: each token id must stand for the same token in teacher and student.

    The check fails if loading the models raised a VocabularyError.
    """
    return refused(subject, VocabularyError, "token ids of teacher and student differ", "one token for each id")


def new_weights(subject: Subject) -> Findings:
    """Check 18: the files of teacher and student must contain all weights.

    The check fails if loading the models raised a WeightsError. Missing weights would be initialised at random.
    """
    right = "a file that contains every weight that the config describes"
    return refused(subject, WeightsError, "weights would be initialised at random", right)


def teacher_of(loaded: Loaded) -> Teacher:
    """Return the teacher of the run.

    Raises:
        NotExamined: the recipe has no teacher.
    """
    if loaded.opened.teacher is None:
        raise NotExamined("the recipe has no teacher")
    return loaded.opened.teacher


def padded_rows(subject: Subject) -> Findings:
    """Check 10: models must not return logits for padded rows of the output head.

    Some models pad the output head with rows that belong to no token. The number of classes (token ids) in training is the
    number of rows of the smaller head. The check fails if the logits of teacher or student have another number of classes.
    """
    loaded = subject.loaded
    teacher_of(loaded)
    models = loaded.opened.models
    sizes = {"student": head(models.student).num_classes}
    if models.teacher is not None:
        sizes["teacher"] = head(models.teacher).num_classes
    classes, right = loaded.reading.classes, min(sizes.values())
    if all(count == right for count in classes.values()) and models.vocabulary == right:
        return []
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return [
        Finding(
            what="padded rows of a head are not cut",
            measured=", ".join(f"{count} classes of the {name}" for name, count in classes.items()),
            right=f"{right} classes of both models, the smaller number of rows of the heads ({listed})",
            remedy="change the model so that it returns logits of the shared vocabulary only",
        )
    ]


def training_mode(subject: Subject) -> Findings:
    """Check 11: the teacher must be in eval mode, frozen and deterministic.

    The check fails if a module of the teacher is in training mode, or if a parameter is trainable. It also fails if two forward
    passes over the same tokens give different logits.
    """
    loaded = subject.loaded
    teacher, model = teacher_of(loaded), loaded.opened.models.teacher
    if not teacher.capabilities.full_vocabulary:
        raise NotExamined("the teacher does not return logits of the full vocabulary")
    first, second = (teacher_logits(loaded, teacher) for _ in range(2))
    difference = float((first - second).abs().nan_to_num().max())
    training = 0 if model is None else sum(module.training for module in model.modules())
    trained = 0 if model is None else sum(parameter.requires_grad for parameter in model.parameters())
    if not (training or trained or difference):
        return []
    return [
        Finding(
            what="the teacher is in training mode",
            measured=f"{training} modules are in training mode, {trained} parameters are trainable, and the logits of two "
            f"passes differ by up to {difference:.3g}",
            right="eval mode, no trainable parameters, and equal logits in both passes",
            remedy="set the teacher to eval mode and its parameters to requires_grad=False",
        )
    ]


@torch.no_grad()
def teacher_logits(loaded: Loaded, teacher: Teacher) -> torch.Tensor:
    """Run the teacher on the answers of two training examples, and return its logits.

    The result is a float32 tensor of shape (N, V) for the first N answer tokens and V classes (token ids). N is at most 64
    (`ROWS_AT_ONCE`).
    """
    opened = loaded.opened
    teacher.prepare([gold_sequence(example) for example in opened.data.train[:2]])
    with opened.accelerator.autocast():
        logits_NV = whole(teacher.rows(gold_batch(opened, 2))(slice(0, ROWS_AT_ONCE)))
    teacher.release()
    return logits_NV.float()


def weak_teacher(subject: Subject) -> Findings:
    """Check 12: the teacher must have a lower cross entropy than the student.

    Both models read gold answers (the answers in the training data). The check passes if the teacher's cross entropy is at
    least 0.1 nats per token (`CLEAR`) lower than the student's. It fails if the teacher's value is at least 0.1 higher. It also
    fails if both values are equal up to 1e-6 (`SAME`), as for equal models. Any other difference is a note.
    """
    loaded = subject.loaded
    teacher = teacher_of(loaded)
    if not teacher.capabilities.full_vocabulary:
        raise NotExamined("the teacher does not return logits of the full vocabulary")
    student, taught = (loaded.reading.cross_entropies[role] for role in ("student", "teacher"))
    gain = student - taught
    if math.isnan(gain):
        raise NotExamined("the cross entropy of a model is not finite")
    if gain >= CLEAR:
        return []
    is_note = abs(gain) > SAME and gain > -CLEAR
    return [
        Finding(
            what="the teacher is not clearly better than the student"
            if is_note
            else "the teacher is no better than the student",
            measured=f"the cross entropy of gold answers is {taught:.3f} (teacher) and {student:.3f} (student) nats per token",
            right="a lower cross entropy of the teacher",
            remedy="choose a better teacher, or fine-tune it first (teacher.finetune)",
            is_note=is_note,
        )
    ]


def other_tokenizer(subject: Subject) -> Findings:
    """Check 13: teacher and student must have the same end token and chat template.

    The check also fails if the end token of the student's model is not an end token of the teacher's model.
    """
    if subject.teacher_tokenizer is None:
        if subject.config.teacher is None:
            raise NotExamined("the recipe has no teacher")
        return []
    found = []
    chat = not has_alpaca_jinja(subject.tokenizer)  # a fine-tuned student, whose rows need no chat template
    for warning in compatibility_warnings(subject.teacher_tokenizer, subject.tokenizer, chat=chat):
        measured, _, remedy = warning.partition(": ")
        found.append(
            Finding(
                what="the tokenizers of teacher and student differ",
                measured=measured,
                right="the same end token and chat template in both",
                remedy=remedy,
            )
        )
    models = subject.found.opened.models if isinstance(subject.found, Loaded) else None
    if found or models is None or models.teacher is None:
        return found
    end = models.end_ids[0]
    if end not in end_token_ids(models.teacher, subject.teacher_tokenizer):
        found.append(
            Finding(
                what="the teacher does not stop at the student's end token",
                measured=f"{quoted(subject.tokenizer.decode([end]))} is not an end token of the teacher",
                right="the same end token in both",
                remedy="set eos_token in one of the tokenizers",
            )
        )
    return found


def not_finite(subject: Subject) -> Findings:
    """Check 19: the logits of both models and the gradient must be finite.

    The check fails, for example, if the chosen precision causes an overflow.
    """
    if isinstance(subject.found, NotFiniteError):
        return refused(subject, NotFiniteError, "logits are not finite", "finite logits")
    loaded = subject.loaded
    opened = loaded.opened
    precision = opened.config.training.precision
    found = [
        Finding(
            what=f"logits of the {role} are not finite",
            measured=f"{count} logits of {len(opened.data.train)} gold answers are NaN or infinite with "
            f"training.precision = {precision}",
            right="finite logits",
            remedy=f"download the weights of the {role} again, or set its dtype to float32 and training.precision to fp32",
        )
        for role, count in loaded.reading.faults.items()
        if count
    ]
    if not found and loaded.parts is not None and not math.isfinite(loaded.gradient.norm):
        found.append(
            Finding(
                what="the gradient is not finite",
                measured=f"its norm in one update is {loaded.gradient.norm} with training.precision = {precision}",
                right="a finite norm",
                remedy="set training.precision to fp32, or lower the weights of the objective",
            )
        )
    return found
