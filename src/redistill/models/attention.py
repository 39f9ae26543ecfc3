"""Choice of the attention implementation, and its checks.

Only implementations of transformers, torch and the package flash_attn are used.  For other names, transformers would download
code from the hub.
"""

import importlib.util
from typing import Literal, cast, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from redistill.errors import ConfigError, first_line
from redistill.models.families import text_config, unwrapped

Attention = Literal["eager", "sdpa", "flash_attention_2"]
FLASH = "flash_attention_2"
ATTENTIONS = get_args(Attention)


def check_attention(attention: Attention | None) -> None:
    """Check that this machine can run an attention implementation.

    Args:
        attention: The implementation; None for the default of the family.

    Raises:
        ConfigError: flash attention is requested, but the GPU or the package flash_attn is missing.

    Example:
        >>> check_attention("sdpa")  # part of torch, on every device
    """
    if attention != FLASH:
        return
    reason = "needs a GPU" if not torch.cuda.is_available() else ""
    if not reason and importlib.util.find_spec("flash_attn") is None:
        reason = "needs the package flash_attn; pip install flash-attn"
    if reason:
        raise ConfigError(f"attention = '{FLASH}': {reason}, or set attention to sdpa")


def use_attention(model: nn.Module, attention: Attention | None, name: str) -> None:
    """Set the attention implementation of a model, in place.

    Args:
        model: A language model.
        attention: The implementation.  If None, the model is unchanged.
        name: Name of the model for error messages.

    Raises:
        ConfigError: the model's family does not support the implementation.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> use_attention(model, "eager", "student")
        >>> model.config._attn_implementation
        'eager'
    """
    if attention is None:
        return
    others, reason = ", ".join(other for other in ATTENTIONS if other != attention), ""
    try:
        cast(PreTrainedModel, unwrapped(model)).set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        reason = f": {first_line(error)[:200]}"
    if text_config(model)._attn_implementation != attention:
        raise ConfigError(
            f"attention = {attention!r}: not supported by the {text_config(model).model_type} family of {name}{reason}; "
            f"choose one of {others}, or remove the setting"
        )
