"""Parsing of a JSON row as a prompt and its answers.

The keys of a row determine its form, such as "prompt/completion".  Texts are used verbatim.  A malformed row is rejected with a
reason; its texts are never stripped, repaired or guessed.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from redistill.data.columns import answer_hint, mapping_hint
from redistill.records import Conversation, Instruction, RawPrompt, Turn

Form = Literal["instruction/input/output", "prompt/completion", "messages", "conversations"]

Role = Literal["system", "user", "assistant"]
_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}

Fault = (
    Literal["not UTF-8", "byte order mark", "not JSON", "not CSV"]
    | Literal["not an object", "unknown keys", "no answer", "too large"]
    | Literal["missing text", "empty text", "wrong type", "NUL character", "lone surrogate"]
    | Literal["unknown role", "order of roles"]
    | Literal["nothing to learn"]
)
"""Kinds of faults of a row.

The lines above list, in this order, the faults of a line in a file, of a row, of a text in a row, and of a conversation.  The
last line lists the fault that only tokenization detects.
"""

MAX_ROW_BYTES = 1_000_000
"""Maximum total size of the texts of a row, in bytes of UTF-8; a larger row is probably a file that was pasted by mistake."""


_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRow(Exception):
    """Raised for an unusable row; the message is the reason, in one short line."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault: Fault = fault


@dataclass(frozen=True, kw_only=True)
class ParsedRow:
    """The form, prompt and references of a row.

    The form names the keys of the row, such as "prompt/completion".  The references are its answers, all of which are correct.
    A row without an answer has no references.  `used` has the keys of the row whose values are in the prompt or the references.
    """

    form: Form
    prompt: Instruction | RawPrompt | Conversation
    references: tuple[str, ...]
    used: tuple[str, ...]


def parse_row(row: object, *, require_answer: bool = True) -> ParsedRow:
    """Return the form, the prompt and the references (correct answers) of a row.

    The keys of a row determine its form; `reader.read_records` describes the forms.  If a row has the keys of several forms,
    messages take precedence over an instruction, and an instruction over a prompt.

    Args:
        row: A JSON value.
        require_answer: Whether to reject a row without an answer.

    Raises:
        BadRow: the row is unusable.

    Example:
        >>> parse_row({"instruction": "Name a colour.", "output": ["Red.", "Blue."]}).references
        ('Red.', 'Blue.')
    """
    if not isinstance(row, dict):
        raise BadRow("not an object", f"is {_kind(row)}; a row must be a JSON object")
    row = {key: value for key, value in row.items() if value is not None}  # a table of rows of different forms has null cells
    if "messages" in row:
        parsed = _conversation_row(row, "messages")
    elif "conversations" in row:
        parsed = _conversation_row(row, "conversations")
    elif "instruction" in row:
        parsed = _instruction_row(row)
    elif "prompt" in row:
        parsed = _prompt_row(row)
    else:
        keys = ", ".join(reprlib.repr(key) for key in sorted(row)[:6]) or "none"
        known = "rows need instruction and output, prompt and completion, or messages"
        raise BadRow("unknown keys", f"its keys are {keys}; {known}, or {mapping_hint(row)}")
    if require_answer and not parsed.references:
        hint = answer_hint(row, parsed.used)
        raise BadRow("no answer", _MISSING_ANSWER[parsed.form] + (f", or {hint}" if hint else ""))
    size = sum(len(text.encode()) for text in (*texts_of(parsed.prompt), *parsed.references))
    if size > MAX_ROW_BYTES:
        raise BadRow("too large", f"has {size} bytes of text; a row may have at most {MAX_ROW_BYTES}")
    return parsed


def unused_keys(row: Mapping[str, object], parsed: ParsedRow) -> Iterator[str]:
    """Yield the keys of a row whose values are not used.

    A key with an empty value, such as null or "", is not yielded.  A key of a message is yielded as "messages[].KEY".

    Args:
        row: The row.
        parsed: What `parse_row` returned for the row.

    Example:
        >>> row = {"prompt": "1 + 1 =", "completion": " 2", "topic": "sums"}
        >>> list(unused_keys(row, parse_row(row)))
        ['topic']
    """
    for key, value in row.items():
        if key not in parsed.used and value not in _EMPTY:
            yield key
    if not isinstance(parsed.prompt, Conversation):
        return
    for name in parsed.used:
        messages = row[name]
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and len(message) > 2:
                keys = _first_key(message, "role", "from"), _first_key(message, "content", "value")
                yield from (f"{name}[].{key}" for key, value in message.items() if key not in keys and value not in _EMPTY)


_EMPTY: tuple[object, ...] = (None, "", [], {})


def texts_of(prompt: Instruction | RawPrompt | Conversation) -> tuple[str, ...]:
    """Return the texts of a prompt, in order.

    They are the instruction and its input, the one text of a raw prompt, or the contents of the turns of a conversation.
    """
    if isinstance(prompt, Instruction):
        return (prompt.instruction, prompt.input)
    return (prompt.text,) if isinstance(prompt, RawPrompt) else tuple(turn.content for turn in prompt.turns)


_MISSING_ANSWER: Mapping[Form, str] = {
    "instruction/input/output": "'output' is missing; rows need instruction and output",
    "prompt/completion": "'completion' is missing; rows need prompt and completion",
    "messages": "no assistant answer; the last of 'messages' must have the role assistant",
    "conversations": "no assistant answer; the last of 'conversations' must be from gpt",
}


def _instruction_row(row: Mapping[str, object]) -> ParsedRow:
    context, answer = _first_key(row, "input", "context"), _first_key(row, "output", "response")
    prompt = Instruction(
        instruction=_filled(row["instruction"], "'instruction'"),
        input="" if context is None else _text(row[context], "'input'"),
    )
    references = _references(answer and row[answer], "'output'")
    used = ("instruction", *filter(None, (context, answer)))
    return ParsedRow(form="instruction/input/output", prompt=prompt, references=references, used=used)


def _prompt_row(row: Mapping[str, object]) -> ParsedRow:
    answer_key = _first_key(row, "completion", "response", "output")
    answer = answer_key and row[answer_key]
    prompt: RawPrompt | Conversation
    if isinstance(row["prompt"], list):
        prompt = Conversation(_turns(row["prompt"], "'prompt'"))
        if isinstance(answer, list) and answer and isinstance(answer[0], dict):  # the answer is a message
            messages = _turns(answer, "'completion'")
            if len(messages) != 1 or messages[0].role != "assistant":
                raise BadRow("order of roles", "'completion' must be one assistant message")
            answer = messages[0].content
        _check_order((*prompt.turns, Turn("assistant", "")), "'prompt'")
    else:
        prompt = RawPrompt(_filled(row["prompt"], "'prompt'"))
    used = ("prompt", *filter(None, (answer_key,)))
    return ParsedRow(form="prompt/completion", prompt=prompt, references=_references(answer, "'completion'"), used=used)


def _conversation_row(row: Mapping[str, object], form: Literal["messages", "conversations"]) -> ParsedRow:
    turns = _turns(row[form], f"'{form}'")
    _check_order(turns, f"'{form}'")
    if turns[-1].role == "assistant":
        return ParsedRow(form=form, prompt=Conversation(turns[:-1]), references=(turns[-1].content,), used=(form,))
    return ParsedRow(form=form, prompt=Conversation(turns), references=(), used=(form,))


def _turns(value: object, name: str) -> tuple[Turn, ...]:
    """Convert a list of messages to turns.

    `value` must be a list of objects with the keys role and content, or from and value.
    """
    if not isinstance(value, list) or not value:
        raise BadRow("wrong type", f"{name} is {_kind(value)}; it must be a list of messages")
    turns = []
    for number, message in enumerate(value, 1):
        where = f"{name}, message {number}"
        if not isinstance(message, dict):
            raise BadRow("wrong type", f"{where} is {_kind(message)}; it must be an object with role and content")
        role = _first(message, "role", "from")
        if not isinstance(role, str) or role not in _ROLES:
            raise BadRow("unknown role", f"{where}: role {reprlib.repr(role)}; roles are system, user and assistant")
        turns.append(Turn(_ROLES[role], _filled(_first(message, "content", "value"), f"{where}: content")))
    return tuple(turns)


def _check_order(turns: tuple[Turn, ...], name: str) -> None:
    """Raise BadRow if the roles of the turns are in a wrong order.

    After an optional system turn, user and assistant turns must alternate, beginning with a user turn.
    """
    num_system = int(turns[0].role == "system")
    for number, turn in enumerate(turns[num_system:]):
        if turn.role != ("assistant" if number % 2 else "user"):
            order = "after an optional system message, user and assistant must alternate"
            raise BadRow("order of roles", f"{name}, message {number + 1 + num_system} has role {turn.role}; {order}")
    if len(turns) == num_system:
        raise BadRow("order of roles", f"{name} has no user message")


def _references(answer: object, name: str) -> tuple[str, ...]:
    """Convert the answer of a row to references.

    An answer is a string, or a list of equally correct strings.  A missing answer, a blank string and an empty list give no
    references.
    """
    if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
        return ()
    if isinstance(answer, list):
        return tuple(_filled(text, f"{name}, item {number}") for number, text in enumerate(answer, 1))
    return (_text(answer, name),)


def _filled(value: object, name: str) -> str:
    text = _text(value, name)
    if not text.strip():
        raise BadRow("empty text", f"{name} is empty")
    return text


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        fault: Fault = "missing text" if value is None else "wrong type"
        raise BadRow(fault, f"{name} is {_kind(value)}; it must be a string")
    if "\x00" in value:
        raise BadRow("NUL character", f"{name} has a NUL character")
    if not value.isascii() and _SURROGATE.search(value):
        raise BadRow("lone surrogate", f"{name} has a lone surrogate, which is not valid Unicode")
    return value


def _first(row: Mapping[str, object], *names: str) -> object:
    """Return the first value under the keys `names` of `row` that is not null; None if there is no such value."""
    key = _first_key(row, *names)
    return None if key is None else row[key]


def _first_key(row: Mapping[str, object], *names: str) -> str | None:
    """Return the first of the keys `names` whose value in `row` is not null; None if there is no such key."""
    return next((name for name in names if row.get(name) is not None), None)


def _kind(value: object) -> str:
    """Describe the JSON type of a value for an error message, such as "a string" or "missing"."""
    if value is None:
        return "missing"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    if value in ([], {}):
        return "empty"
    return names.get(type(value), f"a {type(value).__name__}")
