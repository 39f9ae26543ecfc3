"""Small tokenizers of several families, which differ in how they divide text, and in their special tokens."""

from collections.abc import Callable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.worlds import ALPACA_WITH_INPUT, gpt2_tokenizer, rows

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [f"{ALPACA_WITH_INPUT} {row['instruction']} {row['output']}" for row in rows(24)]


def opt_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE; </s> starts and ends a text, and there is a padding token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def llama_like() -> PreTrainedTokenizerFast:
    """Metaspace BPE with byte fallback; <s> starts a text, and pad = </s>. Tokens may contain several words."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([text.replace("\n", " ") for text in TEXTS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def metaspace_like(scheme: str) -> PreTrainedTokenizerFast:
    """Metaspace BPE with byte fallback, whose tokens contain one word at most.

    `scheme` is where a space is inserted: "first", "always" or "every" for Llama 2, depending on the version of transformers
    that converted it, and "never" for Gemma.
    """
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>", *bytes_of]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=specials, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, "a  b   c    d  The  the  cat  cat"], trainer)
    replace = normalizers.Replace(" ", "▁")
    if scheme in ("first", "always"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    elif scheme == "every":
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]), None
    else:
        tokenizer.normalizer, tokenizer.pre_tokenizer = replace, pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps if scheme == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("▁▁", normalized=False)])
    return made


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt2-like": gpt2_tokenizer,
    "llama-like": llama_like,
    "opt-like": opt_like,
}
