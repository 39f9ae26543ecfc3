"""The Modelfile renders conversations as the tokenizer's template does."""

import re

import jinja2
import pytest

from redistill.data.templates import render_prompt
from redistill.deploy.modelfile import modelfile, pieces_of
from redistill.records import Conversation, Turn
from tests.deploy.models import qwen_tokenizer, sentencepiece_tokenizer
from tests.tokenizers import CHATML
from tests.worlds import gpt2_tokenizer

TEMPLATES = {
    "chatml": CHATML,
    "with a default system message": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are \"helpful\".<|im_end|>\n{% endif %}" + CHATML
    ),
    "llama 2": (
        "{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ s if loop.index0 == 0 else '' }}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
    ),
    "other prompt than in the history": (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}\\{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    ),
    "Alpaca as Jinja": (
        "{% for m in messages if m.role == 'system' %}{{ m.content }}\n\n{% endfor %}Below is an instruction.\n\n"
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n### Response:\n"
        "{% elif m.role == 'assistant' %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    ),
}
USER, ANSWER, SYSTEM = Turn("user", 'Why "{{ x }}"?\nAnd\twhy not'), Turn("assistant", "Because."), Turn("system", "Be brief.")
CONVERSATIONS = [(USER,), (USER, ANSWER, USER), (SYSTEM, USER), (SYSTEM, USER, ANSWER, USER, ANSWER, USER)]
GO_AS_JINJA = {
    "{{ if .System }}": "{% if system %}",
    "{{ .System }}": "{{ system }}",
    "{{ range $i, $_ := .Messages }}": "{% for m in messages %}",
    "{{ if eq (len (slice $.Messages $i)) 1 }}": "{% if loop.last %}",
    '{{ if eq .Role "user" }}': "{% if m.role == 'user' %}",
    '{{ else if eq .Role "assistant" }}': "{% elif m.role == 'assistant' %}",
    "{{ .Content }}": "{{ m.content }}",
    "{{ else }}": "{% else %}",
}


def rendered_by_ollama(text: str, turns) -> str:
    """Render the template of a Modelfile, whose few constructs of Go are replaced by those of Jinja."""
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)[1]
    blocks: list[str] = []

    def translated(found: re.Match[str]) -> str:
        action = found[0]
        if action == "{{ end }}":
            return f"{{% end{blocks.pop()} %}}"
        if action.startswith(("{{ if", "{{ range")):
            blocks.append("if" if action.startswith("{{ if") else "for")
        return GO_AS_JINJA.get(action, action)  # a string literal is the same in both languages

    source = re.sub(r'\{\{ (?:"(?:\\.|[^"\\])*"|[^"{}]|"[^"]*")* \}\}', translated, template)
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    return jinja2.Environment(keep_trailing_newline=True).from_string(source).render(system=system, messages=turns)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_of_a_tokenizer_is_written_for_ollama(name):
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    pieces = pieces_of(tokenizer, "chat")
    assert pieces is not None
    for turns in CONVERSATIONS:
        expected = render_prompt(Conversation(turns), "chat", tokenizer)
        assert rendered_by_ollama(modelfile("model.gguf", pieces, ()), turns) == expected
        assert pieces.rendered(turns) == expected


def test_the_alpaca_template_is_written_for_ollama():
    tokenizer = gpt2_tokenizer()
    text = modelfile("model.gguf", pieces_of(tokenizer, "alpaca"), ["<|endoftext|>"])
    for turns in CONVERSATIONS:
        assert rendered_by_ollama(text, turns) == render_prompt(Conversation(turns), "alpaca", tokenizer)
    assert text.startswith("FROM ./model.gguf\n") and text.endswith('PARAMETER stop "<|endoftext|>"\n')


def test_a_begin_token_that_the_tokenizer_adds_is_not_written():
    tokenizer = sentencepiece_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert pieces_of(tokenizer, "chat").rendered([USER]) == f"user: {USER.content}\nassistant:"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}: {{ m.content }} {% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ messages[-1].content }}",
    ],
)
def test_a_template_that_depends_on_contents_is_left_to_ollama(template):
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = template
    assert pieces_of(tokenizer, "chat") is None
    assert "TEMPLATE" not in modelfile("model.gguf", None, ())


def test_a_template_without_system_messages_is_written_without_them():
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
    pieces = pieces_of(tokenizer, "chat")
    assert pieces.before_system is None and ".System" not in pieces.go_template()
    assert rendered_by_ollama(modelfile("m", pieces, ()), [USER]) == pieces.rendered([USER])


def test_a_stop_text_with_quotes_is_quoted_by_three():
    assert modelfile("m", None, ['a"b']).splitlines()[1] == 'PARAMETER stop """a"b"""'
