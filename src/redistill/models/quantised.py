"""Base weights in 4 or 8 bits (bitsandbytes), for QLoRA, and dequantisation."""

import importlib.util
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from redistill.errors import ConfigError

Quantise = Literal["none", "nf4", "int8"]


def loading_options(quantise: Quantise, dtype: torch.dtype) -> dict[str, object]:
    """Options that make `from_pretrained` quantise the linear layers while loading.

    "nf4" is QLoRA's format: 4-bit NormalFloat with its scales quantised again (arXiv 2305.14314).  "int8" is LLM.int8().
    Embeddings, norms and the head are not quantised.

    Args:
        quantise: "none", "nf4" or "int8".
        dtype: dtype of the matrix products of 4-bit weights.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if quantise == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantise = {quantise!r}: needs the bitsandbytes package; pip install 'redistill[qlora]', or set quantise to none"
        )
    nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    storage = {"load_in_8bit": True} if quantise == "int8" else {"load_in_4bit": True, **nf4}
    return {"quantization_config": BitsAndBytesConfig(**storage)}


def keep_trainable(model: nn.Module) -> None:
    """Prevent bitsandbytes from repacking 4-bit weights on a CPU.

    On CPUs with AVX512-BF16 the first forward pass in eval mode converts them to a layout that has no gradient and that
    `plain_weight` would misread, and a later call of `train` does not restore it; a student alternates between generation and
    training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # nn.Module declares tensors and modules only


def is_quantised(model: nn.Module) -> bool:
    """Whether some weights are stored as quantised integers."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def plain_weight(layer: Any) -> torch.Tensor:
    """The weight of a linear layer, dequantised if necessary; without gradient.

    PEFT's function for this moves an 8-bit weight, which loses its scales, so that the layer cannot be run afterwards.
    """
    weight: torch.Tensor = layer.weight.detach()
    if weight.is_floating_point():
        return weight
    state = getattr(layer.weight, "quant_state", None)
    if state is None:  # 8 bits: one scale per row
        scales: torch.Tensor = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return weight.float() * (scales.float() / 127)[:, None]
    from bitsandbytes.functional import dequantize_4bit

    plain: torch.Tensor = dequantize_4bit(weight.data, state)
    return plain


def num_weights(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; an element stores two 4-bit weights."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())
