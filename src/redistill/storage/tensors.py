"""Safetensors files, written atomically and one tensor at a time.

A write therefore copies at most one tensor at a time in memory. A file begins with 8 bytes that contain the length of the
header. The header and the bytes of the tensors follow. The header is JSON with the type, the shape and the offsets of each
tensor.

Tied tensors, which have the same elements in memory, are stored once, under one of their names.  The header also lists their
other names, so that the tensors are tied again after loading.
"""

import json
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import torch
from safetensors import safe_open

from redistill.errors import DataError, first_line, is_failure
from redistill.storage import files
from redistill.storage.json_text import parse_json
from redistill.storage.redaction import plain_line

_FLOATS = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_INTEGERS = {
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_NAMES = _FLOATS | _INTEGERS | {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}

_MAX_REASON = 300  # characters; a reason may quote names of tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write named tensors to a safetensors file; return its SHA-256 in hexadecimal.

    Raises:
        OutputError: the file cannot be written.
    """
    header, ordered = _layout(tensors)
    return files.write_parts(path, chain([header], map(_bytes, ordered)), num_bytes(tensors))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors, by name, of a file that `write_tensors` wrote.

    The tensors are memory-mapped; copy them before the file is removed or overwritten.

    Raises:
        DataError: the file is missing, cannot be read, or is not a file that `write_tensors` wrote.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors | _aliases((file.metadata() or {})["aliases"], tensors)
    except BaseException as error:  # a crafted header makes safetensors and torch raise exceptions of many types
        if isinstance(error, MemoryError) or not is_failure(error):
            raise
        reason = plain_line(first_line(error))[:_MAX_REASON]
        raise DataError(f"{path.name}: is not a complete safetensors file of redistill ({reason})") from error


def _aliases(text: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tied tensors by their additional names; `text` lists these names."""
    listed = parse_json(text)
    if not isinstance(listed, dict) or not all(isinstance(name, str) and name in tensors for name in listed.values()):
        raise ValueError("the metadata lists names of tensors that are not in the file")
    return {name: tensors[original] for name, original in listed.items()}


def num_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Compute the size in bytes of the file that `write_tensors` would write.

    Tensors on the device "meta" count as if they had data.

    Example:
        >>> num_bytes({"weight": torch.empty(1000, 1000, device="meta")}) - 4_000_000 < 200
        True
    """
    header, ordered = _layout(tensors)
    return len(header) + sum(tensor.nbytes for tensor in ordered)


def _layout(tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, list[torch.Tensor]]:
    """Return the bytes of the header, and the tensors in the order of the file."""
    unique, aliases = _untied(tensors)
    header: dict[str, object] = {"__metadata__": {"aliases": json.dumps(aliases, sort_keys=True)}}
    # Sorted by decreasing element size, so that each tensor is aligned.
    ordered = sorted(unique.items(), key=lambda item: (-item[1].element_size(), item[0]))
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [tensor for _, tensor in ordered]


def _untied(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors without duplicates, and the additional names of tied tensors.

    The first result has each tensor under its first name.  The second result maps each additional name to the first name.
    """
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        address = id(tensor) if tensor.is_meta or not tensor.numel() else tensor.data_ptr()
        view = (tensor.device, tensor.dtype, address, tuple(tensor.shape), tensor.stride())
        if (original := first.setdefault(view, name)) != name:
            aliases[name] = original
    return {name: tensors[name] for name in first.values()}, aliases


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
