"""Small random models of the families that are written as GGUF files, with tokenizers of their kind."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from redistill.models.initialise import fresh_model
from tests.tokenizers import CHATML, TEXTS
from tests.worlds import gpt2_tokenizer

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}


def chatml_tokenizer(*steps: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML; `steps` divide a text into words."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    made.chat_template = CHATML
    return made


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    return chatml_tokenizer(split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))


def smollm_tokenizer() -> PreTrainedTokenizerFast:
    return chatml_tokenizer(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False))


def sentencepiece_tokenizer() -> LlamaTokenizer:
    """The tokenizer of Llama 2: SentencePiece BPE with byte tokens, a space before a text, and <s>."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(TEXTS, trainer)
    pieces = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: number for number, piece in enumerate([*first, *pieces])}
    # SentencePiece merges every pair whose merged piece exists; longer pieces were learned later.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = LlamaTokenizer(vocab=vocabulary, merges=merges, pad_token="</s>", add_bos_token=True)
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    return made


class Kind(NamedTuple):
    """A kind of model: fields of its config, and a function that makes its tokenizer."""

    config: Mapping[str, Any]
    tokenizer: Callable[[], PreTrainedTokenizerFast]


KINDS: dict[str, Kind] = {
    "smollm2": Kind({"model_type": "llama", **SIZES, "tie_word_embeddings": True}, smollm_tokenizer),
    "llama-untied": Kind({"model_type": "llama", **SIZES, "tie_word_embeddings": False}, sentencepiece_tokenizer),
    "mistral": Kind({"model_type": "mistral", **SIZES, "sliding_window": None}, sentencepiece_tokenizer),
    "qwen2": Kind({"model_type": "qwen2", **SIZES, "tie_word_embeddings": True}, qwen_tokenizer),
    # transformers reads no head_dim from GGUF files of Qwen 3, and uses its default, 128
    "qwen3": Kind({"model_type": "qwen3", **SIZES, "head_dim": 128, "tie_word_embeddings": False}, qwen_tokenizer),
    # transformers reads no number of positions from GGUF files of GPT-2, and uses its default, 1,024
    "gpt2": Kind(
        {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "initializer_range": 0.3},
        gpt2_tokenizer,
    ),
}


def write_kind(folder: Path, name: str, **changes: Any) -> Path:
    """Write a random model of a kind, with its tokenizer, to `folder`.  `changes` are fields of its config."""
    kind, tokenizer = KINDS[name], KINDS[name].tokenizer()
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    rows = len(tokenizer) + 3  # some rows of the embeddings have no token
    model = fresh_model({**kind.config, **ids, "vocab_size": rows, **changes}, 7)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
