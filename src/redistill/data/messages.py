"""Parsing of the messages of a conversation, with its tools.

The messages are those of the OpenAI format (`role`, `content`, `tool_calls`) or of ShareGPT (`from`, `value`).  Both are
converted to turns.  Texts are used verbatim.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence

from redistill.data.bad_rows import BadRow, filled, first, first_key, kind_of, text_of
from redistill.records import Role, ToolCall, Turn
from redistill.storage.json_text import JsonError, parse_json

_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
    **dict.fromkeys(_CALLS := ("function_call", "tool_call"), "assistant"),
}
"""Maps the name of a role in data to the role of a turn. If the name is also in `_CALLS`, the content of the message is a tool
call.
"""

_REASONING = ("reasoning_content", "reasoning", "thinking")
_TOOL_CALLS = ("tool_calls", "function_call")
_OF_RESULT = ("name", "tool_call_id")


def turns_of_messages(value: object, name: str) -> tuple[Turn, ...]:
    """Convert a list of messages to turns.

    Args:
        value: The list. A message is an object with the keys role and content, or from and value. An assistant message may
            also have `tool_calls`, and its content may then be null. The reasoning of an assistant message may be under
            `reasoning_content`, `reasoning` or `thinking`.
        name: Name of the list in error messages.

    Raises:
        BadRow: `value` is not a list of messages, or a message is unusable.
    """
    if not isinstance(value, list) or not value:
        raise BadRow("wrong type", f"{name} is {kind_of(value)}; it must be a list of messages")
    return tuple(_turn(message, f"{name}, message {number}") for number, message in enumerate(value, 1))


def _turn(message: object, where: str) -> Turn:
    if not isinstance(message, dict):
        raise BadRow("wrong type", f"{where} is {kind_of(message)}; it must be an object with role and content")
    name, content = first(message, "role", "from"), _joined(first(message, "content", "value"), where)
    if not isinstance(name, str) or name not in _ROLES:
        raise BadRow("unknown role", f"{where}: unknown role {reprlib.repr(name)}; roles are system, user, assistant and tool")
    if name in _CALLS:
        return Turn("assistant", "", calls=_calls(_decoded(content, where, name), f"{where}: {name}"))
    role = _ROLES[name]
    if role == "tool":
        author, call_id = (_optional(message, key, where) for key in _OF_RESULT)
        return Turn("tool", text_of(content, f"{where}: content"), name=author, call_id=call_id)
    if role != "assistant":
        return Turn(role, filled(content, f"{where}: content"))
    reasoning = first(message, *_REASONING)
    calls = _calls(first(message, *_TOOL_CALLS), f"{where}: tool_calls")
    return Turn(
        "assistant",
        "" if calls and content is None else (text_of if calls else filled)(content, f"{where}: content"),
        reasoning="" if reasoning is None else text_of(reasoning, f"{where}: reasoning"),
        calls=calls,
    )


def keys_of_message(message: Mapping[str, object]) -> tuple[str, ...]:
    """Return the keys of a message whose values are used.

    Args:
        message: A message that `turns_of_messages` accepts.

    Example:
        >>> keys_of_message({"role": "assistant", "content": "Hello.", "thinking": "Greet.", "name": "Ada"})
        ('role', 'content', 'thinking')
    """
    role, content = first_key(message, "role", "from"), first_key(message, "content", "value")
    found = [role, content]
    name = None if role is None else message[role]
    if name not in _CALLS and _ROLES[str(name)] == "assistant":
        found += [first_key(message, *_REASONING), first_key(message, *_TOOL_CALLS)]
    elif _ROLES[str(name)] == "tool":
        found += _OF_RESULT
    return tuple(key for key in found if key is not None)


def _joined(content: object, where: str) -> object:
    """Join the parts of a message's content to one text.

    Content that is not a list of parts is returned unchanged.
    """
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        return content
    kinds = [part["type"] for part in content if part["type"] != "text"]
    if kinds:
        kind = reprlib.repr(kinds[0])
        raise BadRow("wrong type", f"{where}: content has a part of type {kind}; only parts of type 'text' are supported")
    return "".join(text_of(part.get("text"), f"{where}: text of a part") for part in content)


def _optional(message: Mapping[str, object], key: str, where: str) -> str | None:
    return None if message.get(key) is None else text_of(message[key], f"{where}: {key}")


def _calls(value: object, where: str) -> tuple[ToolCall, ...]:
    """Convert tool calls to `ToolCall` objects.

    `value` is a call or a list of calls; None stands for no call.  A call has `name` and `arguments`, which may be inside the
    key `function`, as in the OpenAI format.
    """
    found = []
    for call in value if isinstance(value, list) else [] if value is None else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("tool call", f"{where}: a tool call must be an object with name and arguments")
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) and arguments.strip() else _as_text(arguments or {})
        if not isinstance(_decoded(text, where, "arguments"), dict):
            raise BadRow("tool call", f"{where}: arguments of {reprlib.repr(function['name'])} must be a JSON object")
        call_id = _optional(call, "id", where)
        found.append(ToolCall(filled(function["name"], f"{where}: name"), text_of(text, f"{where}: arguments"), call_id))
    return tuple(found)


def tools_of(value: object) -> tuple[str, ...]:
    """Convert the tool definitions of a row to JSON texts, one for each tool.

    Args:
        value: A list of definitions, or this list as a JSON text; None or an empty list if there are no tools.  A definition is
            an object `{"type": "function", "function": {...}}`, or only its inner object.  The inner object has a name.

    Raises:
        BadRow: `value` does not have this form.

    Example:
        >>> tools_of('[{"name": "get_time"}]')
        ('{"type": "function", "function": {"name": "get_time"}}',)
    """
    if isinstance(value, str) and value.strip():
        value = _decoded(value, "'tools'", "value")
    found = []
    for tool in value if isinstance(value, list) else [value] if value else []:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow("tool call", "'tools' must be a list of function definitions, each with a name")
        whole = tool if "function" in tool else {"type": "function", "function": function}
        found.append(text_of(_as_text(whole), "'tools'"))
    return tuple(found)


def _decoded(value: object, where: str, name: str) -> object:
    """Decode `value` if it is a JSON text; return any other value unchanged.

    `where` and `name` are the position and the name of the value in the message of a BadRow.
    """
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except JsonError as error:
        raise BadRow("tool call", f"{where}: {name} of a tool call is not JSON ({error})") from error


def _as_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def check_order(turns: Sequence[Turn], name: str) -> None:
    """Check that the roles of the turns are in a valid order.

    After an optional system turn, user and assistant turns must alternate, beginning with a user turn.  The results of tools
    follow an assistant turn with tool calls, and an assistant turn follows the results.

    Raises:
        BadRow: the roles are in any other order.
    """
    num_system = int(turns[0].role == "system")
    allowed: tuple[Role, ...] = ("user",)
    for number, turn in enumerate(turns[num_system:], num_system + 1):
        if turn.role not in allowed:
            order = "after an optional system message, user and assistant must alternate; tool results follow tool calls"
            raise BadRow("order of roles", f"{name}, message {number} has role {turn.role}; {order}")
        following: Mapping[Role, tuple[Role, ...]] = {
            "user": ("assistant",),
            "assistant": ("user", "tool") if turn.calls else ("user",),
            "tool": ("assistant", "tool"),
        }
        allowed = following[turn.role]
    if len(turns) == num_system:
        raise BadRow("order of roles", f"{name} has no user message")
