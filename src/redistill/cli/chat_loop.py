"""The loop of `redistill chat`: reads prompts and prints the generated answers.

Answers are untrusted text. Terminal escape sequences are removed from each part of an answer before the part is printed.
"""

import argparse
import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redistill.cli.output import print_json
from redistill.errors import DataError, Interrupted
from redistill.records import Turn
from redistill.storage.redaction import plain

if TYPE_CHECKING:
    from redistill.deploy.chat import ChatConfig, Speaker

HELP = "/reset starts a new conversation, /quit ends the chat"


def chat_loop(options: argparse.Namespace, speakers: "list[Speaker]", config: "ChatConfig") -> None:
    """Read prompts from standard input, and print the answers of the models.

    The loop ends at the end of standard input, at a line "/quit", and at Ctrl-C.

    If standard input is a terminal, all prompts form one conversation.  If it is not, each line is a separate conversation.
    Answers are printed while they are generated.  With --json, all answers are printed at the end as one JSON document.

    Args:
        options: The options of the command.
        speakers: The models that answer, in order.
        config: How answers are generated.

    Raises:
        DataError: some prompts could not be answered, and standard input is not a terminal.
    """
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    exchanges: list[dict[str, object]] = []
    failed = 0
    if is_terminal:
        print(f"{' and '.join(plain(each.label) for each in speakers)}: {HELP}", file=sys.stderr)
    with _quiet_interrupt() if is_terminal else contextlib.nullcontext():
        histories: list[tuple[Turn, ...]] = [() for _ in speakers]
        for prompt in _prompts(is_terminal):
            if prompt == "/reset" or not is_terminal:
                histories = [() for _ in speakers]
            if prompt == "/reset":
                continue
            answers: dict[str, str] = {}
            for index, speaker in enumerate(speakers):
                turns = (*histories[index], Turn("user", prompt))
                answer = _answered(speaker, turns, config, named=len(speakers) > 1, shown=not options.json)
                if answer is None:
                    failed += 1
                else:
                    answers[plain(speaker.label)] = plain(answer)
                    histories[index] = (*turns, Turn("assistant", answer))
            exchanges.append({"prompt": plain(prompt), "answers": answers})
    if options.json:
        print_json(options, {"exchanges": exchanges})
    if failed and not is_terminal:
        raise DataError(f"chat: {failed} answers could not be generated; see the messages above")


def _answered(speaker: "Speaker", turns: tuple[Turn, ...], config: "ChatConfig", *, named: bool, shown: bool) -> str | None:
    """Generate and return an answer; return None if the prompt cannot be answered.

    If `shown` is True, the answer is printed while it is generated. If `named` is True, the name of the model is printed before
    it.
    """

    def printed(text: str) -> None:
        if shown:
            sys.stdout.write(plain(text))
            sys.stdout.flush()

    try:
        printed(f"{speaker.label}: " if named else "")
        return speaker.answer(turns, config, printed)
    except DataError as error:
        print(f"redistill: {plain(str(error))}", file=sys.stderr)
        return None
    finally:
        printed("\n")


def _prompts(is_terminal: bool) -> Iterator[str]:
    """Yield the non-empty lines of standard input up to its end or to a line "/quit"."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - editing of the line, by `input`
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except EOFError:
            return
        prompt = line.strip()
        if prompt == "/quit" or (not is_terminal and not line):
            return
        if prompt:
            yield prompt


@contextlib.contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """Context in which Ctrl-C (SIGINT) ends the enclosed code without an error."""
    try:
        yield
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted) and error.exit_code != 128 + signal.SIGINT:
            raise
        sys.stdout.write("\n")
