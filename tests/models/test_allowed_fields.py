"""The allow-lists of JSON fields: they lose nothing that a family reads, and keep nothing else."""

import json

import pytest
from transformers import CONFIG_MAPPING, PretrainedConfig

from redistill.errors import ModelError
from redistill.models.allowed_fields import config_fields, generation_fields, tokenizer_fields
from tests.models.conftest import CONFIGS
from tests.models.family_configs import FAMILIES


def settings(fields):
    """All fields of the config that transformers makes of a JSON object."""
    decoded = PretrainedConfig._decode_special_floats(json.loads(json.dumps(fields)))
    return CONFIG_MAPPING[fields["model_type"]].from_dict(decoded).to_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_saved_field_of_a_family_is_lost(family):
    saved = json.loads(CONFIG_MAPPING[FAMILIES[family]["model_type"]](**FAMILIES[family]).to_json_string(use_diff=False))
    known = settings({"model_type": saved["model_type"]})  # a test config may have fields of other families
    found = settings(config_fields("m", saved))
    assert {key: found[key] for key in known} == {key: settings(saved)[key] for key in known}


def test_a_field_that_a_family_reads_without_declaring_it_is_kept():
    assert "head_dim" not in CONFIG_MAPPING["qwen2"].__dataclass_fields__
    assert config_fields("m", {**CONFIGS["qwen2"], "head_dim": 12})["head_dim"] == 12
    assert config_fields("m", {"model_type": "opt", "_remove_final_layer_norm": True})["_remove_final_layer_norm"]


def test_a_field_that_no_code_of_the_family_reads_is_left_out():
    extra = {"of_no_family": 1, "_name_or_path": "x", "auto_map": {}, "transformers_js": {}, "vision_config": {"a": 1}}
    assert config_fields("m", {**CONFIGS["llama"], **extra}) == CONFIGS["llama"]


def test_a_vision_encoder_names_no_weights():
    options = {"pretrained": True, "checkpoint_path": "x.pth", "img_size": 8}
    vision = {"model_type": "timm_wrapper", "model_args": options, "use_pretrained_backbone": True}
    kept = config_fields("m", {"model_type": "gemma3", "vision_config": vision})["vision_config"]
    assert kept == {"model_type": "timm_wrapper", "model_args": {"img_size": 8}}


def test_an_infinite_number_is_kept():
    limit = [0.0, {"__float__": "Infinity"}]
    assert config_fields("m", {"model_type": "mamba2", "time_step_limit": limit})["time_step_limit"] == limit


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_formats_with_kernels_are_dequantised(method):
    kept = config_fields("m", {**CONFIGS["llama"], "quantization_config": {"quant_method": method, "dequantize": False}})
    assert kept["quantization_config"] == {"quant_method": method, "dequantize": True}


def test_the_fields_of_generation_are_those_of_transformers():
    fields = {"eos_token_id": [1, 2], "temperature": 0.5, "compile_config": {}, "custom_generate": "owner/name"}
    assert generation_fields("m", fields) == {"eos_token_id": [1, 2], "temperature": 0.5}
    with pytest.raises(ModelError, match="m: to_dict: must not be set"):
        generation_fields("m", {"to_dict": 1})


def test_tokens_and_settings_of_a_tokenizer_are_kept_and_files_are_not():
    token = {"__type": "AddedToken", "content": "<end>", "lstrip": False}
    kept = {
        "tokenizer_class": "LlamaTokenizerFast",
        "eos_token": token,
        "image_token": "<image>",
        "model_max_length": 2048,
        "use_default_system_prompt": False,
        "additional_special_tokens": ["<a>", token],
        "added_tokens_decoder": {"3": {"content": "<end>", "special": True}},
        "chat_template": [{"name": "default", "template": "w"}],
    }
    lost = {
        "vocab_file": "x",
        "tokenizer_file": "x",
        "vocab": "x",
        "init_inputs": ["x"],
        "auto_map": {},
        "processor_class": "x",
    }
    assert tokenizer_fields("m", kept | lost) == kept
    assert tokenizer_fields("m", {"eos_token": token | {"other": 1}}) == {"eos_token": token}


@pytest.mark.parametrize("name", ["MineTokenizer", "QWenTokenizer"])
def test_an_unknown_tokenizer_class_is_the_one_that_transformers_uses_for_it(name):
    assert tokenizer_fields("m", {"tokenizer_class": name}) == {"tokenizer_class": "TokenizersBackend"}
