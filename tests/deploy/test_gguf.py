"""A GGUF file has the same text as the model that it was written from."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from redistill.deploy.export import export
from redistill.errors import ModelError
from redistill.models.load import ModelConfig, load_model
from tests.deploy.models import KINDS, chatml_tokenizer, write_kind

PROMPTS = [f"Where is the {animal} {number}?" for number in range(5) for animal in ("cat", "owl", "hen", "fox")]
TEXTS = [*PROMPTS, "naïve  café\n\n 2024", "我想 apple", "tab\there 🚀"]
NUM_TOKENS = 32


def read_back(path: Path, dtype: torch.dtype):
    """The model and the tokenizer that transformers reads from a GGUF file."""
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, quantization_config=GgufConfig(dequantize=True))
    return model.eval(), AutoTokenizer.from_pretrained(**source)


@torch.no_grad()
def greedy(model, tokenizer) -> list[list[int]]:
    """The greedy answers to `PROMPTS`, generated as one batch."""
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    return ids[:, batch["input_ids"].shape[1] :].tolist()


def metadata(path: Path) -> dict:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_in_float16_generates_the_text_of_the_folder_in_float16(kind, tmp_path):
    folder = write_kind(tmp_path / "model", kind)
    found = export(str(folder), "gguf", tmp_path / "out")
    model, tokenizer = read_back(found.folder / "model.gguf", torch.float16)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).eval()
    own = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == [own(text)["input_ids"] for text in TEXTS]
    texts = greedy(original, own)
    assert sum(first == second for first, second in zip(greedy(model, tokenizer), texts, strict=True)) >= 18
    # The order of additions in float16 depends on the layout of a weight in memory, so that two tokens may change places.
    ids = torch.tensor(texts)
    with torch.no_grad():
        expected, found = (each(input_ids=ids).logits.float() for each in (original, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_file_are_those_of_the_model_in_its_dtype(kind, dtype, tmp_path):
    folder = write_kind(tmp_path / "model", kind)
    found = export(str(folder), "gguf", tmp_path / "out", dtype=dtype)
    model, _ = read_back(found.folder / "model.gguf", torch.float32)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    loaded = model.state_dict()
    assert loaded.keys() == original.keys()
    for name, weight in original.items():
        is_small = weight.ndim == 1 or name == "transformer.wpe.weight"
        expected = weight if dtype == "f32" or is_small else weight.to(torch.bfloat16).float()
        torch.testing.assert_close(loaded[name], expected, rtol=0, atol=0, msg=name)


def test_metadata_describe_vocabulary_and_special_tokens(tmp_path):
    found = export(str(write_kind(tmp_path / "model", "qwen2")), "gguf", tmp_path / "out")
    held = metadata(found.folder / "model.gguf")
    assert held["tokenizer.ggml.model"] == "gpt2" and held["tokenizer.ggml.pre"] == "qwen2"
    assert held["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert held["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1] and held["tokenizer.ggml.token_type"][-3:] == [5, 5, 5]
    assert held["tokenizer.ggml.eos_token_id"] == 2 and held["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>" in held["tokenizer.chat_template"]
    assert held["general.architecture"] == "qwen2" and held["qwen2.rope.freq_base"] == 10000.0


def test_sentencepiece_tokens_have_scores_and_types(tmp_path):
    found = export(str(write_kind(tmp_path / "model", "mistral")), "gguf", tmp_path / "out")
    held = metadata(found.folder / "model.gguf")
    assert (held["tokenizer.ggml.model"], held["tokenizer.ggml.pre"]) == ("llama", "default")
    assert held["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]  # unknown, control, control, byte
    assert held["tokenizer.ggml.add_bos_token"] is True and held["tokenizer.ggml.add_space_prefix"] is True
    scores = dict(zip(held["tokenizer.ggml.tokens"], held["tokenizer.ggml.scores"]))
    merged = [part.replace(" ", "") for part in held["tokenizer.ggml.merges"]]
    ranks = [scores[token] for token in dict.fromkeys(merged)]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) == len(ranks)


@pytest.mark.parametrize(
    ("rope", "key", "value"),
    [
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}, "llama.rope.scaling.factor", 4.0),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4},
            "llama.rope.scaling.original_context_length",
            64,
        ),
    ],
)
def test_scaled_rotary_embeddings_are_described(rope, key, value, tmp_path):
    folder = write_kind(tmp_path / "model", "smollm2", rope_parameters=rope)
    held = metadata(export(str(folder), "gguf", tmp_path / "out").folder / "model.gguf")
    assert held["llama.rope.scaling.type"] == rope["rope_type"] and held["llama.rope.freq_base"] == rope["rope_theta"]
    assert held[key] == value


def test_llama_3_has_a_factor_for_each_frequency(tmp_path):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
    rope["original_max_position_embeddings"] = 64
    folder = write_kind(tmp_path / "model", "smollm2", rope_parameters=rope)
    tensors = {t.name: t for t in GGUFReader(export(str(folder), "gguf", tmp_path / "out").folder / "model.gguf").tensors}
    factors = tensors["rope_freqs.weight"].data
    assert factors[0] == 1.0 and factors[-1] == 8.0 and (factors[1:] >= factors[:-1]).all()


def test_a_sliding_window_limits_the_length(tmp_path):
    folder = write_kind(tmp_path / "model", "mistral", sliding_window=32)
    found = export(str(folder), "gguf", tmp_path / "out")
    assert metadata(found.folder / "model.gguf")["llama.context_length"] == 32
    assert any("32 tokens" in note for note in found.notes)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("qwen3", {"attention_bias": True}, "attention_bias = True"),
        ("smollm2", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_rejected_with_the_command_of_its_converter(kind, changes, reason, tmp_path):
    folder = write_kind(tmp_path / "model", kind, **changes)
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py") as raised:
        export(str(folder), "gguf", tmp_path / "out")
    assert reason in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_other_families_and_tokenizers_are_rejected_with_the_command_of_the_converter(tmp_path):
    folder = write_kind(tmp_path / "model", "smollm2")
    other = tmp_path / "other"
    config = {"model_type": "granite", "max_position_embeddings": 256, "num_attention_heads": 4, "hidden_size": 64}
    from redistill.models.initialise import fresh_model

    tokenizer = chatml_tokenizer()
    fresh_model({**config, "vocab_size": len(tokenizer), "num_hidden_layers": 1, "intermediate_size": 64}, 1).save_pretrained(
        other
    )
    tokenizer.save_pretrained(other)
    with pytest.raises(ModelError, match=r"granite are not supported.*--to transformers && python convert_hf_to_gguf.py"):
        export(str(other), "gguf", tmp_path / "out")
    (tmp_path / "mixed").mkdir()
    for path in folder.iterdir():
        (tmp_path / "mixed" / path.name).write_bytes(path.read_bytes())
    chatml_tokenizer().save_pretrained(tmp_path / "mixed")  # a rule that divides nothing
    with pytest.raises(ModelError, match="divides texts by a rule"):
        export(str(tmp_path / "mixed"), "gguf", tmp_path / "out")


def test_values_beyond_float16_are_rejected(tmp_path):
    folder = write_kind(tmp_path / "model", "smollm2")
    model, _ = load_model(ModelConfig(model=str(folder)))
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = 1e5
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="--dtype bf16"):
        export(str(folder), "gguf", tmp_path / "out")
    assert export(str(folder), "gguf", tmp_path / "out", dtype="bf16").files == ("README.md", "model.gguf")
