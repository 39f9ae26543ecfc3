"""Model families that can be written as GGUF files, listed in `FAMILIES`.

GGUF is the file format of llama.cpp. The names of tensors and of metadata come from the gguf package. An entry of `FAMILIES`
states what differs between families: the layout of weights, and the settings that llama.cpp supports.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch

from redistill.interfaces import CausalModel, ModelSettings

if TYPE_CHECKING:
    from gguf import GGUFWriter

Weight = Callable[[str, torch.Tensor, ModelSettings], torch.Tensor]


class UnsupportedError(Exception):
    """Raised if a model cannot be written as a GGUF file; the message is the reason."""


def _unchanged(name: str, weight: torch.Tensor, config: ModelSettings) -> torch.Tensor:
    return weight


def _interleaved(name: str, weight: torch.Tensor, config: ModelSettings) -> torch.Tensor:
    """Reorder the rows of the query and key weights as llama.cpp needs them.

    The order depends on the rotary embedding.

    transformers rotates row i of a head together with row i + head_dim / 2, and llama.cpp rotates adjacent rows.
    """
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    if heads is None:
        return weight
    pairs = weight.reshape(_number(config, heads), 2, -1, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _transposed(name: str, weight: torch.Tensor, config: ModelSettings) -> torch.Tensor:
    """Transpose the weights of GPT-2's layers (Conv1D).

    These weights are stored with the shape [inputs, outputs].
    """
    is_conv1d = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
    return weight.T.contiguous() if is_conv1d else weight


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of a family are written as GGUF files.

    Args:
        architecture: Name of the architecture in GGUF.
        weight: Function that returns a weight in the layout of llama.cpp.  Its arguments are the name of the weight in
            transformers, the weight, and the config of the model.
        allowed: Maps fields of the config to the values that llama.cpp supports. A field that is missing in a config is not
            checked.
        rope_types: Kinds of rotary embedding that llama.cpp supports for this architecture.
    """

    architecture: str
    weight: Weight = _unchanged
    allowed: Mapping[str, tuple[object, ...]] = field(default_factory=lambda: {"hidden_act": ("silu",)})
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")


_LLAMA = Family(architecture="llama", weight=_interleaved, rope_types=("default", "linear", "yarn", "llama3"))
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,  # SmolLM2, TinyLlama and others have this model_type as well
    "mistral": _LLAMA,
    "qwen2": Family(architecture="qwen2"),
    "qwen3": Family(architecture="qwen3", allowed={"hidden_act": ("silu",), "attention_bias": (False, None)}),
    "gpt2": Family(
        architecture="gpt2",
        weight=_transposed,
        allowed={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
        },
    ),
}
"""Families by `model_type` of their config.json."""


def family_of(config: ModelSettings) -> Family:
    """Return the family of a model; check that llama.cpp supports the settings.

    Raises:
        UnsupportedError: the family has no entry in `FAMILIES`, or llama.cpp does not support the value of a setting.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedError(f"GGUF files of the family {config.model_type} are not supported, only of {', '.join(FAMILIES)}")
    for name, allowed in family.allowed.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            raise UnsupportedError(f"{name} = {value!r} is not supported by llama.cpp for the family {config.model_type}")
    rope = _rope(config)
    kind = rope.get("rope_type", "default")
    if kind not in family.rope_types:
        raise UnsupportedError(f"the rotary embedding {kind!r} is not supported for the family {config.model_type}")
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedError(f"partial_rotary_factor = {rope['partial_rotary_factor']} is not supported")
    return family


def context_length(config: ModelSettings) -> int:
    """Return the longest text, in tokens, that llama.cpp computes correctly.

    llama.cpp ignores the sliding windows of the families in `FAMILIES`.  With a sliding window, the result is therefore at most
    the length of the window.
    """
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)


def write_settings(writer: "GGUFWriter", config: ModelSettings) -> None:
    """Write the sizes, norms and rotary embedding of a model as metadata.

    Args:
        writer: The writer of the GGUF file.
        config: The config of the model.
    """
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(int(inner))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(getattr(config, "num_key_value_heads", None) or heads))
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(float(epsilon))
    if (epsilon := getattr(config, "layer_norm_epsilon", None)) is not None:
        writer.add_layer_norm_eps(float(epsilon))
    if rope := _rope(config):
        size = _head_dim(config)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(float(cast(float, rope.get("rope_theta", 10000.0))))
        _write_scaling(writer, rope)


def weights_of(model: CausalModel, family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each tensor in the layout of llama.cpp, with its name in GGUF.

    An output head that is tied to the embeddings is left out; llama.cpp then uses the embeddings as the head.

    Raises:
        UnsupportedError: a weight has no name in GGUF.
    """
    import gguf

    config = model.config
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    for name, weight in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise UnsupportedError(f"the weight {name} has no name in GGUF")
        yield known, family.weight(name, weight.detach(), config)
    if _rope(config).get("rope_type") == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config)


def _number(config: ModelSettings, name: str) -> int:
    """Return an integer field of the config, such as hidden_size."""
    return int(getattr(config, name))


def _rope(config: ModelSettings) -> Mapping[str, object]:
    return getattr(config, "rope_parameters", None) or {}


def _head_dim(config: ModelSettings) -> int:
    given = getattr(config, "head_dim", None)
    return int(given or _number(config, "hidden_size") // _number(config, "num_attention_heads"))


def _write_scaling(writer: "GGUFWriter", rope: Mapping[str, object]) -> None:
    """Write the position scaling of the rotary embeddings "linear" and "yarn"."""
    import gguf

    kind = rope.get("rope_type")
    if kind not in ("linear", "yarn"):
        return
    writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    writer.add_rope_scaling_factor(float(cast(float, rope["factor"])))
    if kind == "yarn":
        optional = {
            "original_max_position_embeddings": writer.add_rope_scaling_orig_ctx_len,
            "attention_factor": writer.add_rope_scaling_yarn_attn_factor,
            "beta_fast": writer.add_rope_scaling_yarn_beta_fast,
            "beta_slow": writer.add_rope_scaling_yarn_beta_slow,
        }
        for name, add in optional.items():
            if rope.get(name) is not None:
                add(rope[name])


def _llama3_factors(config: ModelSettings) -> torch.Tensor:
    """Return factors [head_dim / 2] of the rotary embedding of Llama 3.

    Llama 3 divides each frequency of the embedding by its factor.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled: torch.Tensor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0]
    size = _head_dim(config)
    theta = float(cast(float, _rope(config)["rope_theta"]))
    plain = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled
