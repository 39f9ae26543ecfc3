"""Rendering of prompts and conversations as text.

The form of a row determines its template. Conversations are rendered with the chat template of the tokenizer, and instructions
with the Alpaca template of the literature. Raw prompts are used verbatim. A recipe may also choose one template for all rows.
This module returns strings; `sequences` encodes them as token ids and marks the targets.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, assert_never

from redistill.data.alpaca import alpaca_prompt, earlier_turns
from redistill.data.chat import PLAIN, Chat, ChatSettings, Dialogue
from redistill.data.special import Range, SpecialTokens
from redistill.errors import ConfigError, DataError
from redistill.interfaces import Tokenizer
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn

Template = Literal["auto", "alpaca", "chat"]
Rendering = Literal["chat", "alpaca", "verbatim"]
Prompt = Instruction | RawPrompt | Conversation

_KINDS: Mapping[str, type[Prompt]] = {kind.__name__: kind for kind in (Instruction, RawPrompt, Conversation)}
_NAMES: Mapping[Rendering, str] = {"chat": "the chat template", "alpaca": "the Alpaca template", "verbatim": "no template"}


@dataclass(frozen=True)
class Transcript:
    """A conversation as text, including answers.

    Args:
        text: The text of the conversation.
        answers: Character range [start, end) of each answer to train on.  With a chat template, the range includes the
            end-of-turn marker.
        ended: Whether the text ends with the end-of-turn marker of the last answer. If not, the caller must append the end
            token.
        literal: Character ranges of the special tokens that come from messages and are encoded as plain text; empty if the
            record is not rendered with a chat template.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    ended: bool
    literal: tuple[Range, ...] = ()


def rendering_of(kind: type[Prompt], template: Template) -> Rendering:
    """Return how prompts of one type are rendered.

    Training, evaluation, checks and exports all use this rule.

    Args:
        kind: `Conversation`, `Instruction` or `RawPrompt`.
        template: The setting `data.tokens.template`.

    Example:
        >>> [rendering_of(kind, "auto") for kind in (Conversation, Instruction, RawPrompt)]
        ['chat', 'alpaca', 'verbatim']
        >>> rendering_of(Conversation, "alpaca"), rendering_of(RawPrompt, "chat")
        ('alpaca', 'chat')
    """
    if template == "chat" or (template == "auto" and kind is Conversation):
        return "chat"
    return "verbatim" if kind is RawPrompt else "alpaca"


def renderings(kinds: Mapping[str, int], template: Template) -> dict[str, int]:
    """Count rows by how they are rendered, the most frequent rendering first.

    Args:
        kinds: Number of rows by the name of the type of their prompt, such as {"Conversation": 20}.
        template: The setting `data.tokens.template`.

    Example:
        >>> renderings({"Conversation": 2, "Instruction": 3, "RawPrompt": 1}, "auto")
        {'alpaca': 3, 'chat': 2, 'verbatim': 1}
    """
    found: Counter[str] = Counter()
    for kind, count in kinds.items():
        found[rendering_of(_KINDS[kind], template)] += count
    return dict(found.most_common())


def checked_renderings(prompts: Mapping[str, int], template: Template, tokenizer: Tokenizer, where: str) -> dict[str, int]:
    """Count rows as `renderings` does; check that a chat template exists if needed.

    Args:
        prompts: Number of rows by the name of the type of their prompt.
        template: The setting `data.tokens.template`.
        tokenizer: The tokenizer that provides the chat template.
        where: Name of the data set in the error message.

    Raises:
        ConfigError: rows need a chat template, and the tokenizer has none.
    """
    counts = renderings(prompts, template)
    if "chat" in counts and not tokenizer.chat_template:
        raise ConfigError(
            f"data.tokens.template = {template}: {where} has {counts['chat']} rows that need a chat template, but the "
            "tokenizer has no chat template (most base models have none); set template: alpaca, or use a model with one"
        )
    return counts


def described_renderings(found: Mapping[str, int]) -> str:
    """Return the result of `renderings` as text.

    An example is "20 with the chat template, 3 with the Alpaca template".
    """
    return ", ".join(f"{count} with {text}" for name, text in _NAMES.items() if (count := found.get(name)))


def render_prompt(prompt: Prompt, template: Template, tokenizer: Tokenizer | None, settings: ChatSettings = PLAIN) -> str:
    """Render the text that a model continues with its answer.

    With the Alpaca template, the text consists of the system message, the header of the template, and one block for each
    question and answer. With the chat template, the text ends where the assistant's turn begins. An instruction and its input
    then form one user message.

    Args:
        prompt: The prompt.
        template: The setting `data.tokens.template`; `rendering_of` states what it selects.
        tokenizer: Provides the chat template; None if no prompt needs it.
        settings: Arguments and date of the chat template.

    Raises:
        ConfigError: the prompt needs a chat template, but the tokenizer has none.
        DataError: the template rejects the prompt, or does not render a part of it, such as tool calls.

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
    match rendering_of(type(prompt), template):
        case "chat":
            return Chat(tokenizer, settings).text(dialogue_of(prompt), prompts=True)
        case "alpaca":
            assert not isinstance(prompt, RawPrompt), "rendering_of"
            _check_alpaca(dialogue_of(prompt))
            return alpaca_prompt(prompt)
        case "verbatim":
            assert isinstance(prompt, RawPrompt), "rendering_of"
            return prompt.text
        case other:
            assert_never(other)


def _check_alpaca(dialogue: Dialogue) -> None:
    """Raise DataError if the Alpaca template does not render a part of a dialogue."""
    for is_lost, what in (
        (any(turn.calls or turn.role == "tool" for turn in dialogue.turns), "tool calls and their results"),
        (bool(dialogue.tools), "the tool definitions of the key tools"),
        (any(turn.reasoning for turn in dialogue.turns), "reasoning (reasoning_content, thinking)"),
    ):
        if is_lost:
            raise DataError(
                f"the Alpaca template does not render {what}; set `template: auto`, or remove the content from the row"
            )


def literal_ranges(
    prompt: Prompt, text: str, tokenizer: Tokenizer, special: SpecialTokens, settings: ChatSettings = PLAIN
) -> tuple[Range, ...]:
    """Find the special tokens in `text` that come from the prompt.

    Args:
        prompt: The prompt before rendering.
        text: The prompt rendered with the chat template, which also contains special tokens of the template.
        tokenizer: Provides the chat template.
        special: The special tokens of the tokenizer.
        settings: Arguments and date of the chat template.

    Returns:
        The character range [start, end) of each special token that comes from the prompt.
    """
    return Chat(tokenizer, settings).literal_ranges(dialogue_of(prompt), text, special, prompts=True)


def render_transcript(
    record: Record,
    answer: str,
    template: Template,
    tokenizer: Tokenizer,
    *,
    every_turn: bool,
    special: SpecialTokens | None = None,
    settings: ChatSettings = PLAIN,
) -> Transcript:
    """Render a prompt and its answer, and locate the answers to train on.

    To locate an answer, the conversation before the answer is rendered exactly as for generation.  The answer begins where this
    rendered text ends.  The text is not searched for the answer or for tokens.

    Args:
        record: The record with the prompt.
        answer: The last answer, one of the references. If `record.answer` is set, a chat template renders that turn instead,
            with its reasoning and tool calls.
        template: The setting `data.tokens.template`; `rendering_of` states what it selects.
        tokenizer: Provides the chat template; the Alpaca template does not use the tokenizer.
        every_turn: Whether to train on every answer of the assistant, and not only on the last answer.
        special: The tokenizer's special tokens; if None, the field `literal` of the result is empty.
        settings: Arguments and date of the chat template.

    Returns:
        The text of the conversation, with the character ranges of the answers to train on.

    Raises:
        ConfigError: the record needs a chat template, but the tokenizer has none.
        DataError: the template rejects the conversation, does not render a part of it, or changes the text of earlier turns.
            In the last case, the prompt at generation would differ from the prompt in training.
    """
    before = dialogue_of(record.prompt)
    turns = (*before.turns, record.answer or Turn("assistant", answer))
    learned = [k for k, turn in enumerate(turns) if turn.role == "assistant" and (every_turn or k == len(turns) - 1)]
    if rendering_of(type(record.prompt), template) != "chat":
        _check_alpaca(Dialogue(turns[-1:]))
        prompts = [record.prompt if k == len(turns) - 1 else prompt_before(record.prompt, k) for k in learned]
        starts = [len(render_prompt(prompt, "alpaca", tokenizer)) for prompt in prompts]
        answers = tuple((start, start + len(turns[k].content)) for start, k in zip(starts, learned))
        return Transcript(render_prompt(record.prompt, "alpaca", tokenizer) + answer, answers, ended=False)
    chat, whole = Chat(tokenizer, settings), Dialogue(turns, before.tools)
    text = chat.text(whole)
    ranges = [_chat_answer(whole.first(k + 1), text, chat, tokenizer, is_last=k == len(turns) - 1) for k in learned]
    end = ranges[-1][1]
    literal = () if special is None else chat.literal_ranges(whole, text, special, prompts=False)
    return Transcript(text[:end], tuple(ranges), _is_ended(text[:end], turns[-1], tokenizer), literal)


def _chat_answer(dialogue: Dialogue, text: str, chat: Chat, tokenizer: Tokenizer, *, is_last: bool) -> tuple[int, int]:
    """Return the character range [start, end) of an answer in a rendered conversation.

    `text` is the rendered conversation. `dialogue` is the conversation up to the answer, which is its last turn. `is_last` is
    True if the conversation has no later turns. The range begins where the rendered turns before the answer end. It includes
    the end-of-turn marker.
    """
    turns = dialogue.turns
    prompt = chat.text(dialogue.first(len(turns) - 1), prompts=True)
    answered = (text if is_last else chat.text(dialogue)).rstrip()
    if not text.startswith(answered):  # some templates (Phi-3) add the end token only after the last turn
        answered = answered.removesuffix(tokenizer.eos_token or "").rstrip()
    parts = (turns[-1].content.strip(), turns[-1].reasoning.strip(), *(call.name for call in turns[-1].calls))
    is_continued = text.startswith(answered) and answered.startswith(prompt)
    if not is_continued or any(part not in answered[len(prompt) :] for part in parts):
        raise DataError(
            f"the chat template renders the turns before turn {len(turns)} differently if an answer follows, so the "
            "answer cannot be located; set `supervise: last` to train on the last answer only, or set `template: alpaca`"
        )
    return len(prompt), len(answered)


def _is_ended(text: str, answer: Turn, tokenizer: Tokenizer) -> bool:
    """Return whether a rendered conversation ends with an end-of-turn marker.

    The marker must be after the answer.
    """
    if not answer.calls:
        return not text.endswith(answer.content.strip())
    return text.endswith(tuple(SpecialTokens(tokenizer).texts) or ("\0",))


def dialogue_of(prompt: Prompt) -> Dialogue:
    """Return a prompt as a dialogue.

    The turns of an `Instruction` are its system message, its history, and a last turn with the instruction and its input. A
    `RawPrompt` has only one turn.
    """
    if isinstance(prompt, Conversation):
        return Dialogue(prompt.turns, prompt.tools)
    if isinstance(prompt, RawPrompt):
        return Dialogue((Turn("user", prompt.text),))
    asked = f"{prompt.instruction}\n\n{prompt.input}" if prompt.input else prompt.instruction
    return Dialogue((*earlier_turns(prompt), Turn("user", asked)))


def prompt_before(prompt: Prompt, index: int) -> Prompt:
    """Return the prompt of an earlier answer.

    The answer is the assistant turn with the index `index` in `turns_of(prompt)`.
    """
    if isinstance(prompt, Conversation):
        return replace(prompt, turns=prompt.turns[:index])
    assert isinstance(prompt, Instruction), "a raw prompt has no earlier answer"
    number = (index - bool(prompt.system)) // 2
    return Instruction(prompt.history[number][0], system=prompt.system, history=prompt.history[:number])


def turns_of(prompt: Prompt) -> tuple[Turn, ...]:
    """Return the turns of a prompt, as in `dialogue_of`."""
    return dialogue_of(prompt).turns
