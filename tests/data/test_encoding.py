"""Encoding many texts at once gives exactly the ids of encoding each alone."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from redistill.data.encoding import Text, TextEncoder
from redistill.data.special import SpecialTokens
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts, tokenize_training
from redistill.data.words import _PATTERNS
from redistill.records import Conversation, Instruction, RawPrompt, Record, Turn
from tests.tokenizers import CHATML, FAMILIES, metaspace_like
from tests.worlds import gpt2_tokenizer


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """The GPT-2-like tokenizer with a chat template, two more special tokens, and an added token that is not special."""
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.chat_template = CHATML
    return tokenizer


def with_pattern(pattern: str) -> PreTrainedTokenizerFast:
    """A tokenizer with another pre-tokenizer, as those of Llama 3, Qwen 2 and gpt-oss."""
    tokenizer = gpt2_tokenizer()
    steps = [
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def with_digits() -> PreTrainedTokenizerFast:
    """A tokenizer with single digits, as that of SmolLM2."""
    tokenizer = gpt2_tokenizer()
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def with_stripping() -> PreTrainedTokenizerFast:
    """A tokenizer with an added token that takes the white space around it, so that words depend on their neighbours."""
    tokenizer = gpt2_tokenizer()
    tokenizer.add_tokens([AddedToken("cat", lstrip=True, rstrip=True, single_word=True)])
    return tokenizer


def with_limits() -> PreTrainedTokenizerFast:
    """A tokenizer whose file sets truncation and padding, which apply to no call that does not ask for them."""
    tokenizer = gpt2_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=5)
    return tokenizer


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    **FAMILIES,
    "chat": chat_tokenizer,
    "digits": with_digits,
    "stripping": with_stripping,
    "limits": with_limits,
    **{
        f"metaspace, {scheme}": lambda scheme=scheme: metaspace_like(scheme) for scheme in ("never", "first", "always", "every")
    },
    **{f"pattern {number}": lambda pattern=pattern: with_pattern(pattern) for number, pattern in enumerate(_PATTERNS)},
}
WORDS = (
    *(
        "The",
        "the",
        " ",
        "  ",
        "\n",
        "\n\n",
        ":",
        "a:",
        "b\n",
        "'s",
        "'LL",
        "12",
        "12345",
        ".",
        "!!",
        "/",
        "\t",
        "\x0b",
        "\x1c",
    ),
    *(
        "é",
        "\u0301",
        "日本",
        "\u2009",
        "\u017f",
        "\u0663",
        "\x85",
        "\x00",
        "😀",
        "HELLO",
        "heLLo",
        "\r\n",
        "cat",
        " cat ",
        "▁",
        " ▁",
        "</s> ",
        ":\n",
    ),
    *("<|endoftext|>", "<|im_end|>", "<|im", "</s>", "<s>", "<tool>", "### Response:\n"),
)
texts = st.lists(st.sampled_from(WORDS), max_size=24).map("".join)


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return TextEncoder(tokenizer, SpecialTokens(tokenizer))


@settings(max_examples=60)
@given(found=st.lists(texts, max_size=8))
def test_texts_together_have_the_ids_of_each_alone(tokenizer, encoder, found):
    requests = [Text(text, split) for text in found for split in (True, False)]
    alone = [tokenizer(text.text, add_special_tokens=False, split_special_tokens=text.split)["input_ids"] for text in requests]
    assert encoder.encode(requests) == alone


def records(found):
    prompts = [Instruction(text or "x", text[::-1]) for text in found] + [RawPrompt(text or "x") for text in found]
    prompts += [Conversation((Turn("user", text or "x"), Turn("assistant", "b\n"), Turn("user", "c:"))) for text in found]
    return [Record(record_id=f"r:{n}", prompt=p, references=(f"\n{n}", "a", "é:")) for n, p in enumerate(prompts, 1)]


@settings(max_examples=15)
@given(found=st.lists(texts, min_size=1, max_size=5))
@pytest.mark.parametrize("reference", ["first", "random"])
def test_records_together_have_the_examples_of_each_alone(tokenizer, found, reference):
    template = "chat" if tokenizer.chat_template else "alpaca"
    config = TokenizeConfig(template=template, supervise="every", reference=reference, prompt_tokens=150)
    together, report = tokenize_training(records(found), tokenizer, config, seed=3)
    left_out = {found.index for found in (*report.too_long, *report.rejected)}
    kept = [record for index, record in enumerate(records(found)) if index not in left_out]
    assert [example.record for example in together] == kept
    if reference == "first":
        alone = [tokenize_training([record], tokenizer, config, seed=3)[0][0] for record in kept]
        assert [(e.prompt_ids, e.token_ids, e.supervised) for e in together] == [
            (e.prompt_ids, e.token_ids, e.supervised) for e in alone
        ]
        prompts = tokenize_prompts(kept, tokenizer, config)
        assert prompts == [tokenize_prompts([record], tokenizer, config)[0] for record in kept]


def test_a_random_reference_is_keyed_by_the_sample_even_if_rows_before_it_are_left_out(tokenizer):
    config = TokenizeConfig(reference="random", prompt_tokens=200)
    short = [Record(record_id=f"r:{n}", prompt=Instruction("Sky?"), references=("a", "b", "c")) for n in range(200)]
    long = Record(record_id="r:900", prompt=Instruction("Where is the cat? " * 200), references=("a", "b", "c"))
    mixed = [record for n, one in enumerate(short) for record in ([long, one] if n % 3 == 0 else [one])]
    plain, _ = tokenize_training(short, tokenizer, config, seed=4)
    found, report = tokenize_training(mixed, tokenizer, config, seed=4)
    assert report.num_too_long == 67
    assert [example.token_ids for example in found] == [example.token_ids for example in plain]


def test_the_tokenizers_whose_pieces_are_encoded_separately():
    """A tokenizer that is not recognised is encoded correctly but slowly, so the law above does not notice it."""
    split = {name for name, make in MAKERS.items() if TextEncoder(make(), SpecialTokens(make()))._words is not None}
    assert split == MAKERS.keys() - {"llama-like", "stripping"}
