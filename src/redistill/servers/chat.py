"""Requests and replies of a chat endpoint, as OpenAI defines it.

Every value of a reply is checked before it is used.  The text of a reply is untrusted.
"""

from typing import NamedTuple

from redistill.records import Json
from redistill.servers.client import Request
from redistill.servers.completions import REPLY_BYTES, InvalidReplyError


class ChatReply(NamedTuple):
    """The reply of a chat model.

    Args:
        text: The text of the message; "" if the model returned none.
        prompt_tokens, completion_tokens: Numbers of tokens that the server counted; 0 if it does not state them.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int


def chat_body(model: str, system: str, user: str, *, max_tokens: int) -> dict[str, Json]:
    """Return the body of a request for one greedy reply.

    Args:
        model: Name of the model, as the server lists it.
        system, user: Texts of the system message and of the user message.
        max_tokens: Maximum number of tokens of the reply.
    """
    messages: list[Json] = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0.0, "n": 1, "stream": False}


def chat_request(body: dict[str, Json], server: int) -> Request:
    """Return the request with a body; `server` is the index of the server."""
    return Request("/chat/completions", body, REPLY_BYTES, server)


def parse_chat(reply: Json) -> ChatReply:
    """Return the text of a reply, and its numbers of tokens.

    Raises:
        InvalidReplyError: the reply does not have the form that OpenAI defines.

    Example:
        >>> parse_chat({"choices": [{"message": {"role": "assistant", "content": "tie"}}]})
        ChatReply(text='tie', prompt_tokens=0, completion_tokens=0)
    """
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise InvalidReplyError("choices must have one object")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else message
    if not isinstance(message, dict) or not isinstance(text, str | None):
        raise InvalidReplyError("the choice has no message with a text as content")
    usage = reply.get("usage") if isinstance(reply, dict) else None
    counts = usage if isinstance(usage, dict) else {}
    return ChatReply(text or "", _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens")))


def _count(value: Json) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40 else 0
