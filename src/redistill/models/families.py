"""Access to the parts of a model that differ between families: body, head, layers.

The parts are found by the fields of the config and the shapes of the modules.

Every other module treats a causal language model as a body, which maps token ids to hidden states, and a head, which maps
hidden states to logits. `check_split` compares the logits of body and head with the model's own logits. A family that
computes its logits in another way is rejected, since training would use wrong logits.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import nn

from redistill.errors import ModelError, NotFiniteError
from redistill.interfaces import CausalModel, ModelSettings
from redistill.models.values import largest_weight
from redistill.vocab_pass import Head

BodyCall = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Names of embeddings with one row per position, which limit the length of a text. Families with rotary
# embeddings have no such embeddings.
_LEARNED_POSITIONS = {"wpe", "embed_positions", "position_embeddings"}


def unwrapped(model: nn.Module) -> CausalModel:
    """Return the transformers model inside a PEFT model.

    The adapters remain active. A model that is not a PEFT model is returned unchanged.
    """
    return cast(CausalModel, getattr(model, "get_base_model", lambda: model)())


def text_config(model: nn.Module) -> ModelSettings:
    """Return the config of the language model that `model` is or contains.

    A multimodal model stores this config inside its own config.
    """
    return unwrapped(model).config.get_text_config()


def body_module(model: nn.Module) -> nn.Module:
    """Return the body of a causal language model: the part below its LM head.

    The body includes the final norm (and the layer `project_out` of OPT).

    Raises:
        ModelError: the model has no separate body.
    """
    plain = unwrapped(model)
    if plain.base_model is plain:
        raise ModelError(f"{type(plain).__name__}: has no body separate from its LM head; use a causal language model")
    return plain.base_model


def body(model: nn.Module) -> BodyCall:
    """Return a function that computes the hidden states of `model`, without its head.

    Args:
        model: A causal language model, with or without PEFT adapters.

    Returns:
        A differentiable function (input_ids_BT, attention_mask_BT) -> hidden_BTD; hidden_BTD has the model's dtype.
    """
    module, limit = body_module(model), longrope_limit(model)

    def hidden_states(input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor) -> torch.Tensor:
        positions = {} if limit is None else {"position_ids": (attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)}
        output = module(input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False, **positions)
        return cast(torch.Tensor, output.last_hidden_state)

    return hidden_states


def head(model: nn.Module, vocabulary: int | None = None) -> Head:
    """Return the LM head of `model`, with the soft cap and the scale of the logits.

    The returned head shares the weights of the model.

    Args:
        model: A causal language model, with or without PEFT adapters.
        vocabulary: Number of rows of the head that are used (the first rows); if None, all rows are used.

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
    # `logits_scaling` has two meanings: Granite and MiniCPM divide the logits by it, HyperCLOVA X multiplies them by it.
    return scale * scaling if config.model_type.startswith("hyperclovax") else scale / scaling


@torch.no_grad()
def check_split(model: nn.Module, *, name: str) -> None:
    """Check that body and head compute the same logits as the whole model.

    The body maps token ids to hidden states, and the head maps hidden states to logits. The logits of up to 8 tokens are
    compared. Rounding in bf16 can cause a difference of 3 % of the largest logit, which is allowed.

    Raises:
        ModelError: the logits differ by more than 3 % of the largest logit.
        NotFiniteError: the logits of the whole model are not finite.
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
    if bool((torch.isnan(own_NV) | (own_NV == torch.inf)).any()):
        raise NotFiniteError(
            f"{name}: its logits are not finite ({largest_weight(model)}); check that its config.json belongs to its weights, "
            "and download the model again"
        )
    if not torch.allclose(split_NV, own_NV, rtol=0.0, atol=0.03 * float(own_NV.abs().max())):
        raise ModelError(
            f"{name}: the {text_config(model).model_type} family computes its logits in a way that redistill does not support; "
            "use another family"
        )


def layer_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the path of the layer list in `unwrapped(model)`, and the list itself.

    The path is, for example, "model.layers" or "transformer.h". In a multimodal model, only the language model is searched,
    because the vision and audio models can have the same number of layers.

    Raises:
        ModelError: no list of modules has the number of layers that the model's config states.
    """
    plain, text = unwrapped(model), text_config(model)
    for root, part in plain.named_modules():
        if type(getattr(part, "config", None)) is type(text):
            for path, module in part.named_modules(prefix=root):
                if isinstance(module, nn.ModuleList) and len(module) == text.num_hidden_layers:
                    return path, module
    raise ModelError(
        f"{type(plain).__name__}: contains no list of {text.num_hidden_layers} layers; build the student from another family"
    )


def rope_parts(model: nn.Module) -> list[Mapping[str, object]]:
    """Return the settings of each rotary embedding of a model, from its config.

    A model has one rotary embedding for all layers, one for each type of layer, or none.
    """
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    return [part for part in (rope, *rope.values()) if isinstance(part, dict) and "rope_type" in part]


def longrope_limit(model: nn.Module) -> int | None:
    """Prepare longrope for batches; return the maximum length of short texts.

    Longrope is a rotary embedding that uses other frequencies for long texts than for short texts. The result is in tokens;
    None for models without longrope.

    Transformers chooses the same frequencies for all rows of a batch, by the length of the longest row. Therefore the function
    registers a forward hook on each rotary embedding of the model. The hook chooses the frequencies of each row by the length
    of that row. A second call registers no second hook.
    """
    limits = [part["original_max_position_embeddings"] for part in rope_parts(model) if part["rope_type"] == "longrope"]
    if not limits:
        return None
    for module in body_module(model).modules():
        if hasattr(module, "rope_type") and _rotate_by_row not in module._forward_hooks.values():
            module.register_forward_hook(_rotate_by_row, with_kwargs=True)
    return int(cast(int, limits[0]))


def _rotate_by_row(
    rotary: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Choose the longrope frequencies for each row of a batch; this is a forward hook.

    If one row is a long text, transformers uses the frequencies for long texts in all rows. The hook returns the
    frequencies for short texts in every row that is a short text.
    """
    named = {**dict(zip(("x", "position_ids", "layer_type"), args)), **kwargs}
    rope = getattr(cast(CausalModel, rotary).config, "rope_parameters", {})
    part = rope.get(named.get("layer_type"), rope)
    if part["rope_type"] != "longrope":
        return output
    limit, position_BT = part["original_max_position_embeddings"], cast(torch.Tensor, named["position_ids"])
    is_long_B11 = (position_BT.amax(dim=1) >= limit)[:, None, None]
    short = rotary.forward(**{**named, "position_ids": position_BT.clamp(max=limit - 1)})
    return tuple(torch.where(is_long_B11, long, brief) for long, brief in zip(output, short))


def position_limit(model: nn.Module) -> int | None:
    """Return the maximum length of a text in tokens, or None if there is no maximum.

    Families with learned position embeddings have a maximum. Families with dynamic rotary embeddings also have a maximum,
    because the frequencies for longer texts would depend on the longest text so far. Families with other rotary embeddings or
    ALiBi have no maximum.
    """
    if any(part["rope_type"] == "dynamic" for part in rope_parts(model)):
        return int(text_config(model).max_position_embeddings)
    for path, module in body_module(model).named_modules():
        if isinstance(module, nn.Embedding) and path.rpartition(".")[2] in _LEARNED_POSITIONS:
            return int(text_config(model).max_position_embeddings)
    return None


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Context in which `model` is in eval mode.

    The mode of each module is restored on exit, since some modules may have been in eval mode before.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
