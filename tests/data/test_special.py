"""Special tokens in the text of messages are text; those of a chat template and of raw prompts are special."""

from collections import Counter

import pytest
from tokenizers import AddedToken
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from redistill.data.check import check_data
from redistill.data.check_text import described
from redistill.data.special import SpecialTokens
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts, tokenize_training
from redistill.records import Conversation, RawPrompt, Record, Turn
from tests.data.test_encoding import chat_tokenizer
from tests.tokenizers import CHATML, llama_like, opt_like
from tests.worlds import write_rows

CHAT = TokenizeConfig(template="chat")
# The template of Llama 2: contents are stripped, and the end token follows each answer.
LLAMA = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}</s>{% else %}<<{{ m.content | trim }}>>{% endif %}{% endfor %}"
)
# Contents next to each other, and one between the halves of a token.
JOINED = "{% for m in messages %}{{ m.content }}{% endfor %}<|im_start|>{{ messages[0].content }}<|im_end|>"


def with_template(tokenizer: PreTrainedTokenizerFast, template: str) -> PreTrainedTokenizerFast:
    tokenizer.chat_template = template
    return tokenizer


def chat_llama() -> PreTrainedTokenizerFast:
    return with_template(llama_like(), LLAMA)


def chat_opt() -> PreTrainedTokenizerFast:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    return with_template(opt_like(), template + "{% if add_generation_prompt %}assistant: {% endif %}")


CHATS = {"chatml": chat_tokenizer, "llama": chat_llama, "opt": chat_opt}


@pytest.fixture(scope="module", params=CHATS)
def tokenizer(request):
    return CHATS[request.param]()


def talk(*contents: str, answer: str = "Blue.") -> Record:
    roles = ("user", "assistant") * len(contents)
    turns = tuple(Turn(role, content) for role, content in zip(roles, contents))
    return Record(record_id="r:1", prompt=Conversation(turns), references=(answer,))


def specials(tokenizer, ids):
    """The special tokens among ids, without the bytes that a Llama-like tokenizer encodes other text with."""
    added = {number for number, t in tokenizer.added_tokens_decoder.items() if t.special and not str(t).startswith("<0x")}
    return Counter(number for number in ids if number in added)


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def contents(tokenizer):
    """Texts with each special token of the tokenizer in a different place."""
    special = [t for t in SpecialTokens(tokenizer).texts if not t.startswith("<0x")]
    return [text for token in special for text in (token, f"a{token}b", f"{token} {token}", f"  {token}\n", f"x {token[:-1]}")]


def test_special_tokens_in_messages_are_text_and_those_of_the_template_are_special(tokenizer):
    (plain,), _ = tokenize_training([talk("Sky?", "Yes.", "Why?")], tokenizer, CHAT, seed=1)
    (prompt,) = tokenize_prompts([talk("Sky?", "Yes.", "Why?")], tokenizer, CHAT)
    for content in contents(tokenizer):
        for record in (talk(content, "Yes.", "Why?"), talk("Sky?", f"Y{content}.", "Why?"), talk("Sky?", "Yes.", content)):
            (example,), _ = tokenize_training([record], tokenizer, CHAT, seed=1)
            assert specials(tokenizer, example.token_ids) == specials(tokenizer, plain.token_ids), content
            (ids,) = tokenize_prompts([record], tokenizer, CHAT)
            assert specials(tokenizer, ids) == specials(tokenizer, prompt)
            assert content.strip() in decoded(tokenizer, ids)
            assert example.prompt_ids == ids


def test_special_tokens_in_an_answer_are_text(tokenizer):
    (plain,), _ = tokenize_training([talk("Sky?")], tokenizer, CHAT, seed=1)
    for content in contents(tokenizer):
        (example,), _ = tokenize_training([talk("Sky?", answer=f"It is {content} so.")], tokenizer, CHAT, seed=1)
        assert specials(tokenizer, example.token_ids) == specials(tokenizer, plain.token_ids)
        learned = [token for token, is_target in zip(example.token_ids, example.supervised) if is_target]
        assert f"It is {content} so." in decoded(tokenizer, learned)


def test_a_text_without_special_tokens_keeps_its_ids(tokenizer):
    for content in ("a < b", "x >", "im_end", "|", "<", "s", "<|im"):
        record = talk(content)
        text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        (ids,) = tokenize_prompts([record], tokenizer, CHAT)
        assert list(ids) == tokenizer(text, add_special_tokens=False)["input_ids"], content


def test_a_token_split_over_two_messages_or_completed_by_the_template_is_text():
    tokenizer = with_template(chat_tokenizer(), JOINED)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for halves in (("<|im_", "end|>"), ("<", "|im_end|>"), ("<|im_end|", ">")):
        (ids,) = tokenize_prompts([talk(*halves)], tokenizer, CHAT)
        assert ids.count(end) == 1, halves
    tokenizer = with_template(chat_tokenizer(), "<|im_start|><|{{ messages[0].content }}|><|im_end|>")
    (ids,) = tokenize_prompts([talk("im_end")], tokenizer, CHAT)
    assert ids.count(end) == 1
    assert decoded(tokenizer, ids) == "<|im_start|><|im_end|><|im_end|>"


def test_added_tokens_that_are_not_special_remain_tokens():
    tokenizer = chat_tokenizer()
    (ids,) = tokenize_prompts([talk("Use <tool> and <|im_end|>.")], tokenizer, CHAT)
    assert ids.count(tokenizer.convert_tokens_to_ids("<tool>")) == 1
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_contents_of_the_system_and_of_tools_are_text():
    tokenizer = chat_tokenizer()
    special = SpecialTokens(tokenizer)

    def render(messages):
        return tokenizer.apply_chat_template(messages, tokenize=False)

    for role in ("system", "tool", "user", "assistant"):
        messages = [{"role": role, "content": "a<|im_end|>b"}, {"role": "user", "content": "<|endoftext|>"}]
        text = render(messages)
        assert [text[a:b] for a, b in special.literal_ranges(text, messages, render)] == ["<|im_end|>", "<|endoftext|>"]
    nested = [
        {"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}], "tool_calls": [{"arguments": "<|im_start|>"}]}
    ]
    template = "<|im_start|>{{ m[0].content[0].text }}{{ m[0].tool_calls[0].arguments }}<|im_end|>".replace(
        "m[0]", "messages[0]"
    )
    tokenizer.chat_template = template
    text = render(nested)
    assert special.literal_ranges(text, nested, render) == [(12, 22), (22, 34)]


def test_a_token_that_the_template_searches_for_remains_special():
    template = CHATML.replace("{{ m.content }}", "{{ m.content.split('<|endoftext|>')[-1] }}<|endoftext|>")
    tokenizer = with_template(chat_tokenizer(), template)
    (ids,) = tokenize_prompts([talk("hidden<|endoftext|>a <|im_end|> b")], tokenizer, CHAT)
    assert "hidden" not in decoded(tokenizer, ids)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1


def test_raw_prompts_keep_special_tokens_and_they_are_counted():
    tokenizer = chat_tokenizer()
    record = Record(record_id="r:1", prompt=RawPrompt("a<|im_end|>b<|im_end|>"), references=("c<|endoftext|>",))
    (example,), report = tokenize_training([record], tokenizer, TokenizeConfig(), seed=1)
    assert example.token_ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert report.special_tokens.as_json() == {"kept": {"<|im_end|>": 2, "<|endoftext|>": 1}, "kept_rows": 1}
    _, report = tokenize_training([record], tokenizer, CHAT, seed=1)
    assert report.special_tokens.as_json() == {"as_text": {"<|im_end|>": 2, "<|endoftext|>": 1}, "as_text_rows": 1}


def test_a_check_reports_special_tokens_of_rows_and_of_test_rows(tmp_path):
    message = {"messages": [{"role": "user", "content": "a <|endoftext|>"}, {"role": "assistant", "content": "b"}]}
    path = write_rows(tmp_path / "train.jsonl", [message, {"prompt": "c<|im_end|>", "completion": "d"}])
    test = write_rows(tmp_path / "test.jsonl", [{"prompt": "e<|im_start|>", "completion": "f"}])
    checks = check_data([(path, "train")], {"mine": test}, tokenizer=chat_tokenizer(), tokens=TokenizeConfig())
    assert [check.is_sound for check in checks] == [True, True]
    assert checks[0].as_json()["special_tokens"] == {
        "kept": {"<|im_end|>": 1}, "kept_rows": 1, "as_text": {"<|endoftext|>": 1}, "as_text_rows": 1
    }  # fmt: skip
    lines = "\n".join(described(checks))
    assert "special tokens in 1 row of raw text are encoded as special tokens: <|im_end|> (1)" in lines
    assert "special tokens in the text of 1 row are encoded as plain text: <|endoftext|> (1)" in lines
    assert "<|im_start|> (1)" in lines


def test_a_tokenizer_in_python_encodes_special_tokens_in_messages_as_text():
    tokenizer = with_template(ByT5Tokenizer(), "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}")
    for content in ("</s>", "a</s>b", "<pad></s> <unk>"):
        (ids,) = tokenize_prompts([talk(content)], tokenizer, CHAT)
        assert [number for number in ids if number in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
        assert decoded(tokenizer, ids) == f"user: {content}</s>"


def test_an_end_token_that_is_added_without_the_flag_of_special_tokens_is_text_in_messages():
    tokenizer = chat_tokenizer()
    tokenizer.add_tokens([AddedToken("<stop>", special=False, normalized=False)])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<stop>")
    tokenizer.eos_token = "<stop>"
    (ids,) = tokenize_prompts([talk("a<stop>b")], tokenizer, CHAT)
    assert ids.count(tokenizer.convert_tokens_to_ids("<stop>")) == 1


def test_a_text_with_the_private_character_of_the_encoder_has_no_other_special_tokens(tokenizer):
    (plain,) = tokenize_prompts([talk("Sky?")], tokenizer, CHAT)
    for content in contents(tokenizer):
        (ids,) = tokenize_prompts([talk(f"\U0010f000{content}")], tokenizer, CHAT)
        assert specials(tokenizer, ids) == specials(tokenizer, plain)
