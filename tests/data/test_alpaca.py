"""The Alpaca template in Jinja renders the same text and the same token ids as the one for data."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redistill.data.alpaca import alpaca_jinja, alpaca_prompt
from redistill.data.sequences import SequenceEncoder
from redistill.data.tokenize import TokenizeConfig
from redistill.records import Conversation, Instruction, Record, Turn
from tests.tokenizers import FAMILIES

TOKENIZERS = {name: make() for name, make in FAMILIES.items()}
FRONT = {"gpt2-like": "", "llama-like": "<s>", "opt-like": "</s>"}
WORDS = st.text(max_size=12)


def jinja(tokenizer, turns, *, prompts):
    tokenizer.chat_template = alpaca_jinja(tokenizer)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts)


@settings(max_examples=60)
@given(system=WORDS, texts=st.lists(WORDS, min_size=1, max_size=5), answer=WORDS, name=st.sampled_from(sorted(FAMILIES)))
def test_messages_are_rendered_as_by_the_template_for_data(system, texts, answer, name):
    tokenizer = TOKENIZERS[name]
    texts = texts[: len(texts) - 1 + len(texts) % 2]  # ends with a question
    turns = tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts))
    turns = (Turn("system", system), *turns) if system else turns
    prompt = FRONT[name] + alpaca_prompt(Conversation(turns))
    assert jinja(tokenizer, turns, prompts=True) == prompt
    assert jinja(tokenizer, (*turns, Turn("assistant", answer)), prompts=False) == prompt + answer + tokenizer.eos_token


@settings(max_examples=30)
@given(instruction=WORDS, given_input=WORDS.filter(bool), system=WORDS)
def test_an_input_is_a_part_of_the_message(instruction, given_input, system):
    turns = (Turn("user", f"{instruction}\n\n### Input:\n{given_input}"),)
    turns = (Turn("system", system), *turns) if system else turns
    expected = alpaca_prompt(Instruction(instruction, given_input, system))
    assert jinja(TOKENIZERS["gpt2-like"], turns, prompts=True) == expected


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_token_ids_are_those_of_training(name):
    tokenizer = FAMILIES[name]()
    instruction = Record(record_id="a", prompt=Instruction("Name a colour."), references=())
    trained = SequenceEncoder(tokenizer, TokenizeConfig()).prompts([instruction])
    tokenizer.chat_template = alpaca_jinja(tokenizer)
    talk = Record(record_id="a", prompt=Conversation((Turn("user", "Name a colour."),)), references=())
    assert SequenceEncoder(tokenizer, TokenizeConfig()).prompts([talk]) == trained


def test_a_tool_message_is_rejected():
    with pytest.raises(Exception, match="has no role tool"):
        jinja(TOKENIZERS["gpt2-like"], (Turn("user", "a"), Turn("tool", "b")), prompts=True)
