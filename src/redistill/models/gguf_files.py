"""The fixed header of a GGUF file; all else is read by the gguf package."""

import struct
from pathlib import Path

from redistill.errors import ModelError
from redistill.models.reading import reading
from redistill.models.weight_files import check_pointers

_HEADER = struct.Struct("<4sIQQ")
_VERSIONS = (2, 3)


def check_gguf(name: str, path: Path) -> int:
    """Check the header of a GGUF file, and return its number of tensors.

    Raises:
        ModelError: the file is empty, cut, a git-lfs pointer, no GGUF file, or of a version that cannot be read.
    """
    check_pointers(name, path)
    with reading(name, "check its permissions"), path.open("rb") as file:
        start = file.read(_HEADER.size)
    if len(start) < _HEADER.size:
        raise ModelError(f"{name}: is cut: it has {len(start)} bytes and no GGUF header; download it again")
    magic, version, tensors, fields = _HEADER.unpack(start)
    if magic != b"GGUF":
        raise ModelError(f"{name}: is no GGUF file: it starts with {magic!r}; give a .gguf file or a model folder")
    if version not in _VERSIONS:
        raise ModelError(f"{name}: has version {version} of GGUF; only 2 and 3 are read: convert it again with llama.cpp")
    if max(tensors, fields) > path.stat().st_size:
        raise ModelError(
            f"{name}: its header announces {tensors} tensors and {fields} fields, more than it has bytes; download it again"
        )
    return int(tensors)
