"""The command `redistill judge` with its arguments."""

import argparse
from typing import TYPE_CHECKING

from redistill.cli.options import Group, add_command, add_json, add_repeatable, allow_host
from redistill.cli.output import print_json, print_lines
from redistill.cli.values import count, finite_number, path, path_text, seeds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redistill.records import Json


def add_judge(group: Group) -> None:
    """Add the command `judge` to a group of commands."""
    example = "redistill judge runs/kd --url http://127.0.0.1:8000/v1 --model judge"
    parser = add_command(group, "judge", judge, example)
    parser.usage = "%(prog)s RUN --url URL --model NAME [--against ANSWERS] [options]"  # the generated usage is too long
    parser.add_argument("run", type=path, metavar="RUN", help="a finished run, or the output folder of redistill evaluate")
    add_repeatable(parser, "--url", "URL", "address of an OpenAI-compatible server", required=True)
    parser.add_argument("--model", required=True, metavar="NAME", help="name of the judge on the server")
    text = "reference, teacher, before (the student before training), or the folder of another model (default: reference)"
    parser.add_argument("--against", type=path_text, default="reference", metavar="ANSWERS", help=text)
    allow_host(parser)
    text = "environment variable with the API key (default: no key)"
    parser.add_argument("--api-key-env", metavar="VAR", help=text)
    text = "evaluation seeds of the answers (default: the first one)"
    parser.add_argument("--seeds", type=seeds, metavar="N,N", help=text)
    parser.add_argument("--limit", type=count, metavar="N", help="use only the first N prompts of each test set")
    text = "maximum length of a reply in tokens (default: %(default)s)"
    parser.add_argument("--max-tokens", type=count, default=16, metavar="N", help=text)
    text = "maximum number of open requests (default: %(default)s)"
    parser.add_argument("--concurrent", type=count, default=8, metavar="N", help=text)
    parser.add_argument("--price", type=finite_number, metavar="X", help="price of a million tokens; prints the total price")
    add_json(parser)


def judge(options: argparse.Namespace) -> None:
    """Let a chat model compare a model's answers with other answers."""
    from redistill.runs.judge import JudgeConfig, judge_answers
    from redistill.training.progress import report

    settings = JudgeConfig(
        url=tuple(options.url),
        model=options.model,
        api_key_env=options.api_key_env,
        max_tokens=options.max_tokens,
        concurrent_requests=options.concurrent,
        price=options.price,
    )
    found = judge_answers(options.run, options.against, settings, seeds=options.seeds, limit=options.limit, report=report)
    path = options.run / "judge.json"
    if options.json:
        print_json(options, {"path": str(path), "comparison": found})
    else:
        _print(found)
        print_lines(f"judge: {path}")


def _print(found: "Mapping[str, Json]") -> None:
    from redistill.reports.judgements import judgements_of
    from redistill.reports.terminal import print_judgements

    print_judgements(judgements_of(found))
    cost, total = found["cost"], found["total"]
    assert isinstance(cost, dict)
    assert isinstance(total, dict)
    tokens = f"{cost['prompt_tokens']} prompt tokens, {cost['completion_tokens']} completion tokens"
    price = f", price {cost['price']}" if "price" in cost else ""
    print_lines(f"cost: {cost['requests']} requests, {tokens}{price}")
    if cost != total:
        price = f", price {total['price']}" if "price" in total else ""
        print_lines(f"with the verdicts of earlier calls in judge.jsonl: {total['requests']} requests{price}")
