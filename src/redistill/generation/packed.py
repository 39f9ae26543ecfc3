"""Weights packed for matrix products with few rows on a CPU.

Products with few rows take most of the time of a decoding step.  oneDNN, a CPU library that PyTorch uses, can reorder ("pack")
a weight into blocks, so that a product reads the weight once and sequentially.  Without packing, a product with eight rows
takes 1.5 times as long, and a product with a large head up to 2.6 times.  Results are equal up to rounding.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Product = Callable[[torch.Tensor], torch.Tensor]


def can_pack(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether oneDNN can pack (reorder) a weight for products in `dtype`.

    The weight must be on a CPU, and `dtype` must be float32 or bfloat16.
    """
    is_known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return bool(is_known and weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16))


def packed_product(weight_VD: torch.Tensor, bias_V: torch.Tensor | None, dtype: torch.dtype) -> Product:
    """Return the function x -> x W^T + b, which uses a packed (reordered) copy of W.

    Args:
        weight_VD: The weight W in the layout of `nn.Linear`; `can_pack` must return True for it.
        bias_V: The bias b; None for a layer without bias.
        dtype: Data type of the operands and the result.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight_VD.detach().to(dtype))
    bias_V = None if bias_V is None else bias_V.detach().to(dtype)
    return partial(_multiply, packed, bias_V, dtype)


def _multiply(packed: torch.Tensor, bias_V: torch.Tensor | None, dtype: torch.dtype, x: torch.Tensor) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.to(dtype), packed, bias_V, "none", [], "")
    return product


_lock = threading.Lock()
_packed: "WeakKeyDictionary[nn.Module, _Packed]" = WeakKeyDictionary()


@dataclass
class _Packed:
    """The state of a model whose layers use packed weights.

    Args:
        layers: Exit stack that restores the layers when it is closed.
        users: Number of open `packed_layers` contexts of the model.
    """

    layers: ExitStack
    users: int = 0


@contextmanager
def packed_layers(model: nn.Module) -> Iterator[None]:
    """Context in which linear layers of `model` use packed weights, on a CPU.

    Products with few rows are faster with packed weights: copies in the memory order of oneDNN.  The weights are copied on
    entry, and later changes of the weights have no effect inside the context.  Threads that use the same model concurrently
    share the copies, and the last exit restores the layers.  Layers of other types, such as quantised layers, are not
    changed.
    """
    with _lock:
        if model not in _packed:
            _packed[model] = _Packed(_pack(model))
        _packed[model].users += 1
    try:
        yield
    finally:
        with _lock:
            _packed[model].users -= 1
            if _packed[model].users == 0:
                _packed.pop(model).layers.close()


def _pack(model: nn.Module) -> ExitStack:
    """Let the linear layers of `model` use packed weights, in place.

    The method `forward` of each layer is replaced.  Layers that cannot be packed are unchanged.  Closing the returned stack
    restores all `forward` methods.
    """
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    with ExitStack() as packed:  # restores all layers on an error: a packed layer would ignore later updates of its weight
        for layer in model.modules():
            if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):
                continue
            linear = cast(nn.Linear, layer)  # Conv1D has the transposed weight
            weight_VD = linear.weight if isinstance(layer, nn.Linear) else linear.weight.T
            dtype = autocast or weight_VD.dtype
            if can_pack(weight_VD, dtype):
                vars(layer)["forward"] = packed_product(weight_VD, linear.bias, dtype)
                packed.callback(vars(layer).pop, "forward")
        return packed.pop_all()
