"""Choice of the attention implementation.

Only implementations of transformers, torch and the package flash_attn are used.  For other names, transformers would download
code from the hub.  An implementation that cannot be used is replaced by another one.
"""

import importlib.util
from contextlib import suppress
from typing import Final, Literal, cast, get_args

import torch
from torch import nn
from transformers import PreTrainedModel

from redistill.models.families import text_config, unwrapped

Attention = Literal["eager", "sdpa", "flash_attention_2"]
FLASH: Final = "flash_attention_2"
ATTENTIONS = get_args(Attention)
_INSTEAD: dict[Attention, tuple[Attention, ...]] = {FLASH: ("sdpa", "eager"), "sdpa": ("eager",), "eager": ()}


def use_attention(model: nn.Module, attention: Attention | None) -> None:
    """Set the attention implementation of a model, in place.

    If the implementation cannot be used, the next one of flash_attention_2, sdpa and eager is set.  `attention_note` describes
    this case.

    Args:
        model: A language model.
        attention: The implementation.  If None, the model is unchanged.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> use_attention(model, "eager")
        >>> model.config._attn_implementation
        'eager'
    """
    if attention is None:
        return
    for choice in (attention, *_INSTEAD[attention]):
        if _missing(choice):
            continue
        with suppress(ValueError, ImportError):  # the family does not support it
            cast(PreTrainedModel, unwrapped(model)).set_attn_implementation(choice)
        if text_config(model)._attn_implementation == choice:
            return


def attention_note(model: nn.Module, attention: Attention | None, name: str) -> str | None:
    """Return a sentence for the log if a model uses another implementation.

    Args:
        model: A language model for which `use_attention` was called.
        attention: The requested implementation.
        name: Name of the model, such as "teacher".

    Returns:
        The implementation that is used, and the reason.  None if the request is None or is fulfilled.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> use_attention(model, "eager")
        >>> attention_note(model, "eager", "student") is None
        True
    """
    used = attention_of(model)
    if attention is None or used == attention:
        return None
    reason = _missing(attention) or f"is not supported by the {text_config(model).model_type} family"
    return f"the {name} uses attention = {used!r}, since {attention!r} {reason}"


def attention_of(model: nn.Module) -> str:
    """Return the name of the attention implementation that a model uses.

    Args:
        model: A language model.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), seed=1)
        >>> attention_of(model)
        'sdpa'
    """
    return str(text_config(model)._attn_implementation)


def _missing(attention: Attention) -> str:
    """Return what this machine lacks for an attention implementation; "" if nothing is missing."""
    if attention != FLASH:
        return ""
    if not torch.cuda.is_available():
        return "needs a GPU"
    return "" if importlib.util.find_spec("flash_attn") else "needs the package flash_attn; pip install flash-attn"
