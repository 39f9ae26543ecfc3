"""A device "cuda:0" whose tensors are computed on the CPU.

Values and control flow are those of a real run.  As on a GPU, operands on two devices and `.numpy()` of a tensor on the device
are errors.  Operations for which the host would wait for the device, and copies to the device, are counted by the line of
redistill that calls them.  What is not simulated: compiled code, the choice of attention kernels, communication between GPUs,
the memory of a GPU, and a few rules on tensors of one element.

The simulation uses private functions of torch; `TORCH` is the version with which it was tried.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch.cuda.amp import common as autocast
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

TORCH = "2.13"
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
# Operations whose result depends on values, so that the host waits for them.
WAITING = frozenset(("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"))
WAITING |= {"_unique2", "unique_dim", "unique_consecutive"}
INDEXING = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"))
# The operations of torch.cuda that redistill, accelerate and transformers call, with their results.
REPLACED: dict[str, Any] = {
    "_lazy_init": None,
    "is_available": True,
    "is_initialized": True,
    "device_count": 1,
    "current_device": 0,
    "set_device": None,
    "synchronize": None,
    "empty_cache": None,
    "is_bf16_supported": True,
    "get_device_name": "simulated",
    "max_memory_allocated": 0,
    "memory_allocated": 0,
    "memory_reserved": 0,
    "reset_peak_memory_stats": None,
    "mem_get_info": (64 << 30, 80 << 30),
    "manual_seed": None,
    "manual_seed_all": None,
}


# The functions that begin a phase of a run, with the name of the phase.
PHASES = {
    ("training/loop.py", "_step"): "update",
    ("training/loop.py", "_log_update"): "logging",
    ("training/loop.py", "_validate"): "validation",
    ("training/loop.py", "_choose"): "validation",
    ("training/saving.py", "save_checkpoint"): "saving",
    ("runs/revisions.py", "__call__"): "logging",
    ("generation/generate.py", "generate"): "generation",
}
# Code of these folders is the phase "vocabulary pass", unless generation calls it.
VOCABULARY_PASS = ("vocab_pass/", "losses/")


class Counts:
    """Numbers of synchronisations and of copies to the device, by phase of the run, and by file and line of redistill.

    The line is the innermost line of redistill in the call stack, marked with "(transformers)" if this line calls transformers,
    which then waits.  The phase is the list of the phases that enclose the call,
    from the outermost to the innermost, such as "update generation".
    """

    def __init__(self) -> None:
        self.syncs, self.copies = Counter[str](), Counter[str]()

    def sync(self, what: str) -> None:
        phase, line = _position()
        self.syncs[f"{phase}: {line} {what}"] += 1

    def copy(self) -> None:
        phase, line = _position()
        self.copies[f"{phase}: {line}"] += 1


def _position() -> tuple[str, str]:
    """The phase of the run, and the innermost line of redistill in the call stack."""
    phases, line, library = list[str](), "", ""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/redistill/" in path and "/simulated_cuda/" not in path:
            name = path.rpartition("/redistill/")[2]
            line = line or f"{name}:{frame.f_lineno}{library}"
            is_vocabulary = name.startswith(VOCABULARY_PASS)
            phase = PHASES.get((name, frame.f_code.co_name), "vocabulary pass" if is_vocabulary else "")
            if phase and phase not in phases:
                phases.append(phase)
        elif "/transformers/" in path:
            library = " (transformers)"
        frame = frame.f_back
    if "generation" in phases and "vocabulary pass" in phases:
        phases.remove("vocabulary pass")
    return " ".join(reversed(phases)), line or "outside"


counts = Counts()


class OnDevice(torch.Tensor):
    """A tensor on the device; `values` has its values on the CPU."""

    values: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.values})"

    def __deepcopy__(self, memo: Any) -> "OnDevice":
        assert self.is_leaf
        return OnDevice(self.values.clone()).requires_grad_(self.requires_grad)

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory")

    __array__ = numpy

    def tolist(self) -> Any:
        counts.sync("tolist")
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()


class _Mode(TorchDispatchMode):
    """Sends operations without a tensor on the device, such as `torch.zeros(device="cuda")`, to the simulation."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(operation, args, kwargs or {})


def _on_cpu(tree: Any) -> Any:
    return tree_map_only(OnDevice, lambda tensor: tensor.values, tree)


def _computed(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device where a GPU would have it."""
    name = operation._schema.name.rpartition("::")[2]
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, OnDevice) for tensor in tensors)
    asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    options = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if asked is not None:
        options["device"] = CPU
    if name == "_to_copy":
        return _moved(operation, args, options, on_device, asked)
    if name == "copy_":
        if isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
            counts.copy() if isinstance(args[0], OnDevice) else counts.sync("copy_")
        operation(*_on_cpu(args), **_on_cpu(options))
        return args[0]
    if not on_device and (asked is None or asked.type != "cuda"):
        return operation(*args, **kwargs)
    if on_device:
        _check(operation, name, args, tensors)
    if name == "_fused_sdp_choice":
        return 0  # the kernel that needs no particular hardware
    product = _product(operation, _on_cpu(args))
    result = operation(*_on_cpu(args), **_on_cpu(options)) if product is None else product
    if name == "_local_scalar_dense":
        return result
    placed = tree_map_only(torch.Tensor, lambda tensor: tensor if isinstance(tensor, OnDevice) else OnDevice(tensor), result)
    return return_and_correct_aliasing(operation, args, kwargs, placed) if on_device and name != "lift_fresh" else placed


def _moved(operation: Any, args: Any, options: dict[str, Any], from_device: bool, asked: torch.device | None) -> torch.Tensor:
    """The result of a conversion of dtype or device."""
    to_device = from_device if asked is None else asked.type == "cuda"
    if from_device and not to_device:
        counts.sync("copy to the host")
    elif to_device and not from_device:
        counts.copy()
    result = operation(*_on_cpu(args), **_on_cpu(options))
    return OnDevice(result) if to_device else result


def _check(operation: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raise the error of a GPU for operands on two devices; count a synchronisation or a copy of indices."""
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
    if elsewhere and name not in INDEXING:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({operation}) at {_position()[1]}"
        )
    for _ in elsewhere:
        counts.copy()
    indices = args[1] if name in INDEXING else ()
    if name in WAITING or any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        counts.sync(name)


def _product(operation: Any, args: Any) -> torch.Tensor | None:
    """The product of half-precision matrices with a float32 result, which a CPU does not have; None for other operations."""
    if operation is torch.ops.aten.mm.dtype:
        return args[0].float() @ args[1].float()
    if operation is torch.ops.aten.addmm.dtype:
        return torch.addmm(*(each.float() for each in args[:3]))
    return None


@contextmanager
def simulated_cuda() -> Iterator[Counts]:
    """Context in which "cuda" is a device; the counts begin at 0.

    Raises:
        RuntimeError: the installed torch is another version than that with which the simulation was tried.
    """
    if not torch.__version__.startswith(TORCH):
        raise RuntimeError(f"the simulated device was tried with torch {TORCH}, and torch is {torch.__version__}")
    counts.syncs.clear()
    counts.copies.clear()
    lifts, swaps = torch._C._only_lift_cpu_tensors(), torch.__future__.get_swap_module_params_on_conversion()
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_swap_module_params_on_conversion(True)  # otherwise tied weights become two tensors
    patches = [mock.patch.object(torch.cuda, name, lambda *a, value=value, **k: value) for name, value in REPLACED.items()]
    patches.append(mock.patch.object(autocast, "amp_definitely_not_available", lambda: False))
    try:
        for patch in patches:
            patch.start()
        with _Mode():
            yield counts
    finally:
        for patch in reversed(patches):
            patch.stop()
        torch.__future__.set_swap_module_params_on_conversion(swaps)
        torch._C._set_only_lift_cpu_tensors(lifts)
