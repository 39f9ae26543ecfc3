"""Tool definitions, tool calls, results and reasoning: parsed, rendered by the chat template, and masked."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from redistill.data.bad_rows import BadRow
from redistill.data.forms import parse_row
from redistill.data.rows import content_digest
from redistill.data.templates import render_prompt, render_transcript
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts, tokenize_training
from redistill.errors import DataError
from redistill.records import Conversation, Instruction, Record, ToolCall, Turn
from tests.data.test_encoding import chat_tokenizer
from tests.tokenizers import CHATML

# A template in the style of Qwen: tools in the system block, calls and results between tags, and reasoning in the last answer.
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content is string and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A template in the style of DeepSeek: arguments are text, and calls are rendered only if the content is null.
TEXT_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is none %}"
    "{% for call in m.tool_calls %}{{ call.function.name + ' ' + call.function.arguments }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
WEATHER = {"name": "get_weather", "description": "Weather now", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": WEATHER}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
ASKED, ANSWER = {"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "It rains."}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4 C, rain"}
FULL = {"messages": [ASKED, CALLING, RESULT, ANSWER], "tools": [TOOL]}


def with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def record(row: Mapping[str, Any]) -> Record:
    return parse_row(row).record("r:1")


def learned(row: Mapping[str, Any], jinja: str = TOOLS, **settings: Any) -> list[str]:
    """The texts of the targets, or the reason for which the row is set aside."""
    tokenizer = with_template(jinja)
    settings = {"prompt_tokens": 500, "response_tokens": 500, **settings}
    plain = Record(record_id="r:2", prompt=Instruction("a"), references=("b",))
    examples, report = tokenize_training([plain, record(row)], tokenizer, TokenizeConfig(**settings), seed=1)
    if report.rejected:
        return [report.rejected[0].reason]
    found, previous = [""], False
    for token, is_target in zip(examples[1].token_ids, examples[1].supervised, strict=True):
        found = [*found, ""] if is_target and not previous else found
        found[-1] += tokenizer.decode([token]) if is_target else ""
        previous = is_target
    return found[1:]


CALL_TEXT = '<call>get_weather {"city": "Oslo"}</call><|im_end|>'


def test_only_assistant_turns_are_targets_and_results_are_not():
    assert learned(FULL) == ["It rains.<|im_end|>"]
    assert learned(FULL, supervise="every") == [CALL_TEXT, "It rains.<|im_end|>"]
    text = render_prompt(record(FULL).prompt, "auto", with_template(TOOLS))
    assert json.dumps(TOOL) in text and "tool\n4 C, rain" in text and CALL_TEXT in text


def test_a_call_can_be_the_answer_and_is_scored_as_json():
    row = {"messages": [ASKED, CALLING], "tools": json.dumps([WEATHER])}
    assert learned(row) == [CALL_TEXT]
    assert record(row).references == ('{"name": "get_weather", "arguments": {"city": "Oslo"}}',)


def test_arguments_and_content_are_passed_as_the_template_needs_them():
    row = {"messages": [ASKED, CALLING, RESULT, ANSWER]}
    text = render_transcript(record(row), "It rains.", "auto", with_template(TEXT_CALLS), every_turn=False).text
    assert 'get_weather {"city":"Oslo"}<|im_end|>' in text
    assert learned(FULL, TEXT_CALLS)[0].startswith("the chat template does not render the tool definitions")


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (FULL, "tool calls and their results"),
        ({"messages": [ASKED, ANSWER], "tools": [TOOL]}, "the tool definitions of the key tools"),
        ({"messages": [ASKED, {**ANSWER, "reasoning_content": "hm"}]}, "reasoning (reasoning_content, thinking)"),
        ({"messages": [ASKED, {**ANSWER, "thinking": "hm"}]}, "reasoning (reasoning_content, thinking)"),
    ],
)
@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_what_the_template_does_not_render_sets_the_row_aside_with_that_reason(row, what, template):
    (reason,) = learned(row, template)
    assert f"the chat template does not render {what}" in reason
    (reason,) = learned(row, template, template="alpaca")
    assert f"the Alpaca template does not render {what}" in reason


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_reasoning_is_learned_as_part_of_the_answer_under_the_key_that_the_template_reads(key, read):
    row = {"messages": [ASKED, {**ANSWER, key: "Look it up."}]}
    assert learned(row, TOOLS.replace("reasoning_content", read)) == ["<think>Look it up.</think>It rains.<|im_end|>"]
    assert record(row).references == ("It rains.",)
    assert content_digest(record(row)) != content_digest(record({"messages": [ASKED, ANSWER]}))


def test_sharegpt_roles_of_functions_are_calls_and_results():
    call = json.dumps(WEATHER | {"arguments": {"city": "Oslo"}})
    turns = [("system", "Be kind."), ("human", "Hi"), ("function_call", call), ("observation", "ok"), ("gpt", "done")]
    talk = record({"conversations": [{"from": name, "value": text} for name, text in turns]})
    assert isinstance(talk.prompt, Conversation)
    roles = [(turn.role, turn.content) for turn in talk.prompt.turns]
    assert roles == [("system", "Be kind."), ("user", "Hi"), ("assistant", ""), ("tool", "ok")]
    assert talk.prompt.turns[2].calls == (ToolCall("get_weather", '{"city": "Oslo"}'),)
    assert parse_row({"conversations": [{"from": "user", "value": "Hi"}, {"from": "chatgpt", "value": "Hello"}]}).references
    first = record({"messages": [{"role": "developer", "content": "Be terse"}, ASKED, ANSWER]}).prompt
    assert isinstance(first, Conversation) and first.turns[0] == Turn("system", "Be terse")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]}, "a tool call must be"),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": ["f"]}]}, "a tool call must be an object"),
        (
            {"messages": [ASKED, {**CALLING, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "arguments of a tool call is not",
        ),
        ({"messages": [ASKED, {**CALLING, "tool_calls": [{"name": "f", "arguments": "[]"}]}]}, "must be a JSON object"),
        ({"messages": [ASKED, ANSWER, RESULT, ANSWER]}, "message 3 has role tool"),
        ({"messages": [ASKED, CALLING, RESULT, ASKED, ANSWER]}, "message 4 has role user"),
        ({"messages": [ASKED, {"role": "assistant", "content": None}]}, "content is missing"),
        ({"messages": [ASKED, ANSWER], "tools": "?"}, "'tools': value of a tool call is not JSON"),
        ({"messages": [ASKED, ANSWER], "tools": [3]}, "'tools' must be a list of function definitions"),
    ],
)
def test_unusable_tool_calls_are_rejected_with_their_reason(row, reason):
    with pytest.raises(BadRow) as caught:
        parse_row(row)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_special_tokens_in_calls_results_and_tools_are_text_and_in_names_set_the_row_aside():
    end = "<|im_end|>"
    tokenizer, config = with_template(TOOLS), TokenizeConfig(prompt_tokens=900)
    number = tokenizer.convert_tokens_to_ids(end)
    (clean,) = tokenize_prompts([record(FULL)], tokenizer, config)
    risky = {
        "messages": [ASKED, {**CALLING, "tool_calls": [{"name": "get_weather", "arguments": {"city": f"a{end}"}}]},
                     {**RESULT, "content": f"{end}b"}, ANSWER],
        "tools": [{**TOOL, "function": {**WEATHER, "description": f"x {end} y"}}],
    }  # fmt: skip
    (ids,) = tokenize_prompts([record(risky)], tokenizer, config)
    assert list(ids).count(number) == list(clean).count(number)
    named = {"messages": [ASKED, ANSWER], "tools": [{"name": f"f{end}"}]}
    with pytest.raises(DataError, match="contains a special token"):
        tokenize_prompts([record(named)], tokenizer, config)


# --- Alpaca rows --------------------------------------------------------------------------------------------------------


def test_system_and_history_of_an_alpaca_row_are_rendered():
    row = {"instruction": "And of Italy?", "input": "", "output": "Rome.", "system": "Answer as a pirate.",
           "history": [["Capital of France?", "Paris."]]}  # fmt: skip
    found = record(row)
    assert found.prompt == Instruction("And of Italy?", "", "Answer as a pirate.", (("Capital of France?", "Paris."),))
    talk = (Turn("system", "Answer as a pirate."), Turn("user", "Capital of France?"), Turn("assistant", "Paris."),
            Turn("user", "And of Italy?"))  # fmt: skip
    assert render_prompt(found.prompt, "auto", None) == render_prompt(Conversation(talk), "alpaca", None)
    tokenizer = with_template(CHATML)
    assert render_prompt(found.prompt, "chat", tokenizer) == render_prompt(Conversation(talk), "chat", tokenizer)
    for template, end in (("auto", ["Paris.", "Rome."]), ("chat", ["Paris.<|im_end|>", "Rome.<|im_end|>"])):
        made = render_transcript(found, "Rome.", template, tokenizer, every_turn=True)
        assert [made.text[a:b] for a, b in made.answers] == end
    assert content_digest(found) != content_digest(record({key: row[key] for key in ("instruction", "output")}))


@pytest.mark.parametrize("history", ["a", [["a"]], [["a", ""]], [[1, "b"]], [{"a": "b"}]])
def test_an_unusable_history_is_rejected(history):
    with pytest.raises(BadRow, match="'history'"):
        parse_row({"instruction": "a", "output": "b", "history": history})


def test_a_system_text_beside_a_conversation_is_its_system_message():
    row = {"system": "Be kind.", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    assert record(row).prompt == Conversation((Turn("system", "Be kind."), Turn("user", "a")))
    with pytest.raises(BadRow, match="the key 'system' and a system message"):
        parse_row({"system": "x", "messages": [{"role": "system", "content": "y"}, ASKED, ANSWER]})


def test_a_content_of_text_parts_is_their_text():
    parts = [{"type": "text", "text": "Name "}, {"type": "text", "text": "a river."}]
    row = {
        "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "Po."}]}]
    }
    parsed = parse_row(row)
    assert parsed.prompt.turns == (Turn("user", "Name a river."),) and parsed.references == ("Po.",)


def test_a_part_of_another_type_is_named():
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    with pytest.raises(BadRow, match="content has a part of type 'image_url'; only parts of type 'text' are supported"):
        parse_row(row)
