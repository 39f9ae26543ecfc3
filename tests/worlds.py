"""Tokenizers, models, data and runs for tests, created from fixed seeds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from redistill.config.run import Run, decode_run
from redistill.data.templates import render_prompt
from redistill.models.initialise import fresh_model
from redistill.records import Instruction

ANIMALS = ("cat", "dog", "owl", "fox", "hen", "cow")
PLACES = ("the barn", "the garden", "a quiet house", "the old mill")

ALPACA_WITH_INPUT = render_prompt(Instruction("", "-"), "alpaca", None)  # so that a prompt takes few tokens

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256}


def rows(count: int, offset: int = 0) -> list[dict[str, Any]]:
    """Instructions with an answer that has phrases in it."""
    made = []
    for i in range(offset, offset + count):
        animal, place = ANIMALS[i % len(ANIMALS)], PLACES[i // len(ANIMALS) % len(PLACES)]
        output = f"The {animal} number {i} is sleeping in {place}."
        made.append({"instruction": f"Where is the {animal} {i}?", "input": "" if i % 2 else place, "output": output})
    return made


def write_rows(path: Path, made: Sequence[Mapping[str, Any]]) -> str:
    """A JSON Lines file of rows; returns its path as text, for a config."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return str(path)


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with one special token: pad = EOS = BOS, and no token at the start of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [f"{ALPACA_WITH_INPUT} {row['instruction']} {row['output']}" for row in rows(48)]
    tokenizer.train_from_iterator(texts, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, bos_token=end, pad_token=end)


def write_model(folder: Path, config: Mapping[str, Any], seed: int, **changes: Any) -> str:
    """A random model and the GPT-2-like tokenizer as a folder; returns its path as text."""
    tokenizer = gpt2_tokenizer()
    ids = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    fresh_model({**config, **ids, **changes}, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tiny_run(
    folder: Path, method: str = "mgsr", *, config: Mapping[str, Any] = LLAMA, out: str = "run", **sections: Any
) -> Run:
    """A run of a few seconds; models and data are created in `folder`. `sections` are merged over the defaults."""
    for name, seed, changes in (("teacher", 1, {}), ("student", 2, {})):
        if not (folder / name / "config.json").exists():
            write_model(folder / name, config, seed, **changes)
    tree: dict[str, Any] = {
        "name": "tiny",
        "method": method,
        "seed": 3,
        "out": str(folder / out),
        "teacher": {"model": str(folder / "teacher")},
        "student": {"model": str(folder / "student")},
        "data": {
            "train": [write_rows(folder / "train.jsonl", rows(24))],
            "validation": write_rows(folder / "validation.jsonl", rows(4, 24)),
            "tests": {"toy": write_rows(folder / "test.jsonl", rows(3, 28))},
            "spans": "simple",
            "tokens": {"prompt_tokens": 80, "response_tokens": 16},
        },
        "optimiser": {"learning_rate": 1e-3},
        "training": {"updates": 4, "batch_size": 4, "log_every": 1},
        "evaluation": {"seeds": [10], "compare": []},
    }
    for name, values in sections.items():
        merges = isinstance(values, Mapping) and isinstance(tree.get(name), dict)
        tree[name] = {**tree[name], **values} if merges else values
    return decode_run(tree, "tiny")
