"""The verbatim Alpaca prompt, prompts of chat templates, and the ranges of the answers of a transcript."""

import json
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.data.templates import render_prompt, render_transcript
from redistill.errors import ConfigError, DataError
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from tests.tokenizers import CHATML, opt_like

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "alpaca.json").read_text(encoding="utf-8"))["cases"]
TWO_TURNS = Conversation((Turn("user", "Hi?"), Turn("assistant", "Hello."), Turn("user", "Bye?")))


def chat(template):
    """The part of a tokenizer that chat templates need."""

    def apply_chat_template(messages, *, tokenize, add_generation_prompt):
        assert tokenize is False

        def reject(message):
            raise jinja2.TemplateError(message)

        rendered = jinja2.Template(template, keep_trailing_newline=True)
        return rendered.render(messages=messages, add_generation_prompt=add_generation_prompt, raise_exception=reject)

    return SimpleNamespace(chat_template=template, apply_chat_template=apply_chat_template, eos_token="</s>")


def answers(transcript):
    return [transcript.text[start:end] for start, end in transcript.answers]


def transcript_of(prompt, answer, template, tokenizer, every_turn):
    record = Record(record_id="r:1", prompt=prompt, references=(answer,))
    return render_transcript(record, answer, template, tokenizer, every_turn=every_turn)


@pytest.mark.parametrize("case", GOLDEN, ids=["without input", "with input"])
def test_alpaca_prompts_equal_the_published_template(case):
    assert render_prompt(Instruction(case["instruction"], case["input"]), "alpaca", None) == case["prompt"]


def test_raw_prompts_and_placeholders_in_data_are_verbatim():
    assert render_prompt(RawPrompt(" {x} <n>\n"), "alpaca", None) == " {x} <n>\n"
    assert "{0}<n>{}" in render_prompt(Instruction("{0}<n>{}"), "alpaca", None)


def test_earlier_turns_become_earlier_alpaca_blocks():
    text = render_prompt(TWO_TURNS, "alpaca", None)
    assert text.endswith("### Instruction:\nHi?\n\n### Response:\nHello.\n\n### Instruction:\nBye?\n\n### Response:\n")
    assert text.startswith("Below is an instruction") and text.count("Below is") == 1


def test_a_system_turn_opens_the_alpaca_prompt():
    prompt = Conversation((Turn("system", "Be kind."), Turn("user", "Hi?")))
    assert render_prompt(prompt, "alpaca", None).startswith("Be kind.\n\nBelow is")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(Instruction("Add.", "1 2"), "Add.\n\n1 2"), (Instruction("Add."), "Add."), (RawPrompt("Add: "), "Add: ")],
)
def test_chat_puts_a_prompt_into_one_user_message(prompt, message):
    expected = f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(prompt, "chat", chat(CHATML)) == expected


def test_chat_without_a_chat_template_is_an_error_with_the_remedy():
    with pytest.raises(ConfigError, match="no chat template; use template: alpaca"):
        render_prompt(Instruction("Add."), "chat", SimpleNamespace(chat_template=None))


def test_a_conversation_that_the_chat_template_rejects_is_a_data_error():
    with pytest.raises(DataError, match="no system here"):
        render_prompt(Instruction("Add."), "chat", chat("{{ raise_exception('no system here') }}"))


@pytest.mark.parametrize(("template", "end"), [("alpaca", ""), ("chat", "<|im_end|>")])
@pytest.mark.parametrize("every_turn", [False, True])
def test_exactly_the_answers_of_a_transcript_are_marked(template, end, every_turn):
    found = transcript_of(TWO_TURNS, "See you.", template, chat(CHATML), every_turn)
    assert answers(found) == (["Hello." + end] if every_turn else []) + ["See you." + end]
    assert found.text.endswith("See you." + end) and found.ended is bool(end)
    assert found.text.startswith(render_prompt(TWO_TURNS, template, chat(CHATML)))


def test_without_an_end_of_turn_marker_the_transcript_is_not_ended():
    bare = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    found = transcript_of(Instruction("Add."), "3", "chat", chat(bare), False)
    assert answers(found) == ["3"] and not found.ended


THINKING = CHATML.replace(
    "{{ m.content }}", "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}"
)


def test_text_that_a_template_inserts_before_the_last_answer_is_part_of_the_answer():
    found = transcript_of(TWO_TURNS, "See you.", "chat", chat(THINKING), False)
    assert answers(found) == ["<think></think>See you.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "every_turn"),
    [(THINKING, True), (CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif"), False), ("fixed text", False)],
    ids=["rewrites earlier turns", "prompt unlike the transcript", "drops the content"],
)
def test_a_template_whose_answers_cannot_be_located_is_rejected(template, every_turn):
    with pytest.raises(DataError, match="renders the turns before turn"):
        transcript_of(TWO_TURNS, "See you.", "chat", chat(template), every_turn)


TOKENIZER = opt_like()
# Special tokens of the tokenizer, functions and filters of transformers, and messages as a whole.
TEMPLATES = (
    CHATML,
    "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{% if tools is none and documents is none %}{{ messages | tojson }}{% endif %}{{ pad_token }}{{ sep_token }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{{ loop.index0 }}{{ m['role'] | upper }}: {{ m.content }}\n{% endfor %}\n",
)


@settings(max_examples=40)
@given(contents=st.lists(st.text(max_size=12), min_size=1, max_size=5), template=st.sampled_from(TEMPLATES))
def test_chat_text_equals_that_of_apply_chat_template(contents, template):
    tokenizer = TOKENIZER
    tokenizer.chat_template = template
    turns = tuple(Turn(("user", "assistant")[number % 2], content) for number, content in enumerate(contents))
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render_prompt(Conversation(turns), "chat", tokenizer) == expected
