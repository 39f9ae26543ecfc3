"""What is learned of a conversation is the assistant's text with its end token, verbatim, in templates of many families.

They are written here in the manner of each family: what it puts around a message, what it trims, and what it refuses.
"""

from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any

import pytest

from redistill.contracts import Example
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts, tokenize_training
from redistill.errors import DataError
from redistill.records import Conversation, Record, Turn
from tests.worlds import gpt2_tokenizer


@dataclass(frozen=True, kw_only=True)
class Family:
    """A chat template and what is to be learned of an answer: `before` + the answer + `end`.

    Args:
        specials: Tokens beside bos and eos that are one id.
        before: What the template writes between a prompt and its answer.
        end: What it writes behind the last answer, up to the last token that is no white space.
        earlier_end: The same behind an earlier answer, where it differs.
        trims: Whether it strips messages.
        system: Whether it takes a system message.
        every: Whether an earlier answer stands as it was when it was the last.
    """

    template: str
    eos: str
    end: str
    bos: str = "<s>"
    specials: tuple[str, ...] = ()
    before: str = ""
    earlier_end: str | None = None
    trims: bool = False
    system: bool = True
    every: bool = True


def turns(text: str, prompt: str = "", start: str = "") -> str:
    """A template: `start`, `text` for each message m, and `prompt` where a model is to answer."""
    return f"{start}{{% for m in messages %}}{text}{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"


def by_role(user: str, assistant: str, system: str = "{{ raise_exception('a system message is not allowed') }}") -> str:
    return f"{{% if m.role == 'user' %}}{user}{{% elif m.role == 'assistant' %}}{assistant}{{% else %}}{system}{{% endif %}}"


CHATML = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
CHATML_PROMPT = "<|im_start|>assistant\n"
IM = ("<|im_start|>",)
THOUGHT = "<think>\n\n</think>\n\n"
LAST_THINKS = "{{ '" + THOUGHT.replace("\n", "\\n") + "' if m.role == 'assistant' and loop.last else '' }}"
LLAMA_2_SYSTEM = (
    "{% set named = messages[0].role == 'system' %}"
    "{% set front = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' if named else '' %}"
)
LLAMA_2_TURN = by_role(
    "{{ bos_token }}[INST] {{ front if loop.index0 == (1 if named else 0) else '' }}{{ m.content }} [/INST]",
    " {{ m.content }} {{ eos_token }}",
    "",
)
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
COMMAND_ROLE = (
    "{{ {'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>', 'system': '<|SYSTEM_TOKEN|>'}[m.role] }}"
)  # fmt: skip

FAMILIES = {
    "ChatML": Family(template=turns(CHATML, CHATML_PROMPT), eos="<|im_end|>", end="<|im_end|>", specials=IM),
    "Qwen 2.5": Family(
        template=turns(
            CHATML,
            CHATML_PROMPT,
            "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are of use.<|im_end|>\n{% endif %}",
        ),
        eos="<|im_end|>",
        end="<|im_end|>",
        specials=IM,
    ),
    "Qwen 3": Family(
        template=turns(CHATML.replace("{{ m.content }}", LAST_THINKS + "{{ m.content }}"), CHATML_PROMPT),
        eos="<|im_end|>",
        before=THOUGHT,
        end="<|im_end|>",
        specials=(*IM, "<think>", "</think>"),
        every=False,
    ),
    "Llama 2": Family(template=turns(LLAMA_2_TURN, "", LLAMA_2_SYSTEM), eos="</s>", before=" ", end=" </s>"),
    "Llama 3": Family(
        template=turns(
            "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "{{ bos_token }}",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        end="<|eot_id|>",
        specials=HEADERS,
        trims=True,
    ),
    "Mistral": Family(
        template=turns(by_role("[INST] {{ m.content }}[/INST]", " {{ m.content }}{{ eos_token }}"), "", "{{ bos_token }}"),
        eos="</s>",
        before=" ",
        end="</s>",
        specials=("[INST]", "[/INST]"),
        system=False,
    ),
    "Gemma": Family(
        template=turns(
            by_role(
                "<start_of_turn>user\n{{ m.content | trim }}<end_of_turn>\n",
                "<start_of_turn>model\n{{ m.content | trim }}<end_of_turn>\n",
            ),
            "<start_of_turn>model\n",
            "{{ bos_token }}",
        ),
        bos="<bos>",
        eos="<eos>",
        end="<end_of_turn>",
        specials=("<start_of_turn>", "<end_of_turn>"),
        trims=True,
        system=False,
    ),
    "Phi 3": Family(
        template=turns("<|{{ m.role }}|>\n{{ m.content }}<|end|>\n").replace(
            "{% if add_generation_prompt %}", "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}"
        ),
        eos="<|stop|>",
        end="<|end|>\n<|stop|>",
        earlier_end="<|end|>",
        specials=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "Zephyr": Family(
        template=turns("<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n", "<|assistant|>\n"), eos="</s>", end="</s>"
    ),
    "Vicuna": Family(
        template=turns(
            by_role("USER: {{ m.content }} ", "ASSISTANT: {{ m.content }}{{ eos_token }}", "{{ m.content }} "), "ASSISTANT:"
        ),
        eos="</s>",
        before=" ",
        end="</s>",
    ),
    "Alpaca": Family(
        template=turns(
            by_role(
                "### Instruction:\n{{ m.content }}\n\n",
                "### Response:\n{{ m.content }}{{ eos_token }}\n\n",
                "{{ m.content }}\n\n",
            ),
            "### Response:\n",
        ),
        eos="</s>",
        end="</s>",
    ),
    "DeepSeek": Family(
        template=turns(
            by_role("<｜User｜>{{ m.content }}", "<｜Assistant｜>{{ m.content }}{{ eos_token }}", "{{ m.content }}"),
            "<｜Assistant｜>",
            "{{ bos_token }}",
        ),
        bos="<｜begin｜>",
        eos="<｜end｜>",
        end="<｜end｜>",
        specials=("<｜User｜>", "<｜Assistant｜>"),
    ),
    "Granite": Family(
        template=turns(
            "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}{{ eos_token }}\n",
            "<|start_of_role|>assistant<|end_of_role|>",
        ),
        eos="<|end_of_text|>",
        end="<|end_of_text|>",
        specials=("<|start_of_role|>", "<|end_of_role|>"),
    ),
    "Command": Family(
        template=turns(
            "<|START_OF_TURN|>" + COMMAND_ROLE + "{{ m.content | trim }}{{ eos_token }}",
            "<|START_OF_TURN|><|CHATBOT_TOKEN|>",
            "{{ bos_token }}",
        ),
        eos="<|END_OF_TURN|>",
        end="<|END_OF_TURN|>",
        specials=("<|START_OF_TURN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        trims=True,
    ),
    "OpenChat": Family(
        template=turns("Correct {{ m.role | title }}: {{ m.content }}<|turn|>", "Correct Assistant:", "{{ bos_token }}"),
        eos="</s>",
        before=" ",
        end="<|turn|>",
        specials=("<|turn|>",),
    ),
    "without an end of turn": Family(
        template=turns("{{ m.role }}: {{ m.content }}\n", "assistant: "), eos="</s>", end="</s>", earlier_end=""
    ),
}


@cache
def tokenizer(family: Family) -> Any:
    made = gpt2_tokenizer()  # merges of several letters, line breaks and spaces among them
    made.add_special_tokens({"bos_token": family.bos, "eos_token": family.eos, "extra_special_tokens": list(family.specials)})
    made.chat_template = family.template
    return made


def learned(example: Example, chat: Any) -> list[str]:
    """The runs of targets, as text with its special tokens."""
    marked = groupby(zip(example.token_ids, example.supervised), key=lambda token: token[1])
    ids = ([token for token, _ in run] for is_target, run in marked if is_target)
    return [chat.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False) for run in ids]


def conversation(family: Family, answer: str) -> Record:
    system = (Turn("system", "Be brief."),) if family.system else ()
    asked = (Turn("user", "The sky?"), Turn("assistant", "It is blue."), Turn("user", "The sky?"))
    return Record(record_id="r:1", prompt=Conversation((*system, *asked)), references=(answer,))


ANSWERS = {
    "plain": "It is still blue.",
    "the question again": "The sky?",
    "an earlier answer again": "It is blue.",
    "words of a template": "USER: assistant\n### Response:\n[INST] <<SYS>>",
    "paragraphs": "\n\nBlue.\n\n\nOr  grey",
    "other scripts": "青い 😀 é",
}
every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@every_family
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_last_answer_and_its_end_token_are_learned_to_the_letter(family: Family, answer: str) -> None:
    chat, record = tokenizer(family), conversation(family, answer)
    config = TokenizeConfig(template="chat", prompt_tokens=500, response_tokens=500)
    ((example,), _) = tokenize_training([record], chat, config, seed=1)
    text = answer.strip() if family.trims else answer
    assert learned(example, chat) == [family.before + text + family.end]
    assert example.supervised == (False,) * len(example.prompt_ids) + (True,) * sum(example.supervised)
    assert [example.prompt_ids] == tokenize_prompts([record], chat, config)


@every_family
def test_every_answer_is_learned_or_the_row_is_refused(family: Family) -> None:
    chat = tokenizer(family)
    config = TokenizeConfig(template="chat", prompt_tokens=500, supervise="every")
    if not family.every:
        with pytest.raises(
            DataError, match=r"none of 1 records is left.*set `supervise: last` to train on the last answer only"
        ):
            tokenize_training([conversation(family, "Yes.")], chat, config, seed=1)
        return
    ((example,), _) = tokenize_training([conversation(family, "Yes.")], chat, config, seed=1)
    earlier = family.end if family.earlier_end is None else family.earlier_end
    assert learned(example, chat) == [f"{family.before}It is blue.{earlier}", f"{family.before}Yes.{family.end}"]


NOTHING = turns("{{ m.content if m.role == 'user' else '' }}\n", "> ")
ANSWERS_ALONE = turns("{{ m.content if m.role == 'assistant' else '' }}")


@pytest.mark.parametrize(
    ("template", "supervise"),
    [(NOTHING, "last"), (NOTHING, "every"), (turns("Hello."), "last"), (ANSWERS_ALONE, "every")],
    ids=["no answer", "no answer in any turn", "the same text always", "all of it from the first answer on"],
)
def test_a_mask_of_nothing_or_everything_is_refused(template: str, supervise: Any) -> None:
    family = replace(FAMILIES["Zephyr"], template=template)
    config = TokenizeConfig(template="chat", prompt_tokens=500, supervise=supervise)
    with pytest.raises(DataError, match="none of 1 records is left"):
        tokenize_training([conversation(family, "Yes.")], tokenizer(family), config, seed=1)


def test_a_prompt_without_a_token_is_refused() -> None:
    family = replace(FAMILIES["Zephyr"], template=ANSWERS_ALONE)
    record = Record(record_id="r:1", prompt=Conversation((Turn("user", "The sky?"),)), references=("Blue.",))
    with pytest.raises(DataError, match="returns no tokens for the prompt or the answer"):
        tokenize_training([record], tokenizer(family), TokenizeConfig(template="chat"), seed=1)
