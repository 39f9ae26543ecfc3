"""The tokenizer of the tests of evaluation: one token a word."""

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

TEXT = "name a color now add two and is it say word about the sea go why not red"
WORDS = ["?", "<|endoftext|>", *TEXT.split()]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and an end token that is the pad token too."""
    plain = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|endoftext|>", pad_token="<|endoftext|>", unk_token="?")
