"""Weights laid out for products with few rows, on a CPU: a step of decoding is mostly such products.

oneDNN reads a weight once, straight through, if it is laid out in blocks beforehand; a plain product with eight rows takes
half as long again, one with a large head up to 2.6 times as long.  Results are those of the plain products but for rounding.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Product = Callable[[torch.Tensor], torch.Tensor]


def can_pack(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight read as `dtype` has such a layout."""
    is_known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return bool(is_known and weight.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16))


def packed_product(weight_VD: torch.Tensor, bias_V: torch.Tensor | None, dtype: torch.dtype) -> Product:
    """x -> x W^T + b in `dtype`, with a copy of W laid out for it; x is rounded to `dtype`.

    Args:
        weight_VD: As `nn.Linear` has it; `can_pack` has agreed to it.
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
    """Which layers of a model multiply by packed copies, and how many callers count on it."""

    layers: list[nn.Module]
    users: int = 0


@contextmanager
def packed_layers(model: nn.Module) -> Iterator[None]:
    """Inside, the linear layers of a body multiply by packed copies of their weights; nothing else of them changes.

    The copies are of the weights as they are on entry; threads that are inside at once share them.  Layers of other kinds,
    such as quantised ones, are left alone.
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
                _unpack(_packed.pop(model).layers)


def _pack(model: nn.Module) -> list[nn.Module]:
    """Give each linear layer a forward of its own; returns the layers that have got one."""
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    packed: list[nn.Module] = []
    for module in model.modules():
        if type(module) not in (nn.Linear, Conv1D) or "forward" in vars(module):
            continue
        layer: Any = module
        weight_VD: torch.Tensor = layer.weight if isinstance(module, nn.Linear) else layer.weight.T
        dtype = autocast or weight_VD.dtype
        if not can_pack(weight_VD, dtype):
            continue
        try:
            layer.forward = packed_product(weight_VD, layer.bias, dtype)
        except BaseException:  # no memory for all: a layer that kept its copy would never learn again
            _unpack(packed)
            raise
        packed.append(module)
    return packed


def _unpack(layers: list[nn.Module]) -> None:
    for layer in layers:
        del layer.forward
