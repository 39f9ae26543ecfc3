"""The Modelfile of Ollama, with the prompt template of the training.

Ollama does not render the Jinja template of a GGUF file. Ollama recognises some templates; for any other template, it sends the
text of the user verbatim. This module therefore writes the template in the template language of Ollama, Go's text/template.
The Go template is derived from rendered conversations, and then checked against the rendering of further conversations.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from redistill.data.chat import PLAIN, ChatSettings
from redistill.data.templates import Template, render_prompt
from redistill.deploy.vocabulary import added_ends
from redistill.errors import DataError
from redistill.interfaces import Tokenizer
from redistill.records import Conversation, Turn

_SYSTEM, _USER, _ANSWER, _NEXT = "Xsystem0X", "Xuser1X", "Xanswer2X", "Xuser3X"


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The constant texts of a template before, between and after messages.

    Args:
        default: Text before the first user message of a conversation without a system message.
        before_system, after_system: Texts around the system message; None if the template rejects system messages.
        user: Text before each user message.
        answer: Text between a user message and its answer.
        prompt: Text between the last user message and the answer to be generated.
        after_answer: Text after an answer.
    """

    default: str
    before_system: str | None
    after_system: str
    user: str
    answer: str
    prompt: str
    after_answer: str

    def rendered(self, turns: Sequence[Turn]) -> str:
        """Render a conversation that ends with a user message, as Ollama would render it."""
        system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
        has_system = bool(system) and self.before_system is not None
        text = f"{self.before_system}{system}{self.after_system}" if has_system else self.default
        for index, turn in enumerate(turns):
            if turn.role == "user":
                text += self.user + turn.content + (self.prompt if index == len(turns) - 1 else self.answer)
            elif turn.role == "assistant":
                text += turn.content + self.after_answer
        return text

    def go_template(self) -> str:
        """Return the template in the language of Ollama."""
        system = _go(self.default)
        if self.before_system is not None:
            given = f"{_go(self.before_system)}{{{{ .System }}}}{_go(self.after_system)}"
            system = f"{{{{ if .System }}}}{given}{{{{ else }}}}{system}{{{{ end }}}}"
        last = _go(self.prompt)
        if self.answer != self.prompt:
            last = f"{{{{ if eq (len (slice $.Messages $i)) 1 }}}}{last}{{{{ else }}}}{_go(self.answer)}{{{{ end }}}}"
        return (
            f"{system}{{{{ range $i, $_ := .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{_go(self.user)}{{{{ .Content }}}}{last}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go(self.after_answer)}{{{{ end }}}}{{{{ end }}}}'
        )


def pieces_of(tokenizer: Tokenizer, template: Template, settings: ChatSettings = PLAIN) -> Pieces | None:
    """Find the constant texts of a prompt template.

    Args:
        tokenizer: Provides the chat template.  If the tokenizer puts its begin token before a text, Ollama does so too. The
            token is then removed from the template.
        template: "alpaca" or "chat".
        settings: Arguments and date of the chat template.

    Returns:
        The texts.  None if the texts between messages depend on the content or number of the messages.
    """

    def render(*turns: Turn) -> str:
        text = render_prompt(Conversation(turns), template, tokenizer, settings)
        begin = tokenizer.decode([tokenizer.bos_token_id]) if tokenizer.bos_token_id is not None else ""
        return text.removeprefix(begin) if added_ends(tokenizer)[0] else text

    system, user = Turn("system", _SYSTEM), Turn("user", _USER)
    answer, following = Turn("assistant", _ANSWER), Turn("user", _NEXT)
    try:
        (first, prompt), long = _parts(render(user), _USER), render(user, answer, following)
        _, between, after, _ = _parts(long, _USER, _ANSWER, _NEXT)
    except (DataError, ValueError):
        return None
    try:
        before_system, after_system, _ = _parts(render(system, user), _SYSTEM, _USER)
    except (DataError, ValueError):
        before_system, after_system = None, first
    head = os.path.commonprefix([text[::-1] for text in (first, after, after_system)])[::-1]  # noqa: RUF071 - no paths
    found = Pieces(
        default=first.removesuffix(head),
        before_system=before_system,
        after_system=after_system.removesuffix(head),
        user=head,
        answer=between,
        prompt=prompt,
        after_answer=after.removesuffix(head),
    )
    more = (Turn("user", 'Two\nlines, {{ a }} "b".'), Turn("assistant", "Yes."))
    tried = [(user,), (*more, user), (*more, *more, following)]
    tried += [] if before_system is None else [(system, *turns) for turns in tried]
    try:
        return found if all(found.rendered(turns) == render(*turns) for turns in tried) else None
    except DataError:
        return None


def modelfile(file: str, pieces: Pieces | None, stops: Sequence[str]) -> str:
    """Return the text of a Modelfile.

    Args:
        file: Name of the GGUF file beside the Modelfile.
        pieces: The prompt template; None if Ollama chooses one.
        stops: Texts at which Ollama ends an answer.
    """
    lines = [f"FROM ./{file}"]
    if pieces is not None:
        lines.append(f'TEMPLATE """{pieces.go_template()}"""')
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in dict.fromkeys(stops) if stop]
    return "\n".join(lines) + "\n"


def _parts(text: str, *contents: str) -> list[str]:
    """Divide a rendered conversation at the texts of its messages.

    Each text in `contents` must occur exactly once in `text`, in the given order.
    """
    found, rest = [], text
    for content in contents:
        if text.count(content) != 1 or content not in rest:
            raise ValueError("the template changes or repeats the text of a message")
        before, _, rest = rest.partition(content)
        found.append(before)
    return [*found, rest]


def _go(text: str) -> str:
    """Return an action of Go's template language that prints `text`.

    The result is "" for an empty text.

    The text is written as a JSON string literal, which Go accepts.  Double quotes are escaped, so the literal cannot contain
    the three double quotes that end a TEMPLATE.
    """
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
