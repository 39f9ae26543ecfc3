"""Differences between model families: body, head, layers, number of positions.

They are found by config and shape.

Every other module treats a causal language model as a body (ids -> hidden states) and a head (hidden states -> logits).
`check_split` compares the logits of this split with the model's own, so that a family that computes its logits differently is
rejected and not trained wrongly.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import nn

from redistill.errors import ModelError, NotFiniteError
from redistill.interfaces import CausalModel, ModelSettings
from redistill.vocab_pass import Head

BodyCall = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Embeddings with one row per position: a longer text cannot be read.  Rotary families have none.
_LEARNED_POSITIONS = {"wpe", "embed_positions", "position_embeddings"}


def unwrapped(model: nn.Module) -> CausalModel:
    """The transformers model inside a PEFT model; its adapters remain active."""
    return cast(CausalModel, getattr(model, "get_base_model", lambda: model)())


def text_config(model: nn.Module) -> ModelSettings:
    """The config of the language model, also where it is part of a multimodal model's."""
    return unwrapped(model).config.get_text_config()


def body_module(model: nn.Module) -> nn.Module:
    """The part of a causal language model below its LM head.

    Its `last_hidden_state` is after the final norm (and OPT's `project_out`).

    Raises:
        ModelError: the model has no body apart from its head.
    """
    plain = unwrapped(model)
    if plain.base_model is plain:
        raise ModelError(f"{type(plain).__name__}: has no body apart from its head; use a causal language model")
    return plain.base_model


def body(model: nn.Module) -> BodyCall:
    """`model` without its head, as a function.

    Args:
        model: A causal language model, with or without PEFT adapters.

    Returns:
        A callable (input_ids_BT, attention_mask_BT) -> hidden_BTD, in the model's dtype; differentiable.
    """
    module = body_module(model)

    def hidden_states(input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        output = module(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False)
        return cast(torch.Tensor, output.last_hidden_state)

    return hidden_states


def head(model: nn.Module, vocabulary: int | None = None) -> Head:
    """The LM head of `model`, with the soft cap and scale of its family.

    It shares the model's weights.

    Args:
        model: A causal language model, with or without PEFT adapters.
        vocabulary: Number of leading classes that are used; None for all rows of the head.

    Raises:
        ModelError: the head is not a plain linear layer.
    """
    layer = unwrapped(model).get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise ModelError(
            f"{type(unwrapped(model)).__name__}: its head is {type(layer).__name__}; it must be a plain linear layer; "
            "leave lm_head out of the adapter's target modules"
        )
    config = text_config(model)
    return Head(
        weight_VD=layer.weight,
        bias_V=layer.bias,
        softcap=getattr(config, "final_logit_softcapping", None),
        scale=_logit_scale(config),
        vocabulary=vocabulary,
    )


def _logit_scale(config: ModelSettings) -> float:
    scale = float(getattr(config, "lm_head_multiplier", None) or 1.0)  # Falcon-H1
    scale *= float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    # The name has two meanings: Granite and MiniCPM divide by it, HyperCLOVA X multiplies.
    return scale * scaling if config.model_type.startswith("hyperclovax") else scale / scaling


@torch.no_grad()
def check_split(model: nn.Module, *, name: str) -> None:
    """Compare the logits of body and head with the model's own on up to 8 tokens.

    Raises:
        ModelError: they differ by more than 3 % of the largest logit, the rounding of bf16; `NotFiniteError` if the model's own
            are not finite.
    """
    training = model.training
    model.eval()
    classifier = head(model)
    num_tokens = min(8, classifier.weight_VD.shape[0])
    ids_BT = torch.arange(num_tokens, device=classifier.weight_VD.device)[None]
    mask_BT = torch.ones_like(ids_BT)
    own_NV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[0].float()
    split_NV = classifier.logits(body(model)(ids_BT, mask_BT)[0])
    model.train(training)
    if not own_NV.isfinite().all():
        raise NotFiniteError(f"{name}: its logits are not finite; load it with dtype float32, or download its weights again")
    if not torch.allclose(split_NV, own_NV, rtol=0.0, atol=0.03 * float(own_NV.abs().max())):
        raise ModelError(
            f"{name}: the {text_config(model).model_type} family computes its logits in a way that redistill does not support; "
            "use another family"
        )


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of transformer layers, and its path below `unwrapped(model)`.

    The path is, for example, "model.layers" or "transformer.h".

    Raises:
        ModelError: no list of modules has the length that the config gives.
    """
    plain = unwrapped(model)
    count = text_config(model).num_hidden_layers
    for path, module in plain.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return path, module
    raise ModelError(f"{type(plain).__name__}: contains no list of {count} layers; build the student from another family")


def position_limit(model: nn.Module) -> int | None:
    """Number of positions that have an embedding.

    None where the family computes positions (rotary, ALiBi).
    """
    for path, module in body_module(model).named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in _LEARNED_POSITIONS:
            return int(text_config(model).max_position_embeddings)
    return None


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context: eval mode for `model`.

    The mode of each module is restored on exit, since some may be in eval mode on purpose.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
