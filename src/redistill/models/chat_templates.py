"""The first rendering of a chat template, with limits of time, memory and output.

A chat template is a program from an untrusted source. Jinja's sandbox prevents access to Python's internals, but it does not
prevent a template from looping for hours or from building a string of 10^11 characters.

Therefore the first rendering of a template takes place in a child process with limits. The child is stopped if it exceeds a
limit. A thread or a signal could not stop a loop inside compiled code, and limits on this process would
stop the run. The child is a fork of this process, which has already imported the template engine. Therefore the child starts
fast, and imports no code from the current folder.

The child sets its limits with setrlimit, renders the template, writes the texts to a pipe and exits. The child calls
neither torch nor CUDA, which cannot be used after a fork. The time limit applies to the CPU time of the child, so that no
template is rejected because the machine is busy. On systems without fork, templates are rendered in this process without
limits.
"""

import contextlib
import gc
import json
import os
import select
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from redistill.errors import ModelError
from redistill.interfaces import Tokenizer
from redistill.models.reading import reading, reason
from redistill.storage import files

CPU_SECONDS = 5
WALL_SECONDS = 300
MEMORY_BYTES = 1 << 30
OUTPUT_CHARACTERS = 1_000_000

Rendered = tuple[str, str]
"""The status of one rendering, and a text.

The status is "text", "rejected" or a key of `_FAULTS`. If the status is "text", the text is the rendered conversation.
Otherwise the text is the reason of the failure, which may be empty.
"""

_FAULTS = {
    "unsafe": "was rejected by the sandbox ({}); do not use this model",
    "syntax": "is not valid Jinja ({}); fix chat_template in its tokenizer files, or remove it and use template: alpaca",
    "time": f"takes more than {CPU_SECONDS} s for short messages; fix or remove chat_template in its tokenizer files",
    "memory": "needs more than 1 GiB for short messages; fix or remove chat_template in its tokenizer files",
    "long": f"returns more than {OUTPUT_CHARACTERS:,} characters for short messages; fix or remove chat_template in its "
    "tokenizer files",
}
_Message = dict[str, object]
_SYSTEM, _USER, _ANSWER = (_Message(role=role, content=role[0]) for role in ("system", "user", "assistant"))
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"k": {"type": "string"}}}}
_TOOL = {"type": "function", "function": _FUNCTION}
_CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "f", "arguments": {"k": "v"}}}
_CALLS: _Message = {"role": "assistant", "content": "", "reasoning_content": "r", "thinking": "r", "tool_calls": [_CALL]}
_RESULT: _Message = {"role": "tool", "content": "t", "name": "f", "tool_call_id": "abcdefgh1"}
# A conversation, whether it is rendered as a prompt for the next answer, and whether the assistant has a tool. `two_turns`
# returns the first rendering.
_TRIED: tuple[tuple[list[_Message], bool, bool], ...] = (
    ([_USER, _ANSWER], False, False),
    ([_USER], True, False),
    ([_SYSTEM, _USER, _ANSWER, _USER], True, False),
    ([_USER, _CALLS, _RESULT], True, True),
)
_known: dict[str, list[Rendered]] = {}


def check_chat_templates(name: str, tokenizer: Tokenizer, arguments: Mapping[str, object] | None = None) -> None:
    """Reject chat templates that are invalid, unsafe or exceed limits.

    A template may reject a conversation with an exception, which is not an error in this check. If the data of a run
    contains such a conversation, the run reports the rejection.

    Args:
        name: Name of the model for error messages.
        tokenizer: The tokenizer with the templates.
        arguments: Template arguments by name, such as {"enable_thinking": False}, with which the templates will be rendered.

    Raises:
        ModelError: a template is not a valid Jinja string; the sandbox blocks it; it exceeds a limit of time, memory or
            length; or its name is not a plain file name.
    """
    templates: object = tokenizer.chat_template
    if templates is None:
        return
    named = templates if isinstance(templates, dict) else {"default": templates}
    for key, template in named.items():
        if not isinstance(key, str) or files.slug(key) != key:
            raise ModelError(
                f"{name}: the name of a chat template is {str(key)[:60]!r}, which is not a plain file name; do not use this "
                "model"
            )
        if not isinstance(template, str):
            raise ModelError(
                f"{name}: chat_template has the type {type(template).__name__}; it must be a string with a Jinja "
                "template; fix its tokenizer_config.json"
            )
    for kind, text in _first_renderings(tokenizer, arguments or {}):
        if kind in _FAULTS:
            raise ModelError(f"{name}: its chat template {_FAULTS[kind].format(text)}")


def two_turns(tokenizer: Tokenizer) -> str:
    """Render a user message and an answer with the chat template.

    The function returns "" if there is no template, or if the template rejects these messages.
    """
    kind, text = _first_renderings(tokenizer, {})[0] if tokenizer.chat_template else ("text", "")
    return text if kind == "text" else ""


def _first_renderings(tokenizer: Tokenizer, arguments: Mapping[str, object]) -> list[Rendered]:
    """Render the short test conversations `_TRIED` with each template of a tokenizer.

    The default template comes first. The renderings are cached: the same templates and arguments are rendered only once in a
    process.
    """
    described = [tokenizer.chat_template, tokenizer.special_tokens_map, dict(arguments)]
    key = json.dumps(described, default=str, sort_keys=True)
    if key not in _known:
        render = _in_child if hasattr(os, "fork") else lambda *given: list(_renderings(*given))
        _known[key] = render(tokenizer, arguments)
    return _known[key]


def _renderings(tokenizer: Tokenizer, arguments: Mapping[str, object]) -> Iterator[Rendered]:
    others = list(tokenizer.chat_template) if isinstance(tokenizer.chat_template, dict) else []
    for template in (None, *others):
        for messages, prompts, has_tool in _TRIED:
            given: dict[str, object] = {**({"tools": [_TOOL]} if has_tool else {}), **arguments}
            try:
                text = tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=prompts, chat_template=template, **given
                )
            except SecurityError as error:
                yield "unsafe", reason(error)
            except TemplateSyntaxError as error:
                yield "syntax", f"line {error.lineno}: {reason(error)}"
            except MemoryError:
                yield "memory", ""
            except Exception as error:  # noqa: BLE001 - a template may raise exceptions of any type
                yield "rejected", reason(error)
            else:
                yield ("long", "") if len(text) > OUTPUT_CHARACTERS else ("text", str(text))


def _in_child(tokenizer: Tokenizer, arguments: Mapping[str, object]) -> list[Rendered]:
    """Call `_renderings` in a child process with limits, and return the renderings.

    If a limit stops the child, a single rendering with the status "time" is returned.
    """
    reader, writer = os.pipe()
    child = 0
    try:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns if a process with threads forks
                child = os.fork()
            if child == 0:
                _limited(tokenizer, arguments, writer)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(writer)
        found = _received(reader)
    finally:
        os.close(reader)
        if child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if found is None:  # stopped by its limits
        return [("time", "")]
    with reading("chat template", "use another model"):
        return [(str(kind), str(text)) for kind, text in json.loads(found)]


def _limited(tokenizer: Tokenizer, arguments: Mapping[str, object], writer: int) -> NoReturn:
    """Set limits, render the conversations, and write the renderings to a pipe.

    Only the child process calls this function, which ends the process and never returns.
    """
    try:
        gc.disable()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _set_limits()
        sent = json.dumps(list(_renderings(tokenizer, arguments))).encode()
        while sent:
            sent = sent[os.write(writer, sent) :]
    finally:
        os._exit(0)


def _set_limits() -> None:
    import resource  # Unix only

    statm = Path("/proc/self/statm")  # the first number is the size of the address space in pages
    if statm.exists():
        held = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        limit, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = held + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (wanted if limit < 0 else min(limit, wanted), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))


def _received(reader: int) -> bytes | None:
    """Read all bytes that the child process writes to the pipe.

    The function returns None if the child writes nothing, or does not finish within `WALL_SECONDS` seconds.
    """
    deadline, parts = time.monotonic() + WALL_SECONDS, list[bytes]()
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return b"".join(parts) or None
        parts.append(part)
    return None
