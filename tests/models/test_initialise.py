"""Students from teacher layers, and models from a seed."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from redistill.errors import ConfigError, ModelError
from redistill.models.families import layer_list
from redistill.models.initialise import InitialiseConfig, cast_weights, fresh_model, student_from_layers
from redistill.tensors import pad
from tests.models.family_configs import FAMILIES as FAMILY_CONFIGS
from tests.models.family_configs import SIZES

FAMILIES = ("llama", "gpt2", "opt", "gemma2")
IDS_BT, MASK_BT = pad([[3, 4, 5, 6, 7, 8, 9, 10, 11], [12, 13, 14]], 0)


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS_BT, attention_mask=MASK_BT).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_layers_is_the_teacher_exactly(tiny, family):
    teacher = tiny(family)
    student = student_from_layers(teacher, 4)
    assert torch.equal(logits(student), logits(teacher))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_subset_is_the_teacher_with_the_other_layers_skipped(tiny, family):
    teacher = tiny(family)
    student = student_from_layers(teacher, (0, 2))
    assert student.config.num_hidden_layers == 2
    for skipped in (1, 3):
        _layers(teacher)[skipped].forward = lambda hidden, *args, **kwargs: hidden
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_subset_generates_the_same_with_and_without_a_cache(tiny, family):
    student = student_from_layers(tiny(family), (1, 3))
    options = {"input_ids": IDS_BT[:1], "attention_mask": MASK_BT[:1], "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(student.generate(**options, use_cache=True), student.generate(**options, use_cache=False))


def test_attention_patterns_are_those_of_the_chosen_layers(tiny):
    student = student_from_layers(tiny("gemma2"), (0, 1, 3))
    assert student.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    assert [layer.self_attn.layer_idx for layer in student.model.layers] == [0, 1, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_memory_is_shared_and_tied_embeddings_stay_tied(tiny, family):
    teacher = tiny(family)
    before = logits(teacher)
    student = student_from_layers(teacher, (0, 3))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits(teacher), before)
    tied = teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight
    assert (student.get_output_embeddings().weight is student.get_input_embeddings().weight) == tied


def test_the_dtype_and_end_tokens_are_the_teachers_and_the_global_generator_is_unchanged(tiny):
    teacher = tiny("llama").to(torch.bfloat16)
    teacher.generation_config.eos_token_id = [2, 5]
    state = torch.get_rng_state()
    student = student_from_layers(teacher, 2)
    assert student.dtype == torch.bfloat16 and student.generation_config.eos_token_id == [2, 5]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", (*FAMILIES, "qwen3"))
def test_a_student_of_a_bfloat16_teacher_is_the_same_once_reloaded(tiny, family, tmp_path):
    """Checkpoints do not contain rotary frequencies: rounded to bfloat16 they would differ in the trained student."""
    tiny(family).to(torch.bfloat16).save_pretrained(tmp_path / "teacher")
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype=torch.bfloat16)
    student = student_from_layers(teacher, 2)
    cast_weights(student, torch.float32)
    student.save_pretrained(tmp_path / "student")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype=torch.float32).eval()
    assert torch.equal(logits(student), logits(reloaded))


@pytest.mark.parametrize("num_layers", range(1, 40))
def test_a_count_spreads_evenly_from_the_first_to_the_last(num_layers):
    for count in range(2, num_layers + 1):
        chosen = InitialiseConfig(layers=count).indices(num_layers)
        gaps = [b - a for a, b in pairwise(chosen)]
        assert len(chosen) == count and chosen[0] == 0 and chosen[-1] == num_layers - 1
        assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("layers", [0, -1, (), (1, 1), (2, 1), (-1, 2)])
def test_invalid_repeated_or_unsorted_layers_are_rejected(layers):
    with pytest.raises(ConfigError, match="layers = "):
        InitialiseConfig(layers=layers)


@pytest.mark.parametrize("layers", [5, (0, 4)])
def test_layers_that_the_teacher_does_not_have_are_rejected(tiny, layers):
    with pytest.raises(ConfigError, match=r"must be at most [34], the teacher's"):
        student_from_layers(tiny("gpt2"), layers)


def test_a_fresh_model_depends_on_its_seed_alone():
    config = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_positions": 8}
    state = torch.get_rng_state()
    first = fresh_model(config, seed=1).transformer.wte.weight
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(fresh_model(config, seed=1).transformer.wte.weight, first)
    assert not torch.equal(fresh_model(config, seed=2).transformer.wte.weight, first)


@pytest.mark.parametrize("config", [{"vocab_size": 8}, {"model_type": "no-such-family"}])
def test_a_model_config_without_a_known_family_is_rejected(config):
    with pytest.raises(ConfigError, match="set model_type"):
        fresh_model(config, seed=1)


def _layers(model):
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


# --- layers of different kinds --------------------------------------------------------------------------------------------

SPARSE_STEP = {**FAMILY_CONFIGS["Qwen3-MoE"], "decoder_sparse_step": 2, "mlp_only_layers": [3]}
JAMBA = {
    "model_type": "jamba",
    **SIZES,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 4,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 28}
MULTIMODAL = {
    "model_type": "gemma3",
    "text_config": FAMILY_CONFIGS["Gemma 3"],
    "vision_config": {"model_type": "siglip_vision_model", "patch_size": 14, **TOWER},
    "mm_tokens_per_image": 4,
    "image_token_index": 60,
    "boi_token_index": 61,
    "eoi_token_index": 62,
}
MIXED = {
    "dense, then experts": (FAMILY_CONFIGS["DeepSeek-V3"], (1, 2)),
    "listed dense layers": (FAMILY_CONFIGS["Qwen3-MoE"], (0, 2)),
    "every second layer has experts": (SPARSE_STEP, (1, 2)),
    "leading dense layers of a hybrid": (FAMILY_CONFIGS["LFM2-MoE"], (1, 2)),
    "types of layers": (FAMILY_CONFIGS["Qwen3.5"], (1, 2)),
    "indices of attention layers": (FAMILY_CONFIGS["Bamba"], (0, 3)),
    "blocks": (FAMILY_CONFIGS["Nemotron-H"], (2, 3)),
    "flags": (FAMILY_CONFIGS["SmolLM3"], (1, 3)),
    "scale by depth": (FAMILY_CONFIGS["MiniCPM3"], (0, 3)),
    "text model beside a tower": (MULTIMODAL, (1, 2)),
}


@pytest.mark.parametrize("case", [case for case, (config, _) in MIXED.items() if config["model_type"] in CONFIG_MAPPING_NAMES])
def test_layers_of_other_kinds_keep_their_kind(case):
    config, chosen = MIXED[case]
    teacher = fresh_model(config, seed=1)
    student = student_from_layers(teacher, chosen)
    layers, returns_pairs = layer_list(teacher)[1], teacher.config.model_type == "bamba"
    for skipped in set(range(4)) - set(chosen):
        layers[skipped].forward = lambda hidden, *args, **kwargs: (hidden, None) if returns_pairs else hidden
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-4, atol=1e-5)


def test_embeddings_of_single_layers_are_those_of_the_chosen_ones(tmp_path):
    teacher = fresh_model(FAMILY_CONFIGS["Gemma 4"], seed=1)
    student = student_from_layers(teacher, (0, 1, 3))
    whole, part = (model.model.embed_tokens_per_layer.weight.unflatten(1, (-1, 8)) for model in (teacher, student))
    assert torch.equal(part, whole[:, [0, 1, 3]])
    student.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), logits(student))


def test_the_layers_of_a_multimodal_model_are_those_of_its_text_model():
    assert layer_list(fresh_model(MULTIMODAL, seed=1))[0] == "model.language_model.layers"


@pytest.mark.parametrize(
    ("config", "chosen", "named"),
    [
        (JAMBA, (1, 2), r"attn_layer_period, attn_layer_offset"),
        (FAMILY_CONFIGS["Gemma 3n"], (1, 3), r"num_kv_shared_layers"),
        (FAMILY_CONFIGS["Qwen3.5"], (0, 2), r"only contain LinearAttention layers.*choose other layers"),
    ],
)
def test_layers_that_do_not_make_a_model_are_rejected_with_the_fields(config, chosen, named):
    with pytest.raises(ModelError, match=rf"^initialise\.layers = \[\d, \d\]: .*{named}"):
        student_from_layers(fresh_model(config, seed=1), chosen)
