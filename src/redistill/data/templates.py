"""Rendering of prompts as text.

The template is the Alpaca template of the literature, or the chat template of the tokenizer.  This module handles strings
only; `tokenize` encodes them and marks the targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from redistill.data.special import Message, Range, SpecialTokens
from redistill.errors import ConfigError, DataError
from redistill.interfaces import Tokenizer
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from redistill.storage.redaction import plain

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
        answers: Half-open character range of each answer to train on, including the end-of-turn marker of a chat template.
        ended: Whether the text includes the end-of-turn marker of the last answer; if not, the end token must follow it.
        literal: Character ranges of special tokens that stem from messages and are text; empty for "alpaca".
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    ended: bool
    literal: tuple[Range, ...] = ()


def render_prompt(prompt: Prompt, template: Template, tokenizer: Tokenizer | None) -> str:
    """Render the text that a model continues with its answer.

    "alpaca" is the template of Stanford Alpaca, which MiniLLM, DistiLLM and MGSR (its Table 8) use for all model families
    except Qwen.  A raw prompt is used verbatim.  Earlier turns of a conversation become earlier blocks, a system turn the first
    paragraph.  "chat" is the chat template of the tokenizer, up to the start of the assistant's turn.  An instruction and its
    input form one user message.

    Args:
        prompt: The prompt.
        template: "alpaca" or "chat".
        tokenizer: Provides the chat template; "alpaca" does not use it.

    Raises:
        ConfigError: "chat" with a tokenizer that has no chat template.
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
    """The ranges of special tokens in a rendered prompt that are text.

    They stem from its messages, and not from the chat template that rendered it.
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

    An answer is located by rendering the conversation up to it, exactly as it is rendered for generation; no tokens are
    searched.

    Args:
        record: Provides the prompt.
        answer: The last answer.
        template: "alpaca" or "chat".
        tokenizer: Provides the chat template; "alpaca" does not use it.
        every_turn: Whether to train on the assistant's earlier answers, too.
        special: The tokenizer's special tokens; None leaves `literal` empty.

    Raises:
        ConfigError, DataError: as in `render_prompt`; DataError also if the chat template rewrites earlier text, so that the
            prompt at generation would differ from the prompt in training.
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
    """Range of the last of `turns` in `text`, from the end of its prompt through its end-of-turn marker."""
    prompt = _chat(turns[:-1], tokenizer, add_generation_prompt=True)
    answered = (text if is_last else _chat(turns, tokenizer)).rstrip()
    if not text.startswith(answered):  # the end token of the conversation follows only the last turn (Phi-3)
        answered = answered.removesuffix(tokenizer.eos_token or "").rstrip()
    answer = turns[-1].content.strip()
    if not text.startswith(answered) or not answered.startswith(prompt) or answer not in answered[len(prompt) :]:
        raise DataError(
            f"chat template: the transcript does not continue its prompt at turn {len(turns)}, so the answer cannot be "
            "located; train on the last answer only (supervise: last), or use template: alpaca"
        )
    return len(prompt), len(answered)


def turns_of(prompt: Prompt) -> tuple[Turn, ...]:
    """A prompt as turns: those of a conversation, else one user message."""
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
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template raises whatever its expressions do
        reason = " ".join(plain(str(error)).split())[:200] or type(error).__name__  # the message may quote the row
        raise DataError(f"chat template: rejects this conversation ({reason}); use template: alpaca, or fix the row") from error
