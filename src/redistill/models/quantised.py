"""Base weights in 4 or 8 bits, for QLoRA, through bitsandbytes; and what they stand for, in plain numbers."""

import importlib.util
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from redistill.errors import ConfigError

Quantise = Literal["none", "nf4", "int8"]


def loading_options(quantise: Quantise, dtype: torch.dtype) -> dict[str, Any]:
    """What makes `from_pretrained` quantise the linear layers while it reads them.

    "nf4" is QLoRA's own: 4-bit NormalFloat with its scales quantised again (arXiv 2305.14314).  "int8" is LLM.int8().
    Embeddings, norms and the head stay as they are.

    Args:
        quantise: "none", "nf4" or "int8".
        dtype: What the products are computed in.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if quantise == "none":
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantise = {quantise!r}: needs the bitsandbytes package; pip install 'redistill[qlora]', or set it to none"
        )
    if quantise == "int8":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config}


def keep_trainable(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU.

    On CPUs with AVX512-BF16 the first forward in eval mode puts them into a layout that has no gradient and that
    `plain_weight` would misread, and no later call of `train` undoes it; a student writes, learns and writes again.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def is_quantised(model: nn.Module) -> bool:
    """Whether some of the weights are integers that stand for numbers."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def plain_weight(layer: Any) -> torch.Tensor:
    """The weight that a linear layer computes with, dequantised where it has to be; no gradient.

    PEFT's function for this moves an 8-bit weight, which loses its scales, and the layer cannot be run afterwards.
    """
    weight = layer.weight.detach()
    if weight.is_floating_point():
        return weight
    state = getattr(layer.weight, "quant_state", None)
    if state is None:  # 8 bits: a scale a row
        scales = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
        return weight.float() * (scales.float() / 127)[:, None]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def num_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds; 4-bit ones stand two to an element."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())
