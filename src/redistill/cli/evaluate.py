"""The command `redistill evaluate`."""

import argparse
from typing import TYPE_CHECKING

from redistill.cli.commands import is_main_process
from redistill.cli.options import named_task, with_lengths
from redistill.cli.output import print_json, print_lines
from redistill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redistill.records import Json


def evaluate(options: argparse.Namespace) -> None:
    """Score a model on instruction-following test sets."""
    if not options.data and not options.harness:
        raise ConfigError("evaluate: needs --data TASK[=PATH], --harness TASK, or both")
    for name in ("teacher", "draft_for", "engine"):
        if getattr(options, name) == "":
            raise ConfigError(f"evaluate: --{name.replace('_', '-')} is empty; give a value, or leave the option out")
    if options.teacher and options.draft_for:
        raise ConfigError("evaluate: --draft-for names the teacher; remove --teacher")
    scores = _evaluate(options) if options.data else {}
    harness = _harness(options) if options.harness else {}
    if not is_main_process():
        return
    written = {"scores": options.out / "scores.json"} if options.data else {}
    written |= {"harness": options.out / "harness.json"} if options.harness else {}
    if options.json:
        found = {"scores": scores} | ({"harness": harness} if options.harness else {})
        print_json(options, {"path": str(next(iter(written.values()))), **found})
        return
    from redistill.reports.terminal import print_acceptance, print_harness, print_scores

    if options.data:
        print_scores(scores)
    if options.draft_for:
        print_acceptance(scores)
    if options.harness:
        print_harness(harness)
    print_lines(*(f"{name}: {path}" for name, path in written.items()))


def _evaluate(options: argparse.Namespace) -> "Mapping[str, Json]":
    """Score a model on the test sets of the option --data."""
    from redistill.config.engines import decode_engine
    from redistill.evaluation.scores import EvaluationConfig
    from redistill.models.load import ModelConfig
    from redistill.runs.run import evaluate_model
    from redistill.runs.templates import tokens_of

    teacher = options.draft_for or options.teacher
    return evaluate_model(
        ModelConfig(model=options.model, revision=options.revision, dtype=options.dtype),
        dict(named_task(text) for text in options.data),
        EvaluationConfig(
            seeds=options.seeds,
            temperature=options.temperature,
            top_p=options.top_p,
            no_repeat_ngram=options.no_repeat_ngram,
            batch_size=options.batch_size,
            limit=options.limit,
            metrics=tuple(options.metric) or EvaluationConfig.metrics,
            teacher_forced=("acceptance",) if options.draft_for else (),
        ),
        with_lengths(tokens_of(options.model), options),
        options.out,
        teacher=ModelConfig(model=teacher, dtype=options.dtype) if teacher else None,
        allow_code=[name for name in options.allow_code if name not in _tasks_of_harness(options)],
        engine=decode_engine(options.engine) if options.engine else None,
    )


def _harness(options: argparse.Namespace) -> "Mapping[str, Json]":
    """Score a model on the tasks of the option --harness."""
    from redistill.models.load import ModelConfig
    from redistill.runs.harness import evaluate_harness

    return evaluate_harness(
        ModelConfig(model=options.model, revision=options.revision, dtype=options.dtype),
        _tasks_of_harness(options),
        options.out,
        limit=options.limit,
        batch_size=options.batch_size,
        allow_code=options.allow_code,
    )


def _tasks_of_harness(options: argparse.Namespace) -> list[str]:
    return [name for text in options.harness for name in text.split(",") if name]
