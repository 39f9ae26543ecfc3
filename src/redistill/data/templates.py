"""Rendering of prompts and conversations as text.

The template is the Alpaca template of the literature, or the chat template of the tokenizer.  This module returns strings;
`sequences` encodes them as token ids and marks the targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from redistill.data.special import Message, Range, SpecialTokens
from redistill.errors import ConfigError, DataError
from redistill.interfaces import Tokenizer
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from redistill.storage.redaction import plain_line

Template = Literal["alpaca", "chat"]
Prompt = Instruction | RawPrompt | Conversation

_HEADER = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
_PLAIN_HEADER = _HEADER.format("")
_INPUT_HEADER = _HEADER.format(", paired with an input that provides further context")


@dataclass(frozen=True)
class Transcript:
    """A conversation as text, including answers.

    Args:
        text: The text of the conversation.
        answers: Character range [start, end) of each answer to train on.  With a chat template, the range includes the
            end-of-turn marker.
        ended: Whether the text includes the end-of-turn marker of the last answer; if not, the caller must append the end
            token.
        literal: Character ranges of the special tokens that come from messages and are encoded as plain text; empty for the
            template "alpaca".
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    ended: bool
    literal: tuple[Range, ...] = ()


def render_prompt(prompt: Prompt, template: Template, tokenizer: Tokenizer | None) -> str:
    """Render the text that a model continues with its answer.

    "alpaca" is the template of Stanford Alpaca, which MiniLLM, DistiLLM and MGSR (its Table 8) use for all model families
    except Qwen.  A raw prompt is used verbatim.  A conversation is rendered as the text of its system turn, the header of the
    template, and one block for each question and answer.

    "chat" is the chat template of the tokenizer, up to the start of the assistant's turn.  An instruction and its input form
    one user message.

    Args:
        prompt: The prompt.
        template: "alpaca" or "chat".
        tokenizer: Provides the chat template; "alpaca" does not use the tokenizer.

    Raises:
        ConfigError: the template is "chat", but the tokenizer has no chat template.
        DataError: the chat template rejects the conversation.

    Example:
        >>> print(render_prompt(Instruction("Add.", "2 2"), "alpaca", None)[-53:], end="")
        ### Instruction:
        Add.
        <BLANKLINE>
        ### Input:
        2 2
        <BLANKLINE>
        ### Response:
    """
    if template == "chat":
        return _chat(turns_of(prompt), tokenizer, add_generation_prompt=True)
    if isinstance(prompt, RawPrompt):
        return prompt.text
    if isinstance(prompt, Instruction):
        header = _INPUT_HEADER if prompt.input else _PLAIN_HEADER
        given = f"### Input:\n{prompt.input}\n\n" if prompt.input else ""
        return f"{header}### Instruction:\n{prompt.instruction}\n\n{given}### Response:\n"
    system = "".join(f"{turn.content}\n\n" for turn in prompt.turns if turn.role == "system")
    blocks = {"system": "", "user": "### Instruction:\n{}\n\n### Response:\n", "assistant": "{}\n\n"}
    return system + _PLAIN_HEADER + "".join(blocks[turn.role].format(turn.content) for turn in prompt.turns)


def literal_ranges(prompt: Prompt, text: str, tokenizer: Tokenizer, special: SpecialTokens) -> tuple[Range, ...]:
    """Find the special tokens in `text` that come from the prompt.

    Args:
        prompt: The prompt before rendering.
        text: The prompt rendered with the chat template, which also contains special tokens of the template.
        tokenizer: Provides the chat template.
        special: The special tokens of the tokenizer.

    Returns:
        The character range [start, end) of each special token that comes from the prompt.
    """
    return _literal_ranges(turns_of(prompt), text, tokenizer, special, add_generation_prompt=True)


def _literal_ranges(
    turns: tuple[Turn, ...], text: str, tokenizer: Tokenizer, special: SpecialTokens, *, add_generation_prompt: bool
) -> tuple[Range, ...]:
    def render(messages: Sequence[Message]) -> str:
        return _applied(messages, tokenizer, add_generation_prompt=add_generation_prompt)

    return tuple(special.literal_ranges(text, _messages(turns), render))


def render_transcript(
    record: Record,
    answer: str,
    template: Template,
    tokenizer: Tokenizer,
    *,
    every_turn: bool,
    special: SpecialTokens | None = None,
) -> Transcript:
    """Render a prompt and its answer, and locate the answers to train on.

    To locate an answer, the conversation before the answer is rendered exactly as for generation.  The answer begins where this
    rendered text ends.  The text is not searched for the answer or for tokens.

    Args:
        record: The record with the prompt.
        answer: The last answer.
        template: "alpaca" or "chat".
        tokenizer: Provides the chat template; "alpaca" does not use the tokenizer.
        every_turn: Whether to train on every answer of the assistant, and not only on the last answer.
        special: The tokenizer's special tokens; if None, the field `literal` of the result is empty.

    Returns:
        The text of the conversation, with the character ranges of the answers to train on.

    Raises:
        ConfigError: the template is "chat", but the tokenizer has no chat template.
        DataError: the chat template rejects the conversation, or changes the text of earlier turns.  The prompt at generation
            would then differ from the prompt in training.
    """
    turns = (*turns_of(record.prompt), Turn("assistant", answer))
    learned = [k for k, turn in enumerate(turns) if turn.role == "assistant" and (every_turn or k == len(turns) - 1)]
    if template == "alpaca":
        prompts = [record.prompt if k == len(turns) - 1 else Conversation(turns[:k]) for k in learned]
        starts = [len(render_prompt(prompt, template, tokenizer)) for prompt in prompts]
        answers = tuple((start, start + len(turns[k].content)) for start, k in zip(starts, learned))
        return Transcript(render_prompt(record.prompt, template, tokenizer) + answer, answers, ended=False)
    text = _chat(turns, tokenizer)
    ranges = [_chat_answer(turns[: k + 1], text, tokenizer, is_last=k == len(turns) - 1) for k in learned]
    end = ranges[-1][1]
    ended = not text[:end].endswith(answer.strip())
    literal = () if special is None else _literal_ranges(turns, text, tokenizer, special, add_generation_prompt=False)
    return Transcript(text[:end], tuple(ranges), ended, literal)


def _chat_answer(turns: tuple[Turn, ...], text: str, tokenizer: Tokenizer, *, is_last: bool) -> tuple[int, int]:
    """Return the character range [start, end) of an answer in a rendered conversation.

    `text` is the rendered conversation.  The answer is the last of `turns`, which are the turns of the conversation up to the
    answer.  `is_last` is True if the conversation has no later turns.  The range begins at the end of the rendered prompt
    (the turns before the answer) and includes the end-of-turn marker.
    """
    prompt = _chat(turns[:-1], tokenizer, add_generation_prompt=True)
    answered = (text if is_last else _chat(turns, tokenizer)).rstrip()
    if not text.startswith(answered):  # some templates (Phi-3) add the end token only after the last turn
        answered = answered.removesuffix(tokenizer.eos_token or "").rstrip()
    answer = turns[-1].content.strip()
    if not text.startswith(answered) or not answered.startswith(prompt) or answer not in answered[len(prompt) :]:
        raise DataError(
            f"the chat template does not continue the prompt of turn {len(turns)} with the answer, so the answer cannot be "
            "located; set `supervise: last` to train on the last answer only, or set `template: alpaca`"
        )
    return len(prompt), len(answered)


def turns_of(prompt: Prompt) -> tuple[Turn, ...]:
    """Return the turns of a conversation; any other prompt becomes one user turn."""
    if isinstance(prompt, Conversation):
        return prompt.turns
    if isinstance(prompt, RawPrompt):
        return (Turn("user", prompt.text),)
    return (Turn("user", f"{prompt.instruction}\n\n{prompt.input}" if prompt.input else prompt.instruction),)


def _chat(turns: tuple[Turn, ...], tokenizer: Tokenizer | None, *, add_generation_prompt: bool = False) -> str:
    if tokenizer is None or not tokenizer.chat_template:
        raise ConfigError(
            "template = chat: this tokenizer has no chat template; use template: alpaca, or a chat model's tokenizer"
        )
    return _applied(_messages(turns), tokenizer, add_generation_prompt=add_generation_prompt)


def _messages(turns: tuple[Turn, ...]) -> list[Message]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _applied(messages: Sequence[Message], tokenizer: Tokenizer, *, add_generation_prompt: bool) -> str:
    try:
        if getattr(tokenizer.apply_chat_template, "__func__", None) is not PreTrainedTokenizerBase.apply_chat_template:
            return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        return _rendered(messages, tokenizer, add_generation_prompt)
    except Exception as error:  # a template raises whatever its expressions do
        reason = plain_line(str(error))[:200] or type(error).__name__  # the message may quote the row
        raise DataError(
            f"the chat template rejects this conversation ({reason}); set `template: alpaca`, or fix the row"
        ) from error


def _rendered(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool) -> str:
    """Return the same text as the tokenizer's method `apply_chat_template`.

    This function is four times as fast as that method, mostly because the method copies its arguments.
    """
    compiled, names = _compiled(tokenizer.get_chat_template())
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    context = compiled.new_context({**names, **given, **tokenizer.special_tokens_map}, shared=True)
    return "".join(compiled.root_render_func(context))


@lru_cache(maxsize=8)
def _compiled(template: str) -> tuple[jinja2.Template, Mapping[str, object]]:
    """Compile a chat template, and return it with the functions that its expressions may call.

    The template runs in the sandbox of transformers, an environment that restricts what its expressions can do.
    """
    compiled = _compile_jinja_template(template)
    return compiled, dict(compiled.globals)
