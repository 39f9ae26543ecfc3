"""Mapping of the columns of a data set to the keys that rows must have.

The setting `data.columns` maps a key, such as "prompt", to the column of the file that has the values of the key.  The keys of
a row determine its form, such as "prompt/completion"; `forms` describes the forms.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence

from redistill.errors import ConfigError
from redistill.storage.redaction import plain_line

COLUMNS = (
    *("prompt", "completion", "instruction", "input", "output", "messages", "conversations"),
    *("system", "history", "tools"),
)
"""The keys of rows that a column can be mapped to."""

_FORMS = ("prompt", "instruction", "messages", "conversations")  # a row has one form for each of these keys
_PROMPTS = ("question", "query", "problem", "input", "user", "human", "source", "task", "text")
_ANSWERS = ("answer", "response", "solution", "output", "completion", "assistant", "target", "chosen", "label", "summary")
_PLAIN = re.compile(r"[A-Za-z_][\w-]{0,60}", re.ASCII)


def check_columns(columns: Mapping[str, str]) -> None:
    """Check the setting `columns`.

    Raises:
        ConfigError: a key is not in `COLUMNS`, or the name of a column is empty.

    Example:
        >>> check_columns({"promt": "question"})
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: columns.promt: no such key of a row; did you mean 'prompt'?
    """
    for key, column in columns.items():
        if key not in COLUMNS:
            near = difflib.get_close_matches(key, COLUMNS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose among {', '.join(COLUMNS)}"
            raise ConfigError(f"columns.{plain_line(key)[:60]}: no such key of a row; {hint}")
        if not column:
            raise ConfigError(f"columns.{key} = '': must be the name of a column, as in {{prompt: question}}")


def renamed(row: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """Return a copy of a row with columns renamed to the keys of a form.

    A copy of a row with none of the columns is unchanged. If a key of `columns` determines the form of the row, such as
    "prompt", the row's own keys for other forms are removed.

    Args:
        row: The row.
        columns: Maps each key to the column that is renamed to this key.

    Example:
        >>> renamed({"question": "2 + 2?", "answer": "4", "id": 7}, {"prompt": "question", "completion": "answer"})
        {'prompt': '2 + 2?', 'completion': '4', 'id': 7}
    """
    found = {key: row[column] for key, column in columns.items() if row.get(column) is not None}
    if not found:
        return dict(row)
    left_out = {*columns, *columns.values(), *(_FORMS if any(key in _FORMS for key in columns) else ())}
    return {**found, **{key: value for key, value in row.items() if key not in left_out}}


def mapping_hint(row: Mapping[str, object]) -> str:
    """Suggest a setting for a row whose keys belong to no form.

    Args:
        row: The row, without null values.

    Returns:
        A phrase that begins with a verb.

    Example:
        >>> mapping_hint({"question": "2 + 2?", "answer": "4"})
        'set data.columns: {prompt: question, completion: answer}'
    """
    talk = next((name for name, value in row.items() if _is_talk(value)), None)
    if talk is not None:
        return f"set data.columns: {{messages: {_yaml(talk)}}}"
    prompt = _named(row, _PROMPTS)
    answer = _named({name: value for name, value in row.items() if name != prompt}, _ANSWERS)
    if prompt == "text" and answer is None:
        return "give texts without a prompt as data.corpus, or set data.columns: {prompt: text} to use them as prompts"
    return f"set data.columns: {{prompt: {_yaml(prompt or 'COLUMN')}, completion: {_yaml(answer or 'COLUMN')}}}"


def answer_hint(row: Mapping[str, object], used: Sequence[str]) -> str:
    """Suggest a setting that uses another column of a row as its answer.

    Args:
        row: The row, without null values.
        used: The keys of the row that are already used.

    Returns:
        A phrase that begins with a verb; "" if no other column looks like an answer.
    """
    name = _named({key: value for key, value in row.items() if key not in used}, _ANSWERS)
    if name is None or "messages" in used or "conversations" in used:
        return ""
    value = row[name]
    if isinstance(value, list) and len(value) > 1 and _is_talk(value):
        return f"set data.columns: {{messages: {_yaml(name)}}}"
    return f"set data.columns: {{{'output' if 'instruction' in used else 'completion'}: {_yaml(name)}}}"


def _named(row: Mapping[str, object], names: Sequence[str]) -> str | None:
    """Return the key of `row` that equals one of `names`, ignoring case.

    Earlier names take precedence. The result is None if no key equals a name.
    """
    keys = {key.lower(): key for key in row}
    return next((keys[name] for name in names if name in keys), None)


def _is_talk(value: object) -> bool:
    """Return whether a value is a list of messages."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and bool({"role", "from"} & first.keys())


def _yaml(name: str) -> str:
    return name if _PLAIN.fullmatch(name) else json.dumps(name[:60])
