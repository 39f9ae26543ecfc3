"""Configs of tiny random models, one for each family that docs/models.md lists.

A config has every kind of layer that its family knows: sliding windows shorter than the texts, dense layers before layers with
experts, recurrent layers between layers with attention.
"""

from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

Config = dict[str, Any]

LAYERS = 4
SIZES: Config = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NO_HEAD_SIZE: Config = {name: value for name, value in SIZES.items() if name != "head_dim"}
WINDOW: Config = {"sliding_window": 6}
SLIDING: Config = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS: Config = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT: Config = {  # multi-head latent attention
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
GROUPS: Config = {"n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 2}
DELTA: Config = {  # gated delta net
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
MAMBA: Config = {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
STATE_SPACE: Config = {"state_size": 8, "conv_kernel": 4, "expand": 2, "time_step_rank": 4}

# Title in the page -> config.
FAMILIES: dict[str, Config] = {
    "GPT-2": {"model_type": "gpt2", **SIZES},
    "OPT": {"model_type": "opt", **SIZES, "ffn_dim": 64, "word_embed_proj_dim": 16},
    "Llama 3": {
        "model_type": "llama",
        **SIZES,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "SmolLM3": {"model_type": "smollm3", **SIZES, "no_rope_layers": [1, 1, 1, 0]},
    "Qwen2.5": {"model_type": "qwen2", **SIZES},
    "Qwen3": {"model_type": "qwen3", **SIZES},
    "Qwen3-MoE": {"model_type": "qwen3_moe", **SIZES, **EXPERTS, "mlp_only_layers": [0], "decoder_sparse_step": 1},
    "Gemma 2": {"model_type": "gemma2", **SIZES, **SLIDING, "query_pre_attn_scalar": 8},
    "Gemma 3": {"model_type": "gemma3_text", **SIZES, **SLIDING, "query_pre_attn_scalar": 8},
    "Gemma 3n": {
        "model_type": "gemma3n_text",
        **SIZES,
        **WINDOW,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 512,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "num_kv_shared_layers": 1,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "Gemma 4": {
        "model_type": "gemma4_text",
        **SIZES,
        **SLIDING,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 512,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 0,
    },
    "Phi-3": {"model_type": "phi3", **NO_HEAD_SIZE},
    "Mistral": {"model_type": "mistral", **SIZES, **WINDOW},
    "Ministral": {"model_type": "ministral", **SIZES, **SLIDING},
    "Mixtral": {"model_type": "mixtral", **SIZES, **EXPERTS},
    "OLMo 2": {"model_type": "olmo2", **NO_HEAD_SIZE},
    "OLMo 3": {"model_type": "olmo3", **NO_HEAD_SIZE, **SLIDING},
    "OLMoE": {"model_type": "olmoe", **NO_HEAD_SIZE, **EXPERTS},
    "Granite": {"model_type": "granite", **SIZES, "logits_scaling": 4.0, "residual_multiplier": 0.5},
    "GraniteMoE": {"model_type": "granitemoe", **SIZES, **EXPERTS, "logits_scaling": 4.0},
    "gpt-oss": {"model_type": "gpt_oss", **SIZES, **EXPERTS, **SLIDING},
    "DeepSeek-V2": {"model_type": "deepseek_v2", **SIZES, **EXPERTS, **LATENT, **GROUPS, "topk_method": "greedy"},
    "DeepSeek-V3": {"model_type": "deepseek_v3", **SIZES, **EXPERTS, **LATENT, **GROUPS},
    "Cohere": {"model_type": "cohere", **SIZES, "logit_scale": 0.25},
    "Cohere 2": {"model_type": "cohere2", **SIZES, **SLIDING, "logit_scale": 0.25},
    "GLM-4": {"model_type": "glm4", **SIZES},
    "GLM-4-MoE": {"model_type": "glm4_moe", **SIZES, **EXPERTS, **GROUPS},
    "EXAONE 4": {"model_type": "exaone4", **SIZES, **SLIDING},
    "Apertus": {"model_type": "apertus", **SIZES},
    "Seed-OSS": {"model_type": "seed_oss", **SIZES},
    "Hunyuan": {"model_type": "hunyuan_v1_dense", **SIZES},
    "Ernie 4.5": {"model_type": "ernie4_5", **SIZES},
    "MiniMax-M2": {"model_type": "minimax_m2", **SIZES, **EXPERTS, "rotary_dim": 4},
    "MiniCPM3": {"model_type": "minicpm3", **SIZES, **LATENT, "dim_model_base": 16},
    "Qwen3.5": {"model_type": "qwen3_5_text", **SIZES, **DELTA},
    "Qwen3-Next": {"model_type": "qwen3_next", **SIZES, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 32},
    "LFM2": {"model_type": "lfm2", **SIZES, "layer_types": ["conv", "full_attention"] * 2},
    "LFM2-MoE": {
        "model_type": "lfm2_moe",
        **SIZES,
        **EXPERTS,
        "num_dense_layers": 2,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "Granite 4": {
        "model_type": "granitemoehybrid",
        **SIZES,
        **EXPERTS,
        **MAMBA,
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 32,
    },
    "Nemotron-H": {
        "model_type": "nemotron_h",
        **SIZES,
        **EXPERTS,
        "layers_block_type": ["mamba", "moe", "mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "conv_kernel": 4,
        "chunk_size": 16,
        "moe_shared_expert_intermediate_size": 32,
        "moe_latent_size": None,
    },
    "Bamba": {"model_type": "bamba", **SIZES, **MAMBA, "attn_layer_indices": [1, 3]},
    "Falcon-H1": {"model_type": "falcon_h1", **SIZES, **MAMBA, "lm_head_multiplier": 0.5},
    "Mamba": {"model_type": "mamba", **SIZES, **STATE_SPACE},
    "Mamba 2": {"model_type": "mamba2", **SIZES, **STATE_SPACE, "num_heads": 8, "n_groups": 1, "chunk_size": 16},
    "FalconMamba": {"model_type": "falcon_mamba", **SIZES, **STATE_SPACE},
    "DeepSeek-V3.2": {
        "model_type": "deepseek_v32",
        **SIZES,
        **EXPERTS,
        **LATENT,
        **GROUPS,
        "index_n_heads": 16,
        "index_head_dim": 16,
        "index_topk": 6,
    },
}


def is_known(family: str) -> bool:
    """Whether this release of transformers has the family."""
    return FAMILIES[family]["model_type"] in CONFIG_MAPPING_NAMES
