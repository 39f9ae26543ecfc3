"""Quantisation of base models to 4 or 8 bits with bitsandbytes, for QLoRA."""

import importlib.util
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from redistill.errors import ConfigError

Quantise = Literal["none", "nf4", "int8"]


def loading_options(quantise: Quantise, dtype: torch.dtype) -> dict[str, object]:
    """Return the arguments with which `from_pretrained` quantises linear layers.

    "nf4" is the format of QLoRA: 4-bit NormalFloat, whose scales are quantised too (arXiv 2305.14314). "int8" is LLM.int8().
    Embeddings, norms and the head are not quantised.

    Args:
        quantise: "none", "nf4" or "int8".
        dtype: dtype in which matrix products with 4-bit weights are computed.

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
    """Prevent bitsandbytes from converting 4-bit weights for inference on a CPU.

    On CPUs with AVX512-BF16, the first forward pass in eval mode converts the weights to a layout that has no gradients,
    and that `plain_weight` cannot read. A later call of `train` does not restore the old layout. A student generates text
    in eval mode between training steps, and needs the old layout for training.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # nn.Module declares tensors and modules only


def is_quantised(model: nn.Module) -> bool:
    """Return whether some weights are stored as quantised integers."""
    return any(not parameter.is_floating_point() for parameter in model.parameters())


def plain_weight(layer: Any) -> torch.Tensor:
    """Return the dequantised weight of a linear layer, without gradient.

    A weight that is not quantised is returned as it is. The corresponding function of PEFT is not used. PEFT's function
    removes the scales of an 8-bit weight, so that the layer cannot compute a forward pass afterwards.
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
    """Return the number of weights in a parameter.

    One element of a 4-bit parameter stores two weights.
    """
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())
