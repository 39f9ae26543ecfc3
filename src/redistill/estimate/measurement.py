"""Measures models with few layers, and extrapolates to the models of the run.

This module measures the seconds and the memory of each part of one update and of one validation.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from redistill.estimate.recorder import Cost, Recorder, Role
from redistill.estimate.sample_run import Sample
from redistill.estimate.shallow import Blueprint
from redistill.models.families import body_module
from redistill.models.load import end_token_ids, parameter_bytes, parameter_count
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.models import Models
from redistill.runs.opened import OpenRun, assemble, make_accelerator
from redistill.training.loop import gradients
from redistill.training.optimiser import clip_gradients
from redistill.training.parts import Learner
from redistill.training.progress import Progress

FEW, MORE = 1, 3


class Layers(NamedTuple):
    """Numbers of layers of student and teacher.

    `teacher` is 0 if no teacher runs in this process.
    """

    student: int
    teacher: int


def extrapolated(found: Mapping[Layers, float], whole: Layers, *models: Role) -> float:
    """Extrapolate a cost from models with few layers to the models of the run.

    The cost is assumed to be an affine function of the number of layers of each model in `models`. It is assumed not to depend
    on other models.

    Args:
        found: The measured costs by numbers of layers.  In one measurement, every model has one layer (`FEW`); in each of the
            others, one model has three layers (`MORE`).  Noise is assumed to increase a cost, never to reduce it.
        whole: Numbers of layers in the run.
        models: The models on whose layers the cost depends.

    Returns:
        The cost with the numbers of layers in `whole`.

    Example:
        >>> extrapolated({Layers(1, 1): 10.0, Layers(3, 1): 14.0, Layers(1, 3): 12.0}, Layers(30, 4), "student", "teacher")
        71.0
    """
    few = total = min(cost for layers, cost in found.items() if all(getattr(layers, role) <= FEW for role in models))
    for role in models:
        more = min((cost for layers, cost in found.items() if getattr(layers, role) == MORE), default=few)
        total += max(0.0, more - few) / (MORE - FEW) * (getattr(whole, role) - FEW)  # noise in `few` can make this < 0
    return total


def measure(sample: Sample, prints: Mapping[Role, Blueprint], layers: Layers, recorder: Recorder) -> dict[Cost, float]:
    """Execute one update and one validation with models of `layers` layers.

    The update and the validation use the same components as the run.

    Args:
        sample: The update, with its data.
        prints: Configuration of each model.
        layers: Numbers of layers of the models.
        recorder: Records the seconds and the peak bytes.

    Returns:
        Sizes by name: numbers of weights ("student", "teacher", "trained") and bytes ("weights", "gradients", "saved").
        "saved" is the size of weights in this measurement that the run does not have, because it quantises a model or has no
        teacher in this process. Seconds and peak bytes are in `recorder.costs`.
    """
    run = sample.run
    student, teacher = prints["student"].shallow(layers.student, run.seed), None
    if run.teacher is not None:
        teacher = prints.get("teacher", prints["student"]).shallow(max(FEW, layers.teacher), run.seed + 1)
    size = min(blueprint.config.get_text_config().vocab_size for blueprint in prints.values())
    tokenizer, end_ids = sample.tokenizer, end_token_ids(student, sample.tokenizer)
    models = Models(teacher=teacher, student=student, tokenizer=tokenizer, vocabulary=size, end_ids=end_ids)
    opened = assemble(run, make_accelerator(run.training.precision), models, sample.data, Progress(enabled=False))
    opened = replace(opened, corpus=sample.corpus)
    learned = [parameter for parameter in opened.student.parameters() if parameter.requires_grad]
    teaches = teachers_saved = 0 if teacher is None else parameter_bytes(teacher)
    if teacher is not None and layers.teacher:
        teachers_saved = round(prints["teacher"].bytes_saved(teacher))
    sizes = {
        "student": parameter_count(student),
        "teacher": parameter_count(teacher) if teacher is not None and layers.teacher else 0,
        "trained": sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad),
        "weights": parameter_bytes(opened.student) + teaches,
        "gradients": sum(parameter.nbytes for parameter in learned),
        "saved": prints["student"].bytes_saved(student) + teachers_saved,
    }
    for parameter in learned:
        parameter.grad = torch.zeros_like(parameter)
    _update_and_validate(opened, sample.step, recorder)
    return {Cost("size", name): size for name, size in sizes.items()}


def _update_and_validate(opened: OpenRun, step: int, recorder: Recorder) -> None:
    """Execute one update and one validation as in a run.

    Nothing is logged, and nothing is checked for anomalies.
    """
    evaluator = build_evaluator(opened, opened.models.student)
    recorder.watch(opened.engine, "generate", "write")
    recorder.watch(evaluator.engine, "generate", "answer")
    recorder.watch(opened.student, "forward", "vocabulary pass")
    recorder.watch(body_module(opened.models.student), "forward", "", "student")
    if opened.models.teacher is not None:
        recorder.watch(opened.teacher, "generate", "write")
        recorder.watch(body_module(opened.models.teacher), "forward", "", "teacher")
    parts = build_parts(opened, evaluator)
    learner, max_norm = parts.learner, opened.config.optimiser.max_grad_norm
    _step(learner, max_norm)  # gives the optimiser its state, as before all updates but the first
    with recorder.region("revise"):
        draw = learner.objective.select(parts.policy.draw(step))
    with recorder.region("student learns", "student"):
        gradients(draw, parts, step)
    with recorder.region("optimiser", "student"):
        _step(learner, max_norm)
    if learner.teacher is not None:
        learner.teacher.release()
    with recorder.region("validate"):
        parts.validate()


def _step(learner: Learner, max_norm: float) -> None:
    for parameters in filter(None, (list(learner.student.model.parameters()), learner.clip_parameters)):
        clip_gradients(parameters, max_norm)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
