"""The commands: each function calls the package and prints the result as text, or as JSON with --json.

Modules that are slow to import are imported by the functions that use them, so that --help is fast.
"""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redistill.cli.output import print_json, print_lines
from redistill.errors import ConfigError, DataError

if TYPE_CHECKING:
    from redistill.config.run import Run
    from redistill.runs.run import RunResult


def is_main_process() -> bool:
    """True for the process that prints, in a job of several processes started by torchrun."""
    return os.environ.get("RANK", "0") == "0"


# --- training -----------------------------------------------------------------------------------------------------------


def demo(options: argparse.Namespace) -> None:
    from redistill.runs.demo import demo

    result = demo(options.out, fresh=options.fresh)
    if options.json:
        print_json(options, _result(result))


def run(options: argparse.Namespace) -> None:
    from redistill.reports.terminal import print_summary
    from redistill.runs.run import distill

    result = distill(_load(options), baselines=options.baseline)
    if not is_main_process():
        return
    if options.json:
        print_json(options, _result(result))
    else:
        print_summary(result.folder, options.baseline)
        print_lines(f"student: {result.model}", f"report:  {result.report}")


def train(options: argparse.Namespace) -> None:
    from redistill.runs.run import train_student

    student = train_student(_load(options))
    if is_main_process():
        _print_path(options, student, "student: ")


def sweep(options: argparse.Namespace) -> None:
    from redistill.runs.sweep import plan_sweep, run_sweep

    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be >= 1; omit it for one run per core")
    plan = plan_sweep(options.recipe, options.overrides, out=options.out, only=options.only, allow_code=options.allow_code)
    found: dict[str, Any] = {"name": plan.sweep.name, "folder": str(plan.folder)}
    if not options.dry_run:
        pages = run_sweep(plan, jobs=options.jobs)
        if options.json:
            print_json(options, {**found, "files": list(map(str, pages))})
        else:
            print_lines(*pages)
    elif options.json:
        statuses = plan.statuses()
        runs = [
            {"label": e.label, "seed": e.seed, "folder": str(e.run.folder), "status": statuses[e.run.folder]}
            for e in plan.entries
        ]
        print_json(options, {**found, "runs": runs})
    else:
        print_lines(*plan.describe())


def _load(options: argparse.Namespace) -> "Run":
    from redistill.config.run import load_config

    config = load_config(options.recipe, options.overrides, options.allow_code)
    # Not an override: it would be parsed as YAML, and a folder may have the name 1 or null.
    return config if options.out is None else dataclasses.replace(config, out=str(options.out))


def _result(result: "RunResult") -> dict[str, Any]:
    paths = {"folder": result.folder, "model": result.model, "report": result.report}
    return {**{name: str(path) for name, path in paths.items()}, "scores": result.scores}


# --- evaluation ---------------------------------------------------------------------------------------------------------


def evaluate(options: argparse.Namespace) -> None:
    from redistill.evaluation.scores import EvaluationConfig
    from redistill.models.load import ModelConfig
    from redistill.reports.terminal import print_scores
    from redistill.runs.run import evaluate_model, tokens_of

    scores = evaluate_model(
        ModelConfig(model=options.model, dtype=options.dtype),
        dict(_task(text) for text in options.data),
        EvaluationConfig(
            seeds=_seeds(options.seeds),
            temperature=options.temperature,
            top_p=options.top_p,
            no_repeat_ngram=options.no_repeat_ngram,
            batch_size=options.batch_size,
            limit=options.limit,
            metrics=tuple(options.metric) or EvaluationConfig.metrics,
        ),
        dataclasses.replace(tokens_of(options.model), **_lengths(options)),
        options.out,
        teacher=ModelConfig(model=options.teacher, dtype=options.dtype) if options.teacher else None,
        allow_code=options.allow_code,
    )
    if not is_main_process():
        return
    path = options.out / "scores.json"
    if options.json:
        print_json(options, {"path": str(path), "scores": scores})
    else:
        print_scores(scores)
        print_lines(f"scores: {path}")


def report(options: argparse.Namespace) -> None:
    from redistill.reports.report import build_report, summary_table

    path = build_report(options.run, options.baseline, options.output)
    if options.json:
        print_json(options, {"path": str(path), "summary": summary_table(options.run, options.baseline)})
    else:
        print_lines(path)


def compare(options: argparse.Namespace) -> None:
    from redistill.reports.compare import build_comparison
    from redistill.reports.terminal import print_comparison

    comparison = build_comparison(
        options.runs, options.output, baseline=options.baseline, labels=options.rows, published=options.published
    )
    if options.json:
        print_json(options, {**dataclasses.asdict(comparison), "files": list(map(str, options.output))})
    else:
        print_comparison(comparison, tables=not options.output)
        print_lines(*options.output)


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: must be integers separated by commas, such as 10,20,30") from error


def _task(text: str) -> tuple[str, str | None]:
    name, equals, path = text.partition("=")
    return name, path if equals else None


def _lengths(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `TokenizeConfig` that the command line sets."""
    given = {name: getattr(options, name) for name in ("template", "prompt_tokens", "response_tokens")}
    return {name: value for name, value in given.items() if value is not None}


# --- inspection ---------------------------------------------------------------------------------------------------------


def config(options: argparse.Namespace) -> None:
    import yaml

    from redistill.config.run import encode_run, load_config
    from redistill.config.schema import SCHEMA

    tree = {"schema": SCHEMA, **encode_run(load_config(options.recipe, options.overrides, options.allow_code))}
    if options.json:
        print_json(options, {"config": tree})
    else:
        print_lines(yaml.safe_dump(tree, sort_keys=False).removesuffix("\n"))


def estimate(options: argparse.Namespace) -> None:
    from redistill.estimate import estimate
    from redistill.estimate.table import print_estimate

    if options.row is None:
        from redistill.config.run import load_config

        run = load_config(options.recipe, options.overrides, options.allow_code)
    else:
        from redistill.runs.sweep import plan_sweep

        plan = plan_sweep(options.recipe, options.overrides, only=[options.row], allow_code=options.allow_code)
        run = next(entry.run for entry in plan.entries if entry.label == options.row)
    found = estimate(run)
    if options.json:
        print_json(options, found.as_json())
    else:
        print_estimate(found)


def methods(options: argparse.Namespace) -> None:
    from redistill.cli import tables

    if options.json:
        print_json(options, {"matrix": tables.matrix()} if options.matrix else tables.methods_as_json())
    elif options.matrix:
        tables.print_matrix()
    else:
        tables.print_methods()


def data_check(options: argparse.Namespace) -> None:
    from redistill.config.plugins import External
    from redistill.config.scoring import load_external, named_tasks
    from redistill.data.check import check_data, described
    from redistill.data.tokenize import TokenizeConfig

    tokenizer, tokens, sources, tests = None, TokenizeConfig(), [(source, "train") for source in options.sources], {}
    if options.configured is not None:
        from redistill.config.run import load_config

        data = load_config(options.configured, [], options.allow_code).data
        held = [] if data.validation is None else [(data.validation, "validation")]
        tokens, tests = data.tokens, data.tests
        sources = sources or [*((source, "train") for source in data.train), *held]
    if not sources:
        raise ConfigError("data check: no data to check; pass a path, or --recipe RECIPE")
    if options.tokenizer is not None:
        from redistill.models.load import ModelConfig, load_tokenizer

        tokenizer = load_tokenizer(ModelConfig(model=options.tokenizer))
    tokens = dataclasses.replace(tokens, **_lengths(options))
    tests = {**tests, **dict(_task(text) for text in options.against)}
    load_external((("--against", name) for name in tests), External.of(options.allow_code))
    checks = check_data(sources, named_tasks(tests), tokenizer=tokenizer, tokens=tokens)
    if options.json:
        print_json(options, {"sources": [check.as_json() for check in checks]})
    else:
        print_lines(*described(checks))
    faulty = sum(not check.is_sound for check in checks)
    if faulty:
        raise DataError(f"data check: {faulty} of {len(checks)} sources have faults; fix or remove the listed rows")


def fetch(options: argparse.Namespace) -> None:
    from redistill.models.fetch import fetch_smollm2

    _print_path(options, fetch_smollm2(options.to or Path("models") / options.name))


def _print_path(options: argparse.Namespace, path: Path, label: str = "") -> None:
    """Print the path that is the result of a command."""
    if options.json:
        print_json(options, {"path": str(path)})
    else:
        print_lines(f"{label}{path}")
