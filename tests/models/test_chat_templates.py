"""The first rendering of a chat template: bounded, in a child, once, and the same as in this process."""

import os
import threading
from pathlib import Path

import pytest

from redistill.errors import ModelError
from redistill.models import chat_templates
from redistill.models.chat_templates import check_chat_templates, two_turns
from tests.models.conftest import make_tokenizer

NORMAL = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(chat_templates, "_known", {})


def tokenizer_of(template):
    tokenizer = make_tokenizer(eos_token="w2")
    tokenizer.chat_template = template
    return tokenizer


def test_the_rendering_is_that_of_this_process():
    tokenizer = tokenizer_of(NORMAL)
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    assert two_turns(tokenizer) == tokenizer.apply_chat_template(turns, tokenize=False) == "<user>uw2\n<assistant>aw2\n"


@pytest.fixture
def children(monkeypatch):
    """The process numbers of the children that the test starts; other tests of this process may have left children."""
    started, fork = [], os.fork

    def recorded():
        child = fork()
        started.append(child)
        return child

    monkeypatch.setattr(os, "fork", recorded)
    return started


def none_remains(children):
    for child in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(child, os.WNOHANG)
    return bool(children)


def test_a_template_is_rendered_once(children):
    for _ in range(3):
        check_chat_templates("m", tokenizer_of(NORMAL))
        two_turns(tokenizer_of(NORMAL))
    assert len(children) == 1
    two_turns(tokenizer_of(NORMAL + "."))
    assert len(children) == 2


def test_a_tokenizer_without_a_template_starts_no_child(monkeypatch):
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    check_chat_templates("m", make_tokenizer(eos_token="w2"))
    assert two_turns(make_tokenizer(eos_token="w2")) == ""


def test_a_template_that_rejects_a_conversation_is_accepted():
    check_chat_templates("m", tokenizer_of("{{ raise_exception('no') }}"))
    check_chat_templates("m", tokenizer_of("{{ 1 / 0 }}"))
    assert two_turns(tokenizer_of("{{ 1 / 0 }}")) == ""


def test_no_child_remains_and_no_file_stays_open(children):
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    check_chat_templates("m", tokenizer_of(NORMAL))
    with pytest.raises(ModelError, match="returns more than"):
        check_chat_templates("m", tokenizer_of("{{ 'x' * 2000000 }}"))
    assert none_remains(children)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_the_limit_of_time_is_the_childs_own(monkeypatch):
    monkeypatch.setattr(chat_templates, "CPU_SECONDS", 1)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="takes more than"):
        check_chat_templates("m", tokenizer_of(endless))
    check_chat_templates("m", tokenizer_of(NORMAL))


def test_a_child_that_never_answers_is_stopped(monkeypatch, children):
    monkeypatch.setattr(chat_templates, "WALL_SECONDS", 0)
    monkeypatch.setattr(chat_templates, "_set_limits", lambda: threading.Event().wait())
    with pytest.raises(ModelError, match="takes more than"):
        check_chat_templates("m", tokenizer_of(NORMAL))
    assert none_remains(children)


def test_several_threads_and_templates_at_once():
    found = {}

    def render(number):
        found[number] = two_turns(tokenizer_of(NORMAL + str(number)))

    threads = [threading.Thread(target=render, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: f"<user>uw2\n<assistant>aw2\n{number}" for number in range(8)}


def test_every_named_template_is_tried():
    endless = "{{ 'x' * 10 ** 11 }}"
    with pytest.raises(ModelError, match="1 GiB"):
        check_chat_templates("m", tokenizer_of({"default": NORMAL, "tool_use": endless}))
    check_chat_templates("m", tokenizer_of({"default": NORMAL, "tool_use": NORMAL}))
