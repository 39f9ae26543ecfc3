"""The command `redistill inspect` with its arguments."""

import argparse
from typing import TYPE_CHECKING

from redistill.cli.options import Group, Parser, add_actions, add_command, add_json, allow_code
from redistill.cli.output import print_json
from redistill.cli.values import count, finite_number, index, path
from redistill.errors import ConfigError

if TYPE_CHECKING:
    from redistill.inspection.subject import Subject

RUN = "a run folder"
RUN_OR_RECIPE = "a run folder, a YAML file, or a name from `recipes list`"


def add_inspect(group: Group) -> None:
    """Add the command `inspect` with its actions to a group of commands."""
    text = "Show training examples, corrections, intervals and answers."
    actions = add_actions(group, "inspect", text, "redistill inspect revision runs/mgsr --step 11")
    _sample(actions)
    _revision(actions)
    _clip(actions)
    _prompt(actions)


def _sample(group: Group) -> None:
    parser = add_command(group, "sample", inspect_sample, "redistill inspect sample smollm2-sample --row 3")
    _add_subject(parser)
    parser.add_argument("--row", type=index, default=0, metavar="N", help="index of the training example (default: 0)")
    add_json(parser)


def _revision(group: Group) -> None:
    parser = add_command(group, "revision", inspect_revision, "redistill inspect revision runs/mgsr --step 11")
    _add_subject(parser)
    parser.add_argument("--step", type=count, metavar="N", help="show the corrections that update N has logged")
    text = "generate and correct new drafts with the present student (before training, for a recipe)"
    parser.add_argument("--live", action="store_true", help=text)
    text = "number of drafts with --live (default: the batch size)"
    parser.add_argument("--prompts", type=count, metavar="N", help=text)
    _add_checkpoint(parser)
    add_json(parser)


def _clip(group: Group) -> None:
    parser = add_command(group, "clip", inspect_clip, "redistill inspect clip runs/mgsr --row 3 --position 5")
    _add_subject(parser)
    parser.add_argument("--row", type=index, default=0, metavar="N", help="index of the training example (default: 0)")
    text = "index of the token of the reference answer (default: 0)"
    parser.add_argument("--position", type=index, default=0, metavar="N", help=text)
    text = "maximum number of kept classes, and of other classes, to show (default: 15)"
    parser.add_argument("--top", type=count, default=15, metavar="N", help=text)
    _add_checkpoint(parser)
    add_json(parser)


def _prompt(group: Group) -> None:
    parser = add_command(group, "prompt", inspect_prompt, 'redistill inspect prompt runs/mgsr "Name a red fruit."')
    parser.add_argument("subject", type=path, metavar="RUN", help=RUN)
    parser.add_argument("text", metavar="TEXT", help="the prompt; the template of the run renders it")
    text = "0 is greedy decoding (default: %(default)g)"
    parser.add_argument("--temperature", type=finite_number, default=0.0, metavar="X", help=text)
    text = "maximum length of an answer in tokens (default: the run's)"
    parser.add_argument("--max-tokens", type=count, metavar="N", help=text)
    _add_checkpoint(parser)
    allow_code(parser)
    add_json(parser)


def _add_subject(parser: Parser) -> None:
    parser.add_argument("subject", type=path, metavar="RUN|RECIPE", help=RUN_OR_RECIPE)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="settings to change")
    allow_code(parser)


def _add_checkpoint(parser: Parser) -> None:
    text = "use the student of checkpoint step-N (default: the newest checkpoint, else the trained student)"
    parser.add_argument("--checkpoint", type=index, metavar="N", help=text)


# --- the actions --------------------------------------------------------------------------------------------------------


def inspect_sample(options: argparse.Namespace) -> None:
    """Show a training example: its tokens, its targets and its spans."""
    from redistill.inspection import sample, terminal

    found = sample.inspect_sample(_subject(options), options.row)
    if options.json:
        print_json(options, found.as_json())
    else:
        terminal.print_sample(found)


def inspect_revision(options: argparse.Namespace) -> None:
    """Show corrections of student text: those of an update, or new ones."""
    if options.live == (options.step is not None):
        raise ConfigError("inspect revision: needs either --step N, for logged corrections, or --live, for new ones")
    if not options.live and (options.prompts is not None or options.checkpoint is not None):
        raise ConfigError("inspect revision: --prompts and --checkpoint need --live; add --live, or leave out both")
    from redistill.inspection import revision, terminal

    if options.live:
        live = revision.live_revisions(_subject(options), options.prompts, options.checkpoint)
        if options.json:
            print_json(options, live.as_json())
        else:
            terminal.print_live(live)
        return
    lines = revision.logged_revisions(options.subject, options.step)
    if options.json:
        print_json(options, {"step": options.step, "revisions": lines})
    else:
        terminal.print_revisions(lines)


def inspect_clip(options: argparse.Namespace) -> None:
    """Show the classes that DAC-KL keeps for one token of an answer."""
    from redistill.inspection import clip, terminal

    found = clip.inspect_clip(_subject(options), options.row, options.position, top=options.top, step=options.checkpoint)
    if options.json:
        print_json(options, found.as_json())
    else:
        terminal.print_clip(found)


def inspect_prompt(options: argparse.Namespace) -> None:
    """Show the answers of student and teacher, with log-probabilities."""
    from redistill.inspection import prompt, terminal

    found = prompt.inspect_prompt(
        _subject(options),
        options.text,
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        step=options.checkpoint,
    )
    if options.json:
        print_json(options, found.as_json())
    else:
        terminal.print_answers(found)


def _subject(options: argparse.Namespace) -> "Subject":
    from redistill.inspection.subject import find_subject
    from redistill.training.progress import report

    overrides = getattr(options, "overrides", [])
    return find_subject(options.subject, overrides, options.allow_code, lambda text: report(f"inspect: {text}"))
