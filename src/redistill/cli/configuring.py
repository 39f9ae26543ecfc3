"""The command `redistill config` with its actions and arguments."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from redistill.cli.options import RECIPE, Group, add_actions, add_command, add_json, add_recipe, allow_code
from redistill.cli.output import print_json, print_lines
from redistill.cli.values import path

ACTIONS = ("show", "schema", "diff")
RUN = "a YAML file, a name from `recipes list`, a run.json, or a run folder"


def add_config(group: Group) -> None:
    """Add the command `config` with its actions to a group of commands."""
    text = "Print a recipe with all defaults, or compare recipes."
    actions = add_actions(group, "config", text, "redistill config smollm2-dolly method=gkd")
    parser = add_command(actions, "show", show, "redistill config show smollm2-dolly method=gkd")
    add_recipe(parser, RECIPE, "settings to change")
    add_json(parser, "print JSON instead of YAML; `redistill run` accepts both")
    parser = add_command(actions, "schema", schema, "redistill config schema")
    parser.add_argument("--sweep", action="store_true", help="print the schema of a sweep instead of that of a run")
    add_json(parser, "add the version of the output to the schema")
    parser = add_command(actions, "diff", diff, "redistill config diff smollm2-dolly smollm2-small")
    parser.add_argument("left", type=path, metavar="A", help=RUN)
    parser.add_argument("right", type=path, metavar="B", help="same as A")
    allow_code(parser)
    add_json(parser)


def with_action(words: Sequence[str]) -> Sequence[str]:
    """Return the words of a command line, with the action that `config RECIPE` omits.

    Args:
        words: The words of the command line, without the name of the program.

    Example:
        >>> with_action(["config", "smollm2-dolly"])
        ['config', 'show', 'smollm2-dolly']
    """
    if list(words[:1]) != ["config"] or len(words) == 1 or words[1] in (*ACTIONS, "-h", "--help"):
        return words
    return ["config", "show", *words[1:]]


def show(options: argparse.Namespace) -> None:
    """Validate a recipe and print it with all defaults."""
    import yaml

    from redistill.config.run import encode_run, load_config
    from redistill.config.schema import SCHEMA

    tree = {"schema": SCHEMA, **encode_run(load_config(options.recipe, options.overrides, options.allow_code))}
    if options.json:
        print_json(options, {"config": tree})
    else:
        print_lines(yaml.safe_dump(tree, sort_keys=False).removesuffix("\n"))


def schema(options: argparse.Namespace) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from redistill.config.json_schema import run_schema
    from redistill.runs.sweep_recipe import sweep_schema

    document = sweep_schema() if options.sweep else run_schema()
    if options.json:
        print_json(options, document)
    else:
        print_lines(json.dumps(document, indent=1, ensure_ascii=False))


def diff(options: argparse.Namespace) -> None:
    """Print the settings in which two recipes or runs differ."""
    from redistill.config.diff import config_diff
    from redistill.config.run import load_config
    from redistill.config.shown import line

    left, right = (load_config(_recipe(each), (), options.allow_code) for each in (options.left, options.right))
    found = config_diff(left, right)
    if options.json:
        print_json(options, {"differences": [each._asdict() for each in found]})
    else:
        texts = [f"{each.name}: {json.dumps(each.left)} -> {json.dumps(each.right)}" for each in found]
        print_lines(*(map(line, texts) if texts else ["no setting differs"]))


def _recipe(path: Path) -> Path:
    """Return the run.json of a run folder; any other path is returned unchanged."""
    return path / "run.json" if path.is_dir() and (path / "run.json").is_file() else path
