"""The parser class of all commands, and options that several commands share.

The module `parsers` uses them to define the commands.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from redistill.cli.values import path, whole_number
from redistill.config.shown import line

if TYPE_CHECKING:
    from redistill.data.tokenize import TokenizeConfig

WIDTH = 80
RECIPE = "a YAML file, a name from `recipes list`, or a run.json"

Command = Callable[[argparse.Namespace], None]

Group: TypeAlias = "argparse._SubParsersAction[Parser]"
"""The subcommands of a parser, as returned by `add_subparsers`."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line of limited length, with secrets masked."""

    def error(self, message: str) -> NoReturn:
        """Print the message as one line, and exit with code 2."""
        super().error(line(message))


def help_formatter(prog: str) -> argparse.HelpFormatter:
    """Return a formatter for help pages, with lines of at most 80 columns."""
    return argparse.RawDescriptionHelpFormatter(prog, width=min(WIDTH, shutil.get_terminal_size().columns) - 2)


def add_command(group: Group, name: str, command: Command, example: str) -> Parser:
    """Add a command to `group`, and return the parser of the command.

    `command` is the function that runs the command. The help page shows the docstring of this function, and `example`.
    """
    parser = _page(group, name, command.__doc__ or "", example)
    parser.set_defaults(command=command)
    return parser


def add_actions(group: Group, name: str, text: str, example: str) -> Group:
    """Add a command with subcommands to `group`; return the group of subcommands.

    The help page shows the description `text` and the command line `example`.
    """
    return _page(group, name, text, example).add_subparsers(title="actions", required=True, metavar="ACTION")


def _page(group: Group, name: str, text: str, example: str) -> Parser:
    listed = text[:1].lower() + text[1:].rstrip(".")
    return group.add_parser(name, help=listed, description=text, epilog=f"example: {example}", formatter_class=help_formatter)


def add_run(parser: Parser) -> None:
    """Add the arguments of a command that trains: a recipe and the run folder."""
    add_recipe(parser, RECIPE, "settings to change, such as training.updates=50")
    allow_host(parser)
    parser.add_argument("--out", type=path, help="run folder (default: `out` of the recipe, or runs/NAME)")
    add_private(parser)


def add_recipe(parser: Parser, recipe: str, overrides: str, *, is_optional: bool = False) -> None:
    """Add the arguments RECIPE and section.field=value.

    `recipe` and `overrides` are their help texts.
    """
    parser.add_argument("recipe", type=path, metavar="RECIPE", nargs="?" if is_optional else None, help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help=overrides)
    allow_code(parser)


def allow_host(parser: Parser) -> None:
    """Add the option --allow-host, which permits sending data to a server."""
    text = "server to which data may be sent"
    add_repeatable(parser, "--allow-host", "HOST", text)


def allow_code(parser: Parser) -> None:
    """Add the option --allow-code, which permits the import of a user's module.

    The module defines metrics, policies or other classes, which recipes refer to as `MODULE:Name`.
    """
    add_repeatable(parser, "--allow-code", "MODULE", "allow importing this Python module, for names of the form MODULE:Name")


def add_repeatable(
    parser: Parser, option: str, metavar: str, text: str, *, type: Callable[[str], object] = str, required: bool = False
) -> None:
    """Add an option that can be given several times; the values form a list."""
    text = f"{text} (repeatable)"
    parser.add_argument(option, type=type, action="append", default=[], required=required, metavar=metavar, help=text)


def add_lengths(parser: Parser, default: str) -> None:
    """Add the options of the prompt template and the length limits.

    `default` is the default value that the help texts state, such as "the run's".
    """
    choices = ["auto", "alpaca", "chat"]
    text = f"auto, alpaca or chat (default: {default}, else auto)"
    parser.add_argument("--template", choices=choices, metavar="NAME", help=text)
    for name in ("prompt", "response"):
        text = f"{name} limit in tokens (default: {default}, else 256)"
        parser.add_argument(f"--{name}-tokens", type=whole_number, metavar="N", help=text)


def add_private(parser: Parser) -> None:
    """Add the option --private, for files that other users cannot read."""
    text = "create files that only you can read"
    parser.add_argument("--private", action="store_true", help=text)


def add_json(parser: Parser, text: str = "print JSON instead of text") -> None:
    """Add the option --json, whose help text is `text`."""
    parser.add_argument("--json", action="store_true", help=text)


def named_task(text: str) -> tuple[str, str | None]:
    """Return the name of a test set and its path, from the text NAME or NAME=PATH."""
    name, equals, path = text.partition("=")
    return name, path if equals else None


def with_lengths(tokens: "TokenizeConfig", options: argparse.Namespace) -> "TokenizeConfig":
    """Return a copy of `tokens` with the values that are given on the command line.

    The options --template, --prompt-tokens and --response-tokens give these values. If one of these options is not given,
    the copy has the same value as `tokens`.
    """
    given = {name: getattr(options, name) for name in ("template", "prompt_tokens", "response_tokens")}
    return dataclasses.replace(tokens, **{name: value for name, value in given.items() if value is not None})
