"""Checks 14 to 17 and 20: gradients, micro-batches, export and schedule."""

import re
from dataclasses import replace

from redistill.contracts import Draw
from redistill.doctor.findings import Finding, Findings, NotExamined, some
from redistill.doctor.gradient import Measured, NoGraph, measure
from redistill.doctor.subject import Subject
from redistill.models.families import layer_list
from redistill.models.lora import has_adapters
from redistill.training.objective import Objective

NO_GRADIENT = 1e-6
"""Largest gradient norm that is regarded as 0, for a term of weight 1.

Rounding can cause a norm of this size.
"""
NO_VALUE = {"divergence": 1e-6, "span": 1e-8}
"""Largest value that is regarded as 0, for a term of weight 1.

The gradient alone is not sufficient: in bf16 a term of value 0 can have a gradient norm above `NO_GRADIENT`.
"""
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2}
"""Largest relative difference of gradients or losses that rounding can cause, by precision."""


def no_gradient(subject: Subject) -> Findings:
    """Check 14: each layer with trainable parameters must have a nonzero gradient.

    The check fails if the student or one of its layers has trainable parameters, but all their gradients are 0. It also fails
    if the student has no trainable parameter. With LoRA, only the gradients of the adapters' matrices B are examined. At the
    start, B is 0, and the gradient of the other matrix, A, is therefore 0.
    """
    loaded = subject.loaded
    model, lora = loaded.student, subject.config.student.lora
    remedy = "check student.lora.targets, student.gradient_checkpointing and the weights of the objective"
    if loaded.parts is None:
        return [Finding(what="the student", measured="0 trainable parameters", right="at least one", remedy=remedy)]
    try:
        norms = loaded.gradient.norms
    except NoGraph:
        norms = {name: 0.0 for name, parameter in model.named_parameters() if parameter.requires_grad}
    if has_adapters(model):  # LoRA starts with B = 0, so that the gradient of A is 0
        norms = {name: norm for name, norm in norms.items() if "lora_B" in name}
    if lora is not None and not norms:
        return [Finding(what="the adapters", measured="0 trainable parameters", right="at least one", remedy=remedy)]
    if not any(norms.values()):
        what = "the adapters get no gradient" if has_adapters(model) else "the student gets no gradient"
        return [Finding(what=what, measured="norm 0 in one update", right="a norm above 0", remedy=remedy)]
    path, layers = layer_list(model)
    by_layer = {
        index: [norm for name, norm in norms.items() if re.search(rf"\b{re.escape(path)}\.{index}\.", name)]
        for index in range(len(layers))
    }
    without = [index for index, found in by_layer.items() if found and not any(found)]
    if not without:
        return []
    return [
        Finding(
            what="layers of the student get no gradient",
            measured=f"norm 0 in layer {some(without)} of {len(layers)}",
            right="a norm above 0 in every layer with trainable parameters",
            remedy=remedy,
        )
    ]


def zero_terms(subject: Subject) -> Findings:
    """Check 15: each term of the objective with a nonzero weight must have a gradient.

    Each term is computed alone. The check fails if the gradient of a term is 0, up to rounding errors. For the divergence and
    the span loss, it also fails if the value is 0, up to rounding errors. A pre-training term without `data.corpus` is a note.
    """
    loaded = subject.loaded
    objective = loaded.learning.learner.objective
    found = []
    for name, (weight, alone) in single_terms(objective).items():
        draw = loaded.draw
        if name == "pretraining":
            draw = Draw(items=(), corpus=draw.corpus)
            if not draw.corpus:
                found.append(_zero_term(name, weight, "no data.corpus", is_note=True))
                continue
        alone_on = measure(loaded.learning, draw, alone)
        if is_rounding(name, alone_on, weight) and name in NO_VALUE:  # the sampled texts alone may be the cause
            alone_on = measure(loaded.learning, loaded.gold_draw, alone)
        if is_rounding(name, alone_on, weight):
            measured = f"value {alone_on.loss:.1e} and a gradient of norm {alone_on.norm:.1e} in one update"
            found.append(_zero_term(name, weight, measured))
    return found


def is_rounding(name: str, measured: Measured, weight: float) -> bool:
    """Return whether the gradient or the value of a term is 0, up to rounding errors.

    `name` is the name of the term, `weight` is its weight, and `measured` has its value and gradient. The value is examined
    only for the divergence and the span loss.
    """
    return measured.norm <= NO_GRADIENT * weight or (name in NO_VALUE and measured.loss <= NO_VALUE[name] * weight)


def _zero_term(name: str, weight: float, measured: str, *, is_note: bool = False) -> Finding:
    remedies = {
        "span": "use data whose answers have phrases, or another data.spans, or set objective.span_weight to 0",
        "divergence": "use a teacher that differs from the student, or set objective.divergence_weight to 0",
        "policy_gradient": "use a teacher that differs from the student",
        "pretraining": "set data.corpus, or remove objective.pretraining",
    }
    return Finding(
        what=f"the term {name} has the weight {weight:g} but no effect",
        measured=measured,
        right="a value and a gradient norm above 0",
        remedy=remedies.get(name, "set its weight to 0"),
        is_note=is_note,
    )


def single_terms(objective: Objective) -> dict[str, tuple[float, Objective]]:
    """Return the weight of each term, and an objective with only this term.

    The keys are the names of the terms. Terms with weight 0 are left out.
    """
    none = replace(objective, sft_weight=1.0, divergence_weight=0.0, span_weight=0.0, policy_gradient=None, pretraining=None)
    found: dict[str, tuple[float, Objective]] = {}
    if objective.sft_weight:
        found["sft"] = objective.sft_weight, replace(none, sft_weight=objective.sft_weight)
    if objective.uses_divergence:
        weight = objective.divergence_weight
        found["divergence"] = weight, replace(none, sft_weight=0.0, divergence_weight=weight)
    if objective.uses_spans:
        found["span"] = objective.span_weight, replace(none, sft_weight=0.0, span_weight=objective.span_weight)
    if (gradient := objective.policy_gradient) is not None:
        found["policy_gradient"] = gradient.weight, replace(none, sft_weight=0.0, policy_gradient=gradient)
    if (text := objective.pretraining) is not None:  # the SFT weight has no effect: `zero_terms` leaves out SFT data
        found["pretraining"] = text.weight, replace(none, pretraining=text)
    return found


def micro_batches(subject: Subject) -> Findings:
    """Check 16: loss and gradient must not depend on the size of the micro-batches.

    Loss and gradient are computed twice: with all sequences in one micro-batch, and with one sequence in each micro-batch. The
    check fails if the results differ by more than rounding can cause.
    """
    loaded = subject.loaded
    draw = loaded.draw
    whole, single = loaded.gradient, measure(loaded.learning, draw, micro_batch_size=1)
    scale = max(float(whole.values.norm()), float(single.values.norm()))
    if whole.norm <= NO_GRADIENT:
        raise NotExamined("the gradient is 0 apart from rounding")
    difference = float((whole.values - single.values).norm()) / max(scale, 1e-30)
    losses = abs(whole.loss - single.loss) / max(abs(whole.loss), abs(single.loss), 1e-12)
    limit = TOLERANCES[subject.config.training.precision]
    if not (difference > limit or losses > limit):  # a NaN is a finding of check 19
        return []
    return [
        Finding(
            what="the update depends on the size of the micro-batches",
            measured=f"with 1 sequence in each micro-batch instead of all, and without dropout, the gradient differs by "
            f"{difference:.2%} and the loss by {losses:.2%}",
            right=f"differences of at most {limit:.2%}, which rounding can cause",
            remedy="divide the sum of each term by the number of targets of the whole batch, and compute each sequence "
            "independently of the others in its batch",
        )
    ]


def exported_weights(subject: Subject) -> Findings:
    """Check 17: the exported student must be equal to the student in memory.

    The check fails if the export fails, or if the logits of the two models differ by more than rounding can cause.
    """
    exported = subject.loaded.exported
    if not exported.error and not exported.difference > exported.tolerance:
        return []
    return [
        Finding(
            what="the exported student differs from the trained one",
            measured=exported.error
            or f"its logits differ by {exported.difference:.2%} of the largest logit; this check changed the weights, which "
            f"changed the student's logits by {exported.change:.2%}",
            right=f"a difference of at most {exported.tolerance:.2%}",
            remedy="set student.lora.export to merged, and compare the dtypes of the student and of the exported weights",
        )
    ]


def schedule(subject: Subject) -> Findings:
    """Check 20: warm-up, intervals and patience must not be too long for the run.

    The check fails if the warm-up is not shorter than the run. It fails if the interval between validations (`evaluate_every`)
    or between checkpoints (`save_every`) is longer than the run. It also fails if `patience` is not below the number of
    validations: a run stops after `patience` validations without improvement.
    """
    config = subject.config
    lengths = config.training.schedule(subject.texts.num_examples)
    updates, warmup = lengths.updates, config.optimiser.warmup_updates
    found = []
    if warmup >= updates:
        peak = config.optimiser.learning_rate
        found.append(
            Finding(
                what="warm-up is as long as the run, so the peak learning rate has no effect",
                measured=f"optimiser.warmup_updates = {warmup}, training.updates = {updates}",
                right=f"a warm-up that is shorter than the run, so that the learning rate reaches {peak:g}",
                remedy="lower optimiser.warmup_updates",
            )
        )
    for name, given in (("evaluate_every", config.training.evaluate_every), ("save_every", config.training.save_every)):
        every = getattr(lengths, name)
        if every > updates:
            found.append(
                Finding(
                    what=f"training.{name} is longer than the run and has no effect",
                    measured=f"{given} = {every} updates, and the run has {updates}",
                    right=f"at most {updates} updates, or 0",
                    remedy=f"lower training.{name}, or raise training.updates",
                )
            )
    patience, validations = config.training.patience, (updates // lengths.evaluate_every if lengths.evaluate_every else 1)
    if patience is not None and patience >= validations:
        found.append(
            Finding(
                what="training.patience is longer than the run, so the run never stops early",
                measured=f"patience = {patience}, and the run has {validations} validations",
                right="a patience below the number of validations of the run",
                remedy="lower training.patience or training.evaluate_every",
            )
        )
    return found
