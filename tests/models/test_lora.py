"""LoRA students: trainable parameters, checkpoints, and export."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, Gemma3Config

from redistill.errors import CheckpointError, ConfigError, ModelError
from redistill.models.families import body, head, unwrapped
from redistill.models.initialise import cast_weights, fresh_model, student_from_layers
from redistill.models.load import ModelConfig, load_model
from redistill.models.lora import (
    LoraConfig,
    add_lora,
    has_adapters,
    load_trainable_state,
    lora_notes,
    save_student,
    trainable_state,
)
from redistill.models.recompute import checkpoint_activations
from redistill.tensors import pad
from redistill.vocab_pass import vocab_pass
from redistill.vocab_pass.terms import CrossEntropyTerm
from tests.models.conftest import make_tokenizer

FAMILIES = ("gpt2", "opt", "llama", "smollm", "gemma2", "gemma3", "qwen2", "qwen3")
IDS_BT, MASK_BT = pad([[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14]], 0)
SMALL = LoraConfig(rank=2, alpha=8.0, dropout=0.0)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS_BT, attention_mask=MASK_BT).logits[MASK_BT.bool()]


def trained(model):
    """The model with non-zero adapters, as after training."""
    generator = torch.Generator().manual_seed(5)
    for parameter in trainable_state(model).values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def learn(model):
    """One backward pass of cross entropy through body and vocab_pass."""
    torch.manual_seed(0)  # the base may have dropout
    hidden_ND = body(model)(IDS_BT, MASK_BT)[MASK_BT.bool()]
    targets = CrossEntropyTerm(1.0, IDS_BT[MASK_BT.bool()], torch.ones(len(hidden_ND), dtype=torch.bool))
    objective, _ = vocab_pass(hidden_ND, head(model), None, [targets])
    objective.backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_student_is_its_base_exactly(tiny, family):
    assert torch.equal(logits(add_lora(tiny(family), LoraConfig(), 1)), logits(tiny(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_value_of_every_layer_are_trained_and_nothing_else(tiny, family):
    model = trained(add_lora(tiny(family), SMALL, 1)).train()
    learn(model)
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == set(trainable_state(model)) and all(".lora_" in name for name in learning)
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in model.named_parameters() if name in learning)
    names = ["c_attn"] if family == "gpt2" else ["q_proj", "v_proj"]
    for name in names:
        assert sum(f".{name}.lora_A" in path for path in learning) == 4  # layers
    assert len(learning) == 2 * 4 * len(names)


def test_the_notes_count_trained_weights_and_name_fused_projections(tiny):
    count, fused = lora_notes(add_lora(tiny("gpt2"), SMALL, 1))
    weights = sum(p.numel() for p in tiny("gpt2").parameters())
    learning = 4 * 2 * (16 + 48)
    assert f"LoRA in c_attn: {learning} of {weights + learning:,} weights" in count
    assert fused == "c_attn computes query, key and value with one matrix, so the adapters change the key too"
    assert len(lora_notes(add_lora(tiny("llama"), SMALL, 1))) == 1


def test_other_targets_may_be_named_and_unknown_ones_are_rejected(tiny):
    model = add_lora(tiny("llama"), LoraConfig(rank=2, targets=("o_proj", "down_proj")), 1)
    assert {path.split(".")[-4] for path in trainable_state(model)} == {"o_proj", "down_proj"}
    with pytest.raises(ConfigError, match="'c_attn' is not a linear layer in the llama family; choose from down_proj"):
        add_lora(tiny("llama"), LoraConfig(targets=("q_proj", "c_attn")), 1)
    with pytest.raises(ConfigError, match="'lm_head' is not a linear layer in the"):
        add_lora(tiny("llama"), LoraConfig(targets=("lm_head",)), 1)


def test_a_vision_tower_gets_no_adapters_though_its_layers_have_the_same_names():
    text = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**text, "num_attention_heads": 2, "num_key_value_heads": 1},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
    )
    names = set(trainable_state(add_lora(fresh_model(config, 1), SMALL, 1)))
    assert len(names) == 3 * 2 * 2 and all("language_model.layers" in name for name in names)


def test_adapters_start_from_the_seed_alone(tiny):
    def start(seed):
        return trainable_state(add_lora(tiny("llama"), SMALL, seed))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = start(7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = start(7), start(8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_adapters_stay_float32_over_a_bfloat16_base(tiny):
    base = tiny("llama")
    cast_weights(base, torch.bfloat16)
    model = add_lora(base, SMALL, 1)
    cast_weights(model, torch.bfloat16)
    assert {parameter.dtype for parameter in trainable_state(model).values()} == {torch.float32}
    assert unwrapped(model).lm_head.weight.dtype == torch.bfloat16
    learn(model.train())
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
@pytest.mark.parametrize("before", [True, False])
def test_recomputed_activations_give_the_same_gradients(tiny, family, before):
    def gradients(checkpointing):
        model = tiny(family)
        if checkpointing and before:
            checkpoint_activations(model)
        model = trained(add_lora(model, SMALL, 1)).train()
        if checkpointing and not before:
            checkpoint_activations(model)
        learn(model)
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


def test_dropout_is_active_in_training_only(tiny):
    model = trained(add_lora(tiny("llama"), LoraConfig(rank=2, dropout=0.5), 1)).eval()
    assert torch.equal(logits(model), logits(model))
    torch.manual_seed(0)
    assert not torch.equal(logits(model.train()), logits(model))


# --- checkpoints --------------------------------------------------------------------------------------------------------


def test_a_checkpoint_contains_the_adapters_only_and_restores_them(tiny):
    model = trained(add_lora(tiny("gpt2"), SMALL, 1))
    saved = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
    fresh = add_lora(tiny("gpt2"), SMALL, 2)
    assert not torch.equal(logits(fresh), logits(model))
    load_trainable_state(fresh, saved)
    assert torch.equal(logits(fresh), logits(model))
    assert saved.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_without_adapters_a_checkpoint_contains_everything(tiny):
    model = tiny("gpt2")
    assert not has_adapters(model) and trainable_state(model).keys() == model.state_dict().keys()
    other = fresh_model(model.config, 9)
    load_trainable_state(other, trainable_state(model))
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("other", [LoraConfig(rank=3), LoraConfig(rank=2, targets=("q_proj",))])
def test_adapters_of_another_shape_are_rejected(tiny, other):
    saved = trainable_state(add_lora(tiny("llama"), SMALL, 1))
    with pytest.raises(CheckpointError, match="its adapters differ from this run's"):
        load_trainable_state(add_lora(tiny("llama"), other, 1), saved)


# --- export -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_an_ordinary_one_with_the_same_logits(tiny, family, tmp_path):
    model = trained(add_lora(tiny(family), SMALL, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_student(model, make_tokenizer(eos_token="w2"), tmp_path)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118 - not a dict
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(merged), logits(tiny(family)), atol=1e-2)
    assert merged.state_dict().keys() == tiny(family).state_dict().keys()
    base = tiny(family)
    tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == tied


def test_a_student_without_adapters_is_saved_unchanged(tiny, tmp_path):
    save_student(tiny("opt"), make_tokenizer(eos_token="w2"), tmp_path, "adapter")
    model, tokenizer = load_model(ModelConfig(model=str(tmp_path)))
    assert torch.equal(logits(model), logits(tiny("opt"))) and tokenizer.eos_token == "w2"


@pytest.mark.parametrize("family", ["gpt2", "smollm", "gemma2"])
def test_adapters_alone_load_with_the_base_they_name(tiny, family, tmp_path):
    tiny(family).save_pretrained(tmp_path / "base")
    make_tokenizer(eos_token="w3").save_pretrained(tmp_path / "base")
    base, _ = load_model(ModelConfig(model=str(tmp_path / "base")))
    model = trained(add_lora(base, SMALL, 1))
    save_student(model, make_tokenizer(eos_token="w2"), tmp_path / "student", "adapter")
    assert not list((tmp_path / "student").glob("model*")) and not list((tmp_path / "student").glob("*.bin"))
    loaded, tokenizer = load_model(ModelConfig(model=str(tmp_path / "student")))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert not has_adapters(loaded) and all(parameter.requires_grad for parameter in loaded.parameters())
    assert tokenizer.eos_token == "w2"
    settings = json.loads((tmp_path / "student" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["base_model_name_or_path"]) == (2, 8.0, str(tmp_path / "base"))


def test_adapters_of_a_base_without_a_name_are_not_saved_alone(tiny, tmp_path):
    tiny("llama").save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher")
    model = add_lora(student_from_layers(teacher, 2), SMALL, 1)
    with pytest.raises(ModelError, match=r"has no name that its adapters could refer to, .*; use export: merged"):
        save_student(model, make_tokenizer(eos_token="w2"), tmp_path, "adapter")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank = 0: must be >= 1"),
        ({"alpha": 0.0}, "alpha = 0.0: must be > 0"),
        ({"dropout": 1.0}, "dropout = 1.0: must be in"),
        ({"targets": ()}, "targets = "),
        ({"quantise": "int4"}, "quantise = 'int4': must be one of none, nf4, int8"),
        ({"export": "both"}, "export = 'both': must be one of merged, adapter"),
    ],
)
def test_settings_out_of_range_are_rejected(fields, message):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**fields)
    assert message in str(caught.value)
