"""The Alpaca template, as a Python function and as a Jinja template.

The Python function renders data. The Jinja template is stored with an exported student. Both render the same text.

The template is that of Stanford Alpaca. MiniLLM, DistiLLM and MGSR use it for all model families except Qwen (MGSR, Table 8).
"""

import json
from collections.abc import Sequence
from string import Template

from redistill.interfaces import Tokenizer
from redistill.records import Conversation, Instruction, Turn

_HEADER = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request.\n\n"
_PLAIN_HEADER = _HEADER.format("")
_INPUT_HEADER = _HEADER.format(", paired with an input that provides further context")
_INPUT = "\n\n### Input:\n"

_JINJA = Template("""\
{{- $front }}
{%- set seen = namespace(users=0, input=false) %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] + '\\n\\n' }}
    {%- elif message['role'] == 'user' %}
        {%- set seen.users = seen.users + 1 %}
        {%- set seen.input = $input in message['content'] %}
    {%- elif message['role'] != 'assistant' %}
        {{- raise_exception('the Alpaca template has no role ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if seen.users == 1 and seen.input %}
    {{- $input_header }}
{%- else %}
    {{- $plain_header }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '### Instruction:\\n' + message['content'] + '\\n\\n' }}
        {%- if not loop.last or add_generation_prompt %}
            {{- '### Response:\\n' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'] }}
        {%- if loop.last %}
            {{- eos_token }}
        {%- else %}
            {{- '\\n\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
""")


def alpaca_prompt(prompt: Instruction | Conversation) -> str:
    r"""Render a prompt with the Alpaca template, up to the start of the answer.

    The text of a system turn comes first, then the header of the template, then one block for each question and answer.

    Args:
        prompt: The prompt.  Tools, tool calls and reasoning must be absent.

    Example:
        >>> alpaca_prompt(Instruction("Add.", "2 2"))[-53:]
        '### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n'
    """
    if isinstance(prompt, Conversation):
        return _blocks(prompt.turns, _PLAIN_HEADER)
    text = f"{prompt.instruction}{_INPUT}{prompt.input}" if prompt.input else prompt.instruction
    header = _INPUT_HEADER if prompt.input and not prompt.history else _PLAIN_HEADER  # earlier turns have no input
    return _blocks((*earlier_turns(prompt), Turn("user", text)), header)


def earlier_turns(prompt: Instruction) -> tuple[Turn, ...]:
    """Return the system message and the history of an instruction, as turns."""
    system = (Turn("system", prompt.system),) if prompt.system else ()
    return (*system, *(turn for asked, said in prompt.history for turn in (Turn("user", asked), Turn("assistant", said))))


def _blocks(turns: Sequence[Turn], header: str) -> str:
    system = "".join(f"{turn.content}\n\n" for turn in turns if turn.role == "system")
    user, assistant = "### Instruction:\n{}\n\n### Response:\n", "{}\n\n"
    blocks = ((user if turn.role == "user" else assistant).format(turn.content) for turn in turns if turn.role != "system")
    return system + header + "".join(blocks)


def alpaca_jinja(tokenizer: Tokenizer) -> str:
    r"""Return the Alpaca template in Jinja, for the folder of an exported student.

    The template renders messages exactly as `alpaca_prompt` does.  It also writes the special tokens that the tokenizer
    puts before a text, and the end token after the last answer.

    If the only user message contains "\n\n### Input:\n", the header for an instruction with an input is used.

    Args:
        tokenizer: The tokenizer of the student.
    """
    front = "".join(_token_text(tokenizer, number) for number in front_ids(tokenizer))
    texts = {"front": front, "input": _INPUT, "input_header": _INPUT_HEADER, "plain_header": _PLAIN_HEADER}
    return _JINJA.substitute({name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()})


def has_alpaca_jinja(tokenizer: Tokenizer) -> bool:
    """Return whether the chat template of a tokenizer is the Alpaca template."""
    return tokenizer.chat_template is not None and tokenizer.chat_template == alpaca_jinja(tokenizer)


def front_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the special tokens that a tokenizer puts before a text.

    Examples are BOS for Llama and </s> for OPT.
    """
    plain, full = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return full[: next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)]


def _token_text(tokenizer: Tokenizer, number: int) -> str:
    return str(tokenizer.added_tokens_decoder.get(number) or tokenizer.decode([number]))
