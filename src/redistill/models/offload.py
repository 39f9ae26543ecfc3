"""Offloading of a teacher's layers to the machine's memory or to files.

The weights of a layer are on the device only while the layer computes.  Accelerate copies them to the device
when the layer is called, and frees them afterwards.  Embeddings, final norm and head stay on the device, because the
vocabulary pass uses the weight of the head without calling the head.
"""

import shutil
import weakref
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from redistill.errors import OutputError
from redistill.models.families import layer_list, unwrapped

Offload = Literal["cpu", "disk"]


def offload_layers(model: nn.Module, where: Offload, device: torch.device | str, folder: Path) -> None:
    """Offload the layers of a model, and move all other weights to a device, in place.

    The results are bitwise equal to those of a model that is not offloaded.  Weights of offloaded layers cannot be read or
    trained.

    Args:
        model: A causal language model on the CPU, without quantised weights.
        where: "cpu" keeps the weights of the layers in the machine's memory, and "disk" keeps them in files.
        device: Device of the computation.
        folder: New folder for the files of "disk".  It is removed when the model is freed or the process exits.

    Raises:
        ModelError: the family has no list of layers.
        OutputError: the files cannot be written.
    """
    from accelerate import cpu_offload, disk_offload

    path, layers = layer_list(model)
    parent, _, name = path.rpartition(".")
    owner = unwrapped(model).get_submodule(parent)
    setattr(owner, name, nn.ModuleList())
    model.to(device)
    setattr(owner, name, layers)
    if where == "disk":
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    for index, layer in enumerate(layers):
        whole = [type(layer).__name__]  # the weights of a layer are copied at once
        try:
            if where == "cpu":
                cpu_offload(layer, device, offload_buffers=True, preload_module_classes=whole)
            else:
                files = str(folder / str(index))
                disk_offload(layer, files, device, offload_buffers=True, preload_module_classes=whole)
        except OSError as error:
            raise OutputError(f"{folder}: the weights of the teacher cannot be written ({error.strerror})") from error


def is_offloaded(model: nn.Module) -> bool:
    """Return whether layers of a model are offloaded.

    Example:
        >>> is_offloaded(nn.Linear(2, 2))
        False
    """
    return any(parameter.is_meta for parameter in model.parameters())


def device_weights(model: nn.Module) -> int:
    """Return the maximum size in bytes of a model's weights on its device.

    If layers are offloaded, only one layer is on the device at a time, together with the weights outside of the layers.

    Example:
        >>> device_weights(nn.Linear(2, 2, bias=False))
        16
    """
    resident = sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)
    layers = layer_list(model)[1] if is_offloaded(model) else ()
    return resident + max((sum(parameter.nbytes for parameter in layer.parameters()) for layer in layers), default=0)
