"""Prompts as text: the instruction template of the literature, or the tokenizer's own chat template.

Strings only.  Which tokens they become, and which of those are targets, is `tokenize`'s business.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from redistill.errors import ConfigError, DataError
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from redistill.storage.redaction import plain

Template = Literal["alpaca", "chat"]
Prompt = Instruction | RawPrompt | Conversation

_HEADER = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
_PLAIN_HEADER = _HEADER.format("")
_INPUT_HEADER = _HEADER.format(", paired with an input that provides further context")


@dataclass(frozen=True)
class Transcript:
    """A conversation as text, answers included.

    Args:
        text: All of it.
        answers: The half-open character range of each answer to learn, up to and with the end of turn of a chat template.
        ended: Whether the last answer's end of turn is in the text; if not, the end token has to follow it.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    ended: bool


def render_prompt(prompt: Prompt, template: Template, tokenizer: Any) -> str:
    """The text that a model continues when it answers.

    "alpaca" is the template of Stanford Alpaca, which MiniLLM, DistiLLM and MGSR (its Table 8) use for every family but Qwen; a
    raw prompt stays as it is, and the earlier turns of a conversation become earlier blocks, a system turn its first paragraph.
    "chat" is the tokenizer's template, up to where the assistant begins; an instruction and its input are one user's message.

    Args:
        prompt: What to ask.
        template: "alpaca" or "chat".
        tokenizer: Where the chat template is; "alpaca" does not look at it.

    Raises:
        ConfigError: "chat" with a tokenizer that has no chat template.
        DataError: The chat template refuses the conversation.

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
        return _chat(_turns(prompt), tokenizer, add_generation_prompt=True)
    if isinstance(prompt, RawPrompt):
        return prompt.text
    if isinstance(prompt, Instruction):
        header = _INPUT_HEADER if prompt.input else _PLAIN_HEADER
        given = f"### Input:\n{prompt.input}\n\n" if prompt.input else ""
        return f"{header}### Instruction:\n{prompt.instruction}\n\n{given}### Response:\n"
    system = "".join(f"{turn.content}\n\n" for turn in prompt.turns if turn.role == "system")
    blocks = {"system": "", "user": "### Instruction:\n{}\n\n### Response:\n", "assistant": "{}\n\n"}
    return system + _PLAIN_HEADER + "".join(blocks[turn.role].format(turn.content) for turn in prompt.turns)


def render_transcript(record: Record, answer: str, template: Template, tokenizer: Any, *, every_turn: bool) -> Transcript:
    """A prompt and its answer as text, and where the answers to learn stand in it.

    Answers are found by rendering the conversation up to them, as it will be rendered when a model is to answer; nothing is
    searched for by its tokens.

    Args:
        record: Whose prompt.
        answer: The last answer.
        every_turn: Whether the assistant's earlier answers are to be learned too.

    Raises:
        ConfigError, DataError: as `render_prompt`; DataError also where the chat template rewrites earlier text, so that what a
            model will be asked to continue is not what it has learned to continue.
    """
    turns = (*_turns(record.prompt), Turn("assistant", answer))
    learned = [k for k, turn in enumerate(turns) if turn.role == "assistant" and (every_turn or k == len(turns) - 1)]
    if template == "alpaca":
        prompts = [record.prompt if k == len(turns) - 1 else Conversation(turns[:k]) for k in learned]
        starts = [len(render_prompt(prompt, template, tokenizer)) for prompt in prompts]
        answers = tuple((start, start + len(turns[k].content)) for start, k in zip(starts, learned))
        return Transcript(render_prompt(record.prompt, template, tokenizer) + answer, answers, ended=False)
    text = _chat(turns, tokenizer)
    ranges = [_chat_answer(turns[: k + 1], text, tokenizer) for k in learned]
    end = ranges[-1][1]
    ended = not text[:end].endswith(answer.strip())
    return Transcript(text[:end], tuple(ranges), ended)


def _chat_answer(turns: tuple[Turn, ...], text: str, tokenizer: Any) -> tuple[int, int]:
    """Where the last of `turns` stands in `text`: from the end of its prompt to its end of turn, without the space after."""
    prompt = _chat(turns[:-1], tokenizer, add_generation_prompt=True)
    answered = _chat(turns, tokenizer).rstrip()
    if not text.startswith(answered):  # the end of a whole text stands behind the last turn alone (Phi-3)
        answered = answered.removesuffix(tokenizer.eos_token or "").rstrip()
    answer = turns[-1].content.strip()
    if not text.startswith(answered) or not answered.startswith(prompt) or answer not in answered[len(prompt) :]:
        raise DataError(
            f"chat template: does not go on from its own prompt at turn {len(turns)}, so the answer cannot be told apart; "
            "learn only the last answer (supervise: last), or use template: alpaca"
        )
    return len(prompt), len(answered)


def _turns(prompt: Prompt) -> tuple[Turn, ...]:
    if isinstance(prompt, Conversation):
        return prompt.turns
    if isinstance(prompt, RawPrompt):
        return (Turn("user", prompt.text),)
    return (Turn("user", f"{prompt.instruction}\n\n{prompt.input}" if prompt.input else prompt.instruction),)


def _chat(turns: tuple[Turn, ...], tokenizer: Any, *, add_generation_prompt: bool = False) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(
            "template = chat: this tokenizer has no chat template; use template: alpaca, or a chat model's tokenizer"
        )
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt))
    except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        said = " ".join(plain(str(error)).split())[:200] or type(error).__name__  # what a template raises may quote the row
        raise DataError(f"chat template: refuses this conversation ({said}); use template: alpaca or mend the row") from error
