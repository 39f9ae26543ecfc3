"""Random models of a few thousand weights, one of each family whose shape differs."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from redistill.models import snapshots
from redistill.models.initialise import fresh_model

_SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LLAMA_LIKE = {**_SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
CONFIGS = {
    "gpt2": {"model_type": "gpt2", **_SIZES},
    "opt": {"model_type": "opt", **_SIZES, "ffn_dim": 24, "word_embed_proj_dim": 8},
    "llama": {"model_type": "llama", **_LLAMA_LIKE},
    "gemma2": {
        "model_type": "gemma2",
        **_LLAMA_LIKE,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 0.5,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **_LLAMA_LIKE,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 0.5,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
    },
    "smollm": {"model_type": "llama", **_LLAMA_LIKE, "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e5}},
    "qwen2": {"model_type": "qwen2", **_LLAMA_LIKE},
    "qwen3": {"model_type": "qwen3", **_LLAMA_LIKE},
    "cohere": {"model_type": "cohere", **_LLAMA_LIKE, "logit_scale": 0.25},
    "granite": {"model_type": "granite", **_LLAMA_LIKE, "logits_scaling": 4.0},
}


def make_tokenizer(**special):
    """A tokenizer of 40 words, w0 to w39."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture(autouse=True)
def no_snapshots(monkeypatch):
    """No snapshot that another test has opened is known."""
    monkeypatch.setattr(snapshots, "_resolved", {})


@pytest.fixture(scope="session")
def tiny():
    """A callable (family, **fields) -> a fresh tiny model, with weights large enough for its choices to be clear-cut."""

    def build(family, **fields):
        model = fresh_model({**CONFIGS[family], **fields}, seed=3)
        with torch.no_grad():
            for parameter in {id(p): p for p in model.parameters() if p.ndim > 1}.values():
                parameter.mul_(8.0)
        return model

    return build
