"""Parsing of a JSON row as a prompt and its answers.

The keys of a row determine its form, such as "prompt/completion".  Texts are used verbatim.  A malformed row is rejected with a
reason; it is not repaired.
"""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from redistill.data.bad_rows import BadRow, filled, first_key, kind_of, text_of
from redistill.data.columns import answer_hint, mapping_hint
from redistill.data.messages import check_order, keys_of_message, tools_of, turns_of_messages
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn

Form = Literal["instruction/input/output", "prompt/completion", "messages", "conversations"]

MAX_ROW_BYTES = 1_000_000
"""Maximum total size of the texts of a row, in bytes of UTF-8; a larger row is probably a file that was pasted by mistake."""

MAX_CATEGORY = 60
"""Maximum length of a row's category, in characters; a longer text is not a label and is ignored."""


@dataclass(frozen=True, kw_only=True)
class ParsedRow:
    """The form, prompt and references of a row.

    The form names the keys of the row, such as "prompt/completion". The references are the answers of the row, all of which
    are correct. A row without an answer has no references. `used` contains the keys of the row whose values are used.
    `answer` and `category` are the same as the fields of `Record` with these names.
    """

    form: Form
    prompt: Instruction | RawPrompt | Conversation
    references: tuple[str, ...]
    used: tuple[str, ...]
    answer: Turn | None = None
    category: str = ""

    def record(self, record_id: str) -> Record:
        """Return the row as a record with this id."""
        return Record(
            record_id=record_id,
            prompt=self.prompt,
            references=self.references,
            answer=self.answer,
            category=self.category,
        )


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
        raise BadRow("not an object", f"is {'null' if row is None else kind_of(row)}; a row must be a JSON object")
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
    size = sum(len(text.encode()) for text in (*texts_of(parsed.prompt), *parsed.references, *answer_texts(parsed.answer)))
    if size > MAX_ROW_BYTES:
        raise BadRow("too large", f"has {size} bytes of text; a row may have at most {MAX_ROW_BYTES}")
    category = row.get("category")
    is_label = isinstance(category, str) and 0 < len(category.strip()) <= MAX_CATEGORY
    return replace(parsed, category=str(category).strip()) if is_label else parsed


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
        is_category = key == "category" and parsed.category != ""
        if key not in parsed.used and value not in _EMPTY and not is_category:
            yield key
    if not isinstance(parsed.prompt, Conversation):
        return
    for name in (name for name in parsed.used if name not in _BESIDE_MESSAGES):
        messages = row[name]
        for message in messages if isinstance(messages, list) else ():
            if isinstance(message, dict) and len(message) > 2:
                keys = keys_of_message(message)
                yield from (f"{name}[].{key}" for key, value in message.items() if key not in keys and value not in _EMPTY)


_EMPTY: tuple[object, ...] = (None, "", [], {})
_BESIDE_MESSAGES = ("system", "tools", "functions")
"""Keys of a conversation that are used in addition to its list of messages."""


def texts_of(prompt: Instruction | RawPrompt | Conversation) -> tuple[str, ...]:
    """Return the texts of a prompt, in order.

    For an `Instruction`, these are the system message, the history, the instruction and its input. A `RawPrompt` has one text.
    For a `Conversation`, these are the content, reasoning and tool calls of each turn, and the tool definitions as JSON.
    """
    if isinstance(prompt, Instruction):
        earlier = (text for pair in prompt.history for text in pair)
        return (*((prompt.system,) if prompt.system else ()), *earlier, prompt.instruction, prompt.input)
    if isinstance(prompt, RawPrompt):
        return (prompt.text,)
    return tuple(text for turn in prompt.turns for text in (turn.content, *answer_texts(turn))) + prompt.tools


def answer_texts(turn: Turn | None) -> tuple[str, ...]:
    """Return the reasoning and the tool calls of a turn, as texts.

    The result is empty if the turn has neither, or if `turn` is None.
    """
    if turn is None:
        return ()
    return (*((turn.reasoning,) if turn.reasoning else ()), *(call.text for call in turn.calls))


_MISSING_ANSWER: Mapping[Form, str] = {
    "instruction/input/output": "'output' is missing; rows need instruction and output",
    "prompt/completion": "'completion' is missing; rows need prompt and completion",
    "messages": "no assistant answer; the last message of 'messages' must have the role assistant",
    "conversations": "no assistant answer; the last message of 'conversations' must be from gpt",
}


def _instruction_row(row: Mapping[str, object]) -> ParsedRow:
    context, system = first_key(row, "input", "context"), first_key(row, "system", "system_prompt")
    answer, history = first_key(row, "output", "response"), first_key(row, "history")
    prompt = Instruction(
        instruction=filled(row["instruction"], "'instruction'"),
        input="" if context is None else text_of(row[context], "'input'"),
        system="" if system is None else text_of(row[system] or "", "'system'"),
        history=() if history is None else _history(row[history] or []),
    )
    references = _references(answer and row[answer], "'output'")
    used = _keys("instruction", context, answer, system, history)
    return ParsedRow(form="instruction/input/output", prompt=prompt, references=references, used=used)


def _history(value: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise BadRow("wrong type", "'history' must be a list of pairs: an instruction and its answer")
    names = [f"'history', pair {number}" for number in range(1, len(value) + 1)]
    return tuple((filled(pair[0], name), filled(pair[1], name)) for name, pair in zip(names, value, strict=True))


def _prompt_row(row: Mapping[str, object]) -> ParsedRow:
    answer_key = first_key(row, "completion", "response", "output")
    answer = answer_key and row[answer_key]
    if not isinstance(row["prompt"], list):
        prompt = RawPrompt(filled(row["prompt"], "'prompt'"))
        references, used = _references(answer, "'completion'"), _keys("prompt", answer_key)
        return ParsedRow(form="prompt/completion", prompt=prompt, references=references, used=used)
    turns, final = turns_of_messages(row["prompt"], "'prompt'"), None
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):  # the answer is a message
        messages = turns_of_messages(answer, "'completion'")
        if len(messages) != 1 or messages[0].role != "assistant":
            raise BadRow("order of roles", "'completion' must be one assistant message")
        final, answer = messages[0], messages[0].text
    check_order((*turns, Turn("assistant", "")), "'prompt'")
    return ParsedRow(
        form="prompt/completion",
        prompt=Conversation(turns, tools_of(row.get("tools"))),
        references=_references(answer, "'completion'"),
        used=_keys("prompt", answer_key, first_key(row, "tools")),
        answer=_beyond_text(final),
    )


def _conversation_row(row: Mapping[str, object], form: Literal["messages", "conversations"]) -> ParsedRow:
    turns, tools_key = turns_of_messages(row[form], f"'{form}'"), first_key(row, "tools", "functions")
    tools, used = tools_of(tools_key and row[tools_key]), _keys(form, tools_key, first_key(row, "system"))
    if system := text_of(row.get("system") or "", "'system'"):
        if turns[0].role == "system":
            raise BadRow("order of roles", f"has the key 'system' and a system message in '{form}'; remove one of them")
        turns = (Turn("system", system), *turns)
    check_order(turns, f"'{form}'")
    if turns[-1].role != "assistant":
        return ParsedRow(form=form, prompt=Conversation(turns, tools), references=(), used=used)
    prompt, final = Conversation(turns[:-1], tools), turns[-1]
    return ParsedRow(form=form, prompt=prompt, references=(final.text,), used=used, answer=_beyond_text(final))


def _keys(*keys: str | None) -> tuple[str, ...]:
    return tuple(key for key in keys if key is not None)


def _beyond_text(turn: Turn | None) -> Turn | None:
    """Return `turn` if it has reasoning or tool calls, and None if it has neither."""
    return turn if turn is not None and (turn.reasoning or turn.calls) else None


def _references(answer: object, name: str) -> tuple[str, ...]:
    """Convert the answer of a row to references.

    An answer is a string, or a list of equally correct strings.  A missing answer, a blank string and an empty list give no
    references.
    """
    if answer is None or answer == [] or (isinstance(answer, str) and not answer.strip()):
        return ()
    if isinstance(answer, list):
        return tuple(filled(text, f"{name}, item {number}") for number, text in enumerate(answer, 1))
    return (text_of(answer, name),)
