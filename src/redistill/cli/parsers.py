"""The arguments of every command.

This module imports no module that takes long to import, so that --help is fast. A help page has at most 40 lines of 80 columns,
and ends with one example.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import redistill
from redistill.cli import commands, evaluate, recipes
from redistill.cli.completion import add_completion, complete
from redistill.cli.configuring import add_config, with_action
from redistill.cli.init import add_init
from redistill.cli.inspection import add_inspect
from redistill.cli.judging import add_judge
from redistill.cli.options import (
    RECIPE,
    Group,
    Parser,
    add_actions,
    add_command,
    add_json,
    add_lengths,
    add_private,
    add_recipe,
    add_repeatable,
    add_run,
    allow_code,
    allow_host,
    help_formatter,
)
from redistill.cli.values import count, finite_number, path, path_text, seeds, whole_number
from redistill.cli.watching import add_watch
from redistill.config.other_tools import option_hint

EXIT_CODES = """\
exit codes:
  0, 1        success, failure
  2           invalid input: arguments, recipe, data, model or folder
  75          temporary failure, such as a full disk or a folder in use; retry
  130, 143    interrupted by SIGINT (Ctrl-C) or SIGTERM; the command resumes
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line.

    Unlike argparse alone, this function accepts overrides (section.field=value) after options. If an option
    exists only in another tool, the error message names the replacement.

    Args:
        arguments: The arguments, without the name of the program. If None, the arguments of this process are used.

    Returns:
        The options of the command. The attribute `command` is the function that runs the command.

    Raises:
        SystemExit: code 0 after --help and --version, code 2 for invalid arguments.
    """
    parser = build_parser()
    complete(parser)
    given = with_action(sys.argv[1:] if arguments is None else arguments)
    for argument in given[1:]:
        if hint := option_hint(given[0], argument):
            parser.error(f"{argument}: no such option of {given[0]}; {hint}")
    options, rest = parser.parse_known_args(given)
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") or "=" not in text for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `redistill` with all commands."""
    parser = Parser(
        prog="redistill",
        formatter_class=help_formatter,
        description="Knowledge distillation of language models: MGSR and its baselines.",
        epilog=f"{EXIT_CODES}example: redistill run smollm2-dolly --out runs/first",
    )
    parser.add_argument("--version", action="version", version=f"redistill {redistill.__version__}")
    group = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in (
        _demo,
        add_init,
        _run,
        _train,
        _cache_teacher,
        _sweep,
        _evaluate,
        _report,
        _compare,
        add_judge,
        add_config,
        _estimate,
        _doctor,
        add_inspect,
        add_watch,
        _methods,
        _recipes,
        _data,
        _models,
        _export,
        _chat,
        add_completion,
    ):
        add(group)
    return parser


# --- training -----------------------------------------------------------------------------------------------------------


def _demo(group: Group) -> None:
    parser = add_command(group, "demo", commands.demo, "redistill demo --out runs/demo")
    parser.add_argument("--out", type=path, default=Path("runs/demo"), help="output folder (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="first delete the teacher and students of an earlier demo")
    add_private(parser)
    add_json(parser)


def _run(group: Group) -> None:
    parser = add_command(group, "run", commands.run, "redistill run smollm2-dolly method=kd --out runs/kd")
    add_run(parser)
    add_repeatable(parser, "--baseline", "RUN", "run folder to compare with", type=path)
    text = "only execute one update, one validation, one save and one load, in a temporary folder"
    parser.add_argument("--smoke", action="store_true", help=text)
    add_json(parser)


def _train(group: Group) -> None:
    parser = add_command(group, "train", commands.train, "redistill train smollm2-dolly training.updates=50")
    add_run(parser)
    add_json(parser)


def _cache_teacher(group: Group) -> None:
    example = "redistill cache-teacher smollm2-dolly method=kd --out kd"
    parser = add_command(group, "cache-teacher", commands.cache_teacher, example)
    add_recipe(parser, RECIPE, "settings to change, such as teacher.cache_dtype=bfloat16")
    parser.add_argument("--out", type=Path, required=True, help="output folder; set teacher.path to it in later runs")
    parser.add_argument(
        "--stream-layers",
        action="store_true",
        help="read the teacher's layers from disk one after another, for a teacher that is larger than the memory",
    )
    add_private(parser)
    add_json(parser)


def _sweep(group: Group) -> None:
    parser = add_command(group, "sweep", commands.sweep, "redistill sweep table1-toy --only sft --only mgsr --jobs 2")
    add_recipe(parser, "a YAML file, or the name of a sweep (table1-toy)", "settings to change in all runs of the sweep")
    allow_host(parser)
    parser.add_argument("--out", type=path, help="output folder (default: runs/NAME)")
    parser.add_argument("--jobs", type=count, metavar="N", help="number of concurrent runs (default: one per core; 1 on a GPU)")
    text = "local (default), ray or ray=ADDRESS (a Ray cluster), or slurm (write job scripts)"
    parser.add_argument("--on", default="local", metavar="WHERE", help=text)
    add_repeatable(parser, "--only", "LABEL", "start only the runs of the sweep that have this label")
    add_private(parser)
    parser.add_argument("--dry-run", action="store_true", help="validate the sweep and list its runs without running them")
    add_json(parser)


# --- evaluation ---------------------------------------------------------------------------------------------------------


def _evaluate(group: Group) -> None:
    parser = add_command(
        group, "evaluate", evaluate.evaluate, "redistill evaluate runs/kd --data dolly=test.jsonl --out scores/kd"
    )
    parser.usage = "%(prog)s MODEL (--data|--harness) TASK --out OUT [options]"  # the generated usage would list all options
    parser.add_argument("model", type=path_text, metavar="MODEL", help="a hub name, model folder, .gguf file or run folder")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model (default: main)")
    add_repeatable(parser, "--data", "TASK[=PATH]", "test set, from the hub if PATH is omitted", type=path_text)
    add_repeatable(parser, "--harness", "TASK", "a task, or a task file, of lm-evaluation-harness", type=path_text)
    parser.add_argument("--engine", metavar="YAML", help="the engine that generates answers (default: local)")
    allow_host(parser)
    add_repeatable(parser, "--metric", "NAME", "metric; the first one ranks the models")
    allow_code(parser)
    parser.add_argument("--out", type=path, required=True, help="output folder for responses and scores.json")
    add_private(parser)
    parser.add_argument(
        "--teacher", type=path_text, metavar="MODEL", help="also compute KL(teacher || model) on the gold answers"
    )
    text = "compute what --teacher computes, and the acceptance rate in speculative decoding"
    parser.add_argument("--draft-for", type=path_text, metavar="MODEL", help=text)
    parser.add_argument("--limit", type=whole_number, metavar="N", help="use only the first N prompts of each test set")
    parser.add_argument(
        "--seeds", type=seeds, default="10,20,30,40,50", metavar="N,N", help="sampling seeds (default: %(default)s)"
    )
    add_lengths(parser, "the run's")
    parser.add_argument("--temperature", type=finite_number, default=1.0, metavar="X", help="0 is greedy decoding (default: 1)")
    parser.add_argument(
        "--top-p", type=finite_number, default=1.0, metavar="X", help="probability mass of top-p sampling (default: 1)"
    )
    text = "forbid repeated N-grams; 0 disables this (default: 6)"
    parser.add_argument("--no-repeat-ngram", type=whole_number, default=6, metavar="N", help=text)
    parser.add_argument("--batch-size", type=whole_number, default=16, metavar="N", help="prompts per batch (default: 16)")
    text, dtypes = "dtype: float32 (default), bfloat16 or auto", ("float32", "bfloat16", "auto")
    parser.add_argument("--dtype", choices=dtypes, default="float32", metavar="TYPE", help=text)
    add_json(parser)


def _report(group: Group) -> None:
    parser = add_command(group, "report", commands.report, "redistill report runs/mgsr --baseline runs/sft")
    parser.add_argument("run", type=path, metavar="RUN", help="a run folder")
    add_repeatable(parser, "--baseline", "RUN", "run folder to compare with", type=path)
    parser.add_argument("-o", "--output", type=path, metavar="FILE", help="output file (default: RUN/report.html)")
    add_json(parser)


def _compare(group: Group) -> None:
    parser = add_command(
        group, "compare", commands.compare, "redistill compare runs/sft runs/mgsr --baseline sft -o compare.html"
    )
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="a run folder, or the folder of a sweep")
    text = "output file: .html, .md, .tex or .csv (repeatable; default: print tables)"
    parser.add_argument("-o", "--output", type=path, action="append", default=[], metavar="FILE", help=text)
    text = "run that all other runs are compared with (default: the baseline of the sweep, or the first run)"
    parser.add_argument("--baseline", type=path_text, metavar="LABEL|RUN", help=text)
    text = "show only the rows with these labels, in this order"
    parser.add_argument("--rows", nargs="+", default=[], metavar="LABEL", help=text)
    text = "also show these tables of the MGSR paper, such as table1-gpt2"
    parser.add_argument("--published", nargs="+", default=[], metavar="TABLE", help=text)
    add_json(parser)


# --- inspection ---------------------------------------------------------------------------------------------------------


def _estimate(group: Group) -> None:
    parser = add_command(group, "estimate", commands.estimate, "redistill estimate smollm2-dolly training.batch_size=8")
    add_recipe(parser, f"{RECIPE}; or a sweep if --row is set", "settings to change")
    parser.add_argument("--row", metavar="LABEL", help="estimate the first run with this label in the sweep")
    text = "also calculate the memory of each of N processes, replicated and sharded"
    parser.add_argument("--processes", type=count, metavar="N", help=text)
    text = "memory of the device of a process in GB, for --processes (default: this GPU)"
    parser.add_argument("--memory", type=finite_number, metavar="GB", help=text)
    add_json(parser, "print JSON, in bytes and seconds, instead of tables")


def _doctor(group: Group) -> None:
    parser = add_command(group, "doctor", commands.doctor, "redistill doctor smollm2-dolly")
    text = "a YAML file, a name from `recipes list`, a run.json, or a sweep if --row is set (default: check this machine)"
    add_recipe(parser, text, "settings to change", is_optional=True)
    allow_host(parser)
    parser.add_argument("--row", metavar="LABEL", help="check the first run with this label in the sweep")
    add_json(parser)


def _methods(group: Group) -> None:
    parser = add_command(group, "methods", commands.methods, "redistill methods --matrix")
    parser.add_argument("--matrix", action="store_true", help="show the supported teachers and engines of each method")
    add_json(parser)


def _recipes(group: Group) -> None:
    actions = add_actions(group, "recipes", "List, show or copy the recipes of the package.", "redistill recipes list")
    add_json(add_command(actions, "list", recipes.list_recipes, "redistill recipes list"))
    show = add_command(actions, "show", recipes.show, "redistill recipes show smollm2-dolly")
    copy = add_command(actions, "copy", recipes.copy, "redistill recipes copy smollm2-dolly --out mine.yaml")
    for parser in (show, copy):
        parser.add_argument("name", metavar="NAME", help="name of a recipe of the package")
        add_json(parser)
    copy.add_argument("--out", type=path, metavar="FILE", help="output file (default: NAME.yaml)")


def _data(group: Group) -> None:
    actions = add_actions(group, "data", "Inspect data sets, or copy sample rows.", "redistill data check mine.jsonl")
    parser = add_command(actions, "sample", recipes.copy_sample, "redistill data sample --out sample")
    parser.add_argument("--out", type=path, default=Path("sample"), help="output folder (default: %(default)s)")
    add_json(parser)
    parser = add_command(
        actions, "check", commands.data_check, "redistill data check mine.jsonl --against dolly=dolly/test.jsonl"
    )
    parser.add_argument(
        "sources", type=path_text, nargs="*", metavar="PATH", help="training data: a file, a folder or a hub data set"
    )
    add_repeatable(
        parser, "--against", "TASK[=PATH]", "test set to compare with the data, to find rows that are in both", type=path_text
    )
    text = "check the data of this recipe, with its test sets, template and length limits"
    parser.add_argument("--recipe", type=path, dest="configured", metavar="RECIPE", help=text)
    allow_code(parser)
    parser.add_argument(
        "--tokenizer", type=path_text, metavar="MODEL", help="also measure lengths in tokens, with the tokenizer of this model"
    )
    add_lengths(parser, "the recipe's")
    add_json(parser)


def _models(group: Group) -> None:
    actions = add_actions(group, "models", "Download models.", "redistill models fetch smollm2")
    parser = add_command(actions, "fetch", commands.fetch, "redistill models fetch smollm2 --to models/smollm2")
    parser.add_argument("name", choices=["smollm2"], help="smollm2: SmolLM2-135M-Instruct")
    parser.add_argument("--to", type=path, metavar="DIR", help="output folder (default: models/NAME)")
    add_json(parser)


# --- deployment ---------------------------------------------------------------------------------------------------------


def _export(group: Group) -> None:
    parser = add_command(group, "export", commands.export, "redistill export runs/kd --to ollama")
    parser.add_argument("model", type=path_text, metavar="RUN|MODEL", help="a run folder, model folder, hub name or .gguf file")
    targets = ("transformers", "vllm", "adapter", "gguf", "ollama", "scores")
    text = (
        "transformers (also for vLLM), vllm (for the engine vllm), adapter (LoRA, for PEFT), gguf (llama.cpp), ollama, or "
        "scores (of a run or a sweep, without texts, for `redistill compare`)"
    )
    parser.add_argument("--to", choices=targets, required=True, metavar="TARGET", help=text)
    parser.add_argument("--out", type=path, metavar="DIR", help="new output folder (default: RUN/export/TARGET)")
    text = "f16, bf16 or f32 (default: that of the model; f16 for GGUF)"
    parser.add_argument("--dtype", choices=["f16", "bf16", "f32"], metavar="TYPE", help=text)
    text = "upload the folder to this repository on the hub; a repository that does not exist is created as private"
    parser.add_argument("--push", metavar="OWNER/NAME", help=text)
    allow_code(parser)
    add_json(parser)


def _chat(group: Group) -> None:
    parser = add_command(group, "chat", commands.chat, "redistill chat runs/kd --teacher")
    parser.add_argument("model", type=path_text, metavar="RUN|MODEL", help="a run folder, model folder, hub name or .gguf file")
    text = "also print the answers of this model (default: the teacher of the run)"
    parser.add_argument("--teacher", type=path_text, nargs="?", const="", metavar="MODEL", help=text)
    text = "0 is greedy decoding (default: %(default)s)"
    parser.add_argument("--temperature", type=finite_number, default=0.7, metavar="X", help=text)
    text = "probability mass of top-p sampling (default: 1)"
    parser.add_argument("--top-p", type=finite_number, default=1.0, metavar="X", help=text)
    text = "maximum length of an answer in tokens (default: %(default)s)"
    parser.add_argument("--max-tokens", type=count, default=512, metavar="N", help=text)
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="seed of sampling (default: 0)")
    text, dtypes = "dtype: auto (default), float32 or bfloat16", ("auto", "float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default="auto", metavar="TYPE", help=text)
    add_json(parser)
