"""Estimates the memory of activations, from the linear layers of a model.

The estimate needs no forward pass.  It limits the number of tokens in a micro-batch on an accelerator.
"""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from redistill.models.families import head, layer_list

MEMORY_PART = 2
"""Activations get the memory that weights, gradients and optimiser state leave, divided by this number."""


def activation_bytes(model: nn.Module, item_bytes: int) -> int:
    """Estimate the bytes of activations for the backward pass of one token.

    The estimate is the size of the inputs and outputs of all linear layers.  It does not include the attention matrices of
    the implementation "eager".  With gradient checkpointing, the estimate is the size of the inputs of all layers, plus the
    activations of one layer.  In float32, autograd keeps 0.8 to 2.4 times the estimated bytes (measured for five families).

    Args:
        model: A causal language model.
        item_bytes: Bytes of a number: 2 in bf16, 4 in float32.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=2, n_head=1, n_positions=8), seed=1)
        >>> activation_bytes(model, 4)  # 2 layers with linear layers of 4 to 12, 4 to 4, 4 to 16 and 16 to 4
        512
    """
    layers = _features_of_layers(model)
    checkpoints = any(isinstance(part, GradientCheckpointingLayer) and part.gradient_checkpointing for part in model.modules())
    kept = len(layers) * head(model).weight_VD.shape[1] + max(layers, default=0) if checkpoints else sum(layers)
    return item_bytes * kept


def reading_bytes(model: nn.Module, item_bytes: int) -> int:
    """Estimate the bytes of activations of one token in a pass without gradient.

    The estimate is the size of the inputs and outputs of the linear layers in the largest layer of the model.

    Args:
        model: A causal language model.
        item_bytes: Bytes of a number: 2 in bf16, 4 in float32.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> model = fresh_model(dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=2, n_head=1, n_positions=8), seed=1)
        >>> reading_bytes(model, 4), activation_bytes(model, 4)
        (256, 512)
    """
    return item_bytes * max(_features_of_layers(model), default=0)


def token_limit(memory_bytes: int, occupied_bytes: int, token_bytes: int) -> int:
    """Return the maximum number of tokens whose activations fit into memory.

    The result is a power of two, so that it rarely depends on small differences in memory.

    Args:
        memory_bytes: Memory of the accelerator.
        occupied_bytes: Bytes of weights, gradients and optimiser state.
        token_bytes: Bytes of the activations of one token.

    Example:
        >>> token_limit(80 * 2**30, 40 * 2**30, 4 * 2**20)  # 20 GiB for activations of 4 MiB a token
        4096
    """
    tokens = max(1, (memory_bytes - occupied_bytes) // MEMORY_PART // max(1, token_bytes))
    return 1 << (tokens.bit_length() - 1)


def _features_of_layers(model: nn.Module) -> list[int]:
    """Return the sum of `_features` over the modules of each layer."""
    return [sum(map(_features, layer.modules())) for layer in layer_list(model)[1]]


def _features(module: nn.Module) -> int:
    """Return the input size plus output size of a linear layer; 0 for other modules."""
    if isinstance(module, Conv1D):
        return int(sum(module.weight.shape))
    return module.in_features + module.out_features if isinstance(module, nn.Linear) else 0
