"""Adapters saved by other programs: merged exactly, or rejected in one line before any of their fields is applied."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from redistill.errors import ModelError
from redistill.models.load import ModelConfig, load_model, load_tokenizer
from tests.models.conftest import make_tokenizer

FAMILIES = ("gpt2", "opt", "llama", "gemma2")
IDS_BT = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10, 11]])


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS_BT, attention_mask=torch.ones_like(IDS_BT)).logits


@pytest.fixture
def world(tiny, tmp_path):
    """A callable (family, **LoRA settings) -> the folders of a base and of an adapter that PEFT itself saved."""

    def make(family, **settings):
        base = tmp_path / "base"
        tiny(family).save_pretrained(base)
        make_tokenizer(eos_token="w2").save_pretrained(base)
        model = tiny(family)
        model.name_or_path = str(base)
        names = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
        config = LoraConfig(**{"r": 2, "lora_alpha": 12, "target_modules": names, "init_lora_weights": False, **settings})
        with torch.random.fork_rng():
            torch.manual_seed(4)
            get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
        return base, tmp_path / "adapter"

    return make


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("named", ["as model", "as adapter"])
def test_an_adapter_is_merged_into_the_base_as_peft_would(tiny, world, family, named):
    second = "h.1.attn.c_attn" if family == "gpt2" else "layers.1.self_attn.v_proj"
    base, adapter = world(family, use_rslora=True, rank_pattern={second: 1}, fan_in_fan_out=family == "gpt2")
    if named == "as model":
        model, tokenizer = load_model(ModelConfig(model=str(adapter)))
    else:
        model, tokenizer = load_model(ModelConfig(model=str(base), adapter=str(adapter)))
    expected = PeftModel.from_pretrained(tiny(family), adapter).eval()
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(model), logits(tiny(family)), atol=1e-2)
    assert model.state_dict().keys() == tiny(family).state_dict().keys() and not hasattr(model, "peft_config")
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model.training
    assert tokenizer.eos_token == "w2" and model.name_or_path == ""


def test_the_adapters_own_tokenizer_has_priority_over_the_bases(world):
    _, adapter = world("llama")
    make_tokenizer(eos_token="w5").save_pretrained(adapter)
    assert load_tokenizer(ModelConfig(model=str(adapter))).eos_token == "w5"


def test_a_bfloat16_base_stays_bfloat16(world):
    _, adapter = world("llama")
    assert load_model(ModelConfig(model=str(adapter), dtype="bfloat16"))[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "sets peft_type = 'LOHA'"),
        ({"use_dora": True}, "sets use_dora = 'True'"),
        ({"bias": "all"}, "sets bias = 'all'"),
        ({"modules_to_save": ["lm_head"]}, "sets modules_to_save"),
        ({"init_lora_weights": "pissa"}, "sets init_lora_weights = 'pissa'"),
        ({"layer_replication": [[0, 4], [2, 4]]}, "sets layer_replication"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "sets megatron_co"),
        ({"not_known_yet": "something"}, "sets not_known_yet = 'something'"),
    ],
)
def test_adapters_other_than_plain_lora_are_rejected(world, fields, message):
    _, adapter = world("llama")
    edit(adapter, **fields)
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(model=str(adapter)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_config_imports_no_module(world, tmp_path, monkeypatch):
    _, adapter = world("llama")
    (tmp_path / "evil_module.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(adapter, megatron_config={"params_dtype": "float32"}, megatron_core="evil_module")
    with pytest.raises(ModelError, match="only plain LoRA adapters"):
        load_model(ModelConfig(model=str(adapter)))


def test_pickled_adapters_are_not_read(world):
    _, adapter = world("llama")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled adapters are not read"):
        load_model(ModelConfig(model=str(adapter)))


@pytest.mark.parametrize("damage", ["another base", "a weight too few", "cut short", "no JSON"])
def test_an_adapter_that_does_not_fit_or_is_damaged_is_rejected_in_one_line(tiny, world, damage):
    base, adapter = world("llama")
    weights = adapter / "adapter_model.safetensors"
    if damage == "another base":
        tiny("llama", num_hidden_layers=3).save_pretrained(base)
    elif damage == "a weight too few":
        tensors = load_file(weights)
        tensors.popitem()
        save_file(tensors, weights)
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"do not match the base model|cannot be loaded|is not JSON") as caught:
        load_model(ModelConfig(model=str(adapter)))
    assert str(caught.value).startswith(str(adapter)) and "\n" not in str(caught.value)


def test_an_adapted_head_is_merged_with_the_copy_that_peft_saves_beside_it(tiny, world):
    base, adapter = world("llama", target_modules=["q_proj", "lm_head"])
    assert any("lm_head.base_layer" in key for key in load_file(adapter / "adapter_model.safetensors"))
    model, _ = load_model(ModelConfig(model=str(base), adapter=str(adapter)))
    expected = PeftModel.from_pretrained(tiny("llama"), adapter).eval()
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.lm_head.weight, tiny("llama").lm_head.weight, atol=1e-2)


@pytest.mark.parametrize("names", [["q_proj"], ["q_proj", "lm_head"]])
def test_resized_embeddings_are_named_as_the_reason(tiny, world, tmp_path, names):
    base, adapter = world("llama")
    model = tiny("llama", vocab_size=44)
    model.name_or_path = str(base)
    settings = LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(adapter, save_embedding_layers=True)
    with pytest.raises(ModelError, match=r"resized .* has 44 rows in the adapter, and 40 in the base model") as caught:
        load_model(ModelConfig(model=str(adapter)))
    assert "base_model_name_or_path" not in str(caught.value)


def test_an_adapted_embedding_tied_to_the_head_is_rejected(tiny, world):
    _, adapter = world("gpt2", target_modules=["wte"])
    with pytest.raises(ModelError, match="an embedding that is tied to the LM head"):
        load_model(ModelConfig(model=str(adapter)))


def test_the_base_of_an_adapter_must_be_unambiguous(world, tmp_path):
    base, adapter = world("llama")
    with pytest.raises(ModelError, match="is an adapter itself"):
        load_model(ModelConfig(model=str(adapter), adapter=str(adapter)))
    with pytest.raises(ModelError, match=r"contains no adapter_config\.json"):
        load_model(ModelConfig(model=str(base), adapter=str(base)))
    with pytest.raises(ModelError, match="no such folder"):
        load_model(ModelConfig(model=str(base), adapter=str(tmp_path / "none")))
    edit(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="is an adapter as well"):
        load_model(ModelConfig(model=str(adapter)))
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(ModelError, match="does not name its base"):
        load_model(ModelConfig(model=str(adapter)))


def test_a_folder_with_a_model_and_an_adapter_is_rejected(world):
    base, adapter = world("llama")
    for path in adapter.glob("adapter*"):
        path.rename(base / path.name)
    with pytest.raises(ModelError, match="contains a model and an adapter"):
        load_model(ModelConfig(model=str(base)))
