"""The command `redistill init` with its arguments and questions."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from redistill.cli.options import Group, add_command, add_json, add_repeatable, named_task
from redistill.cli.output import print_json, print_lines
from redistill.cli.values import count, finite_number, path, path_text
from redistill.errors import ConfigError

if TYPE_CHECKING:
    from redistill.estimate.new_recipe import NewRecipe


def add_init(group: Group) -> None:
    """Add the command `init` to a group of commands."""
    example = "redistill init a.yaml --teacher gpt2-large --layers 12 --data a.jsonl"
    parser = add_command(group, "init", init, example)
    parser.set_defaults(if_interrupted="nothing was written")
    parser.usage = "%(prog)s FILE [options]"
    parser.add_argument("file", type=path, nargs="?", default=Path("recipe.yaml"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--teacher", type=path_text, metavar="MODEL", help="a hub name, a folder or a .gguf file")
    text = "the same, or omit it to use layers of the teacher"
    parser.add_argument("--student", type=path_text, metavar="MODEL", help=text)
    parser.add_argument("--layers", type=count, metavar="N", help="number of layers that the student keeps")
    add_repeatable(parser, "--data", "PATH", "training data: a file, folder or hub name", type=path_text)
    add_repeatable(parser, "--test", "TASK[=PATH]", "test set, from the hub if PATH is omitted", type=path_text)
    parser.add_argument("--method", metavar="NAME", help="a name from `redistill methods` (default: mgsr)")
    parser.add_argument("--lora", type=count, nargs="?", const=16, metavar="RANK", help="train adapters (default rank: 16)")
    text = "sharded splits the models over processes"
    parser.add_argument("--placement", choices=["auto", "sharded"], default="auto", metavar="WHERE", help=text)
    parser.add_argument("--updates", metavar="LENGTH", help='length of training, such as 500 or "3 epochs"')
    text = "time of training; the estimate gives the number of updates"
    parser.add_argument("--hours", type=finite_number, metavar="X", help=text)
    parser.add_argument("--batch-size", type=count, default=8, metavar="N", help="sequences per update (default: 8)")
    for part in ("prompt", "response"):
        text = f"{part} limit in tokens (default: from the data)"
        parser.add_argument(f"--{part}-tokens", type=count, metavar="N", help=text)
    parser.add_argument("--memory", type=finite_number, metavar="GB", help="memory of the device in GB (default: measured)")
    parser.add_argument("--force", action="store_true", help="replace an existing FILE")
    add_json(parser)


def init(options: argparse.Namespace) -> None:
    """Write a commented recipe for models, data and machine."""
    if sys.stdin.isatty() and not options.json:
        ask(options)
    target: Path = options.file
    if (target.exists() or target.is_symlink()) and not options.force:
        raise ConfigError(f"{target}: exists; add --force to replace it, or choose another FILE")
    if not options.data:
        raise ConfigError("init: --data: missing; name a file, a folder or a hub data set with training data")
    from redistill.config.recipes import place_schema
    from redistill.storage import files

    found = _recipe(options)
    files.make_folder(target.absolute().parent)
    files.write_text(target, found.text)
    place_schema("run", target.parent)
    if options.json:
        print_json(options, {"path": str(target), "fits": found.fits, "estimate": found.estimate.as_json()})
        return
    if not found.fits:
        needed, memory = found.estimate.memory.peak_bytes / 1e9, found.memory_bytes / 1e9
        print_lines(f"warning: needs {needed:.1f} GB of {memory:.1f} GB; use --lora, shorter texts or a smaller batch")
    print_lines(target, f"try it with: redistill run {target} --smoke")


def _recipe(options: argparse.Namespace) -> "NewRecipe":
    import redistill.estimate
    from redistill.config.whole_numbers import whole_number
    from redistill.estimate.new_recipe import Requirements, new_recipe
    from redistill.storage.files import slug
    from redistill.training.progress import report

    if options.memory is not None and options.memory <= 0:
        raise ConfigError(f"--memory {options.memory:g}: must be > 0")
    length = options.updates
    if length is not None:
        length = int(length) if length.isdecimal() else whole_number(length) or length
    requirements = Requirements(
        name=slug(options.file.stem),
        method=options.method or "mgsr",
        teacher=options.teacher,
        student=options.student,
        layers=options.layers,
        data=tuple(options.data),
        tests=dict(map(named_task, options.test)),
        lora=options.lora,
        placement=options.placement,
        updates=length,
        hours=options.hours,
        batch_size=options.batch_size,
        prompt_tokens=options.prompt_tokens,
        response_tokens=options.response_tokens,
        memory_bytes=None if options.memory is None else int(options.memory * 1e9),
    )

    def say(text: str) -> None:
        report(f"init: {text}")

    return new_recipe(requirements, say, partial(redistill.estimate.estimate, report=say))


def ask(options: argparse.Namespace) -> None:
    """Ask for the models, the data and the method that the command line omits.

    Args:
        options: The options of the command, in which the answers are stored.
    """
    if not options.data:
        options.data = [answer("training data (a file, a folder or a hub name)")]
    if options.method is None:
        options.method = answer("method (a name from `redistill methods`)", "mgsr")
    if options.teacher is None and options.method != "sft":
        options.teacher = answer("teacher (a hub name, a folder or a .gguf file)")
    if options.student is None and options.layers is None:
        text = answer("student (a model, or the number of layers of the teacher to keep)")
        if text.isdecimal():
            options.layers = count(text)
        else:
            options.student = text
    if not options.test and (text := answer("test set (TASK=PATH; empty for none)", "")):
        options.test = [text]


def answer(question: str, default: str | None = None) -> str:
    """Return the user's answer to a question on the terminal.

    Args:
        question: The question.
        default: Result for an empty answer; None if the answer must not be empty.

    Raises:
        ConfigError: the input ends, or the answer is empty and there is no default.
    """
    shown = f" [{default}]" if default else ""
    print(f"{question}{shown}: ", end="", file=sys.stderr, flush=True)
    text = sys.stdin.readline().strip()
    if not text and default is None:
        raise ConfigError(f"init: {question}: no answer; answer it, or use the options of `redistill init --help`")
    return path_text(text) or default or ""
