"""Checks of the values of loaded weights."""

import math

import torch
from torch import nn

from redistill.errors import ModelError, NotFiniteError

_TINY = torch.finfo(torch.float32).tiny
_HUGE = 1e12
_AGAIN = "download the model again, or save it again from the program that made it"


def check_values(name: str, model: nn.Module) -> None:
    """Check the values of all floating point weights of a model.

    Args:
        name: Name of the model for error messages.
        model: The model, on any device.

    Raises:
        NotFiniteError: a tensor contains NaN or infinite weights, or a matrix contains a weight of more than 10^12 in
            absolute value, since sums of such weights overflow.
        ModelError: all weights of a matrix are denormal (too close to 0), so that products with it are 0; or a buffer
            contains NaN.
    """
    for key, parameter in model.named_parameters():
        check_tensor(name, key, parameter.detach())
    for key, buffer in model.named_buffers():  # infinite masks are allowed
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise ModelError(f"{name}: {key} contains NaN; check the fields of config.json from which it is computed")


def check_tensor(name: str, key: str, tensor: torch.Tensor) -> None:
    """Check the values of one tensor of floating point numbers.

    Tensors of other types and empty tensors are not checked.

    Raises:
        NotFiniteError: the tensor contains NaN or infinite values, or has at least two dimensions and contains a value of more
            than 10^12 in absolute value.
        ModelError: the tensor has at least two dimensions, and its largest absolute value is denormal (too close to 0) but
            not 0.
    """
    if not tensor.is_floating_point() or not tensor.numel():
        return
    low, high = _range(tensor)
    if not (math.isfinite(low) and math.isfinite(high)):
        odd = int((~torch.isfinite(tensor.float())).sum())
        raise NotFiniteError(f"{name}: {key}: {odd:,} of its {tensor.numel():,} weights are NaN or infinite; {_AGAIN}")
    largest = max(-low, high)
    if tensor.ndim > 1 and largest > _HUGE:
        raise NotFiniteError(f"{name}: {key}: its largest weight is {largest:.3g}; sums of such weights overflow: {_AGAIN}")
    if tensor.ndim > 1 and 0 < largest < _TINY:
        raise ModelError(f"{name}: {key}: its largest weight is {largest:.3g}, so small that products are 0; {_AGAIN}")


def largest_weight(model: nn.Module) -> str:
    """Return a phrase for error messages that gives the largest weight and its tensor."""
    ranges = {key: _range(p.detach()) for key, p in model.named_parameters() if p.is_floating_point() and p.numel()}
    key, (low, high) = max(ranges.items(), key=lambda item: max(-item[1][0], item[1][1]))
    return f"the largest weight is {max(-low, high):.3g}, in {key}"


def _range(tensor: torch.Tensor) -> tuple[float, float]:
    """Return the smallest and the largest element of a tensor.

    Both results are NaN if any element is NaN.
    """
    low, high = (tensor.float() if tensor.element_size() == 1 else tensor).aminmax()
    return float(low), float(high)
