"""Gradient checkpointing: activations are recomputed in the backward pass.

This needs less memory, and about a third more time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_activations(model: nn.Module) -> None:
    """Enable gradient checkpointing.

    Releases of transformers have different names for the method that enables gradient checkpointing.  This function calls the
    method of the installed release.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, "gradient_checkpointing_enable")  # noqa: B009
    enable({"use_reentrant": False})


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Context in which gradient checkpointing also has an effect in eval mode.

    Transformers recomputes activations only in training mode.  MiniLLM trains the student in eval mode, without dropout.  The
    context changes nothing if gradient checkpointing is not enabled, or if `model` is in training mode.

    Args:
        model: A language model, or a module that contains it.

    Example:
        >>> with recomputing(nn.Linear(2, 1)):  # no layer with gradient checkpointing
        ...     pass
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    layers = [layer for layer in layers if layer.gradient_checkpointing and not layer.training]
    for layer in layers:
        vars(layer)["forward"] = partial(layer._gradient_checkpointing_func, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]
