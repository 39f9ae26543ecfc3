"""A check of the header of a GGUF file.

The gguf package reads the rest of the file.
"""

import struct
from pathlib import Path

from redistill.errors import ModelError
from redistill.models.reading import reading
from redistill.models.weight_files import check_pointers

_HEADER = struct.Struct("<4sIQQ")
_VERSIONS = (2, 3)


def check_gguf(name: str, path: Path) -> int:
    """Check the header of a GGUF file, and return the number of its tensors.

    Raises:
        ModelError: the file is empty, truncated, a git-lfs pointer, not a GGUF file, or has an unsupported version.
    """
    check_pointers(name, path)
    with reading(name, "check its permissions"), path.open("rb") as file:
        start = file.read(_HEADER.size)
    if len(start) < _HEADER.size:
        raise ModelError(f"{name}: is truncated: it has {len(start)} bytes and no GGUF header; download it again")
    magic, version, tensors, fields = _HEADER.unpack(start)
    if magic != b"GGUF":
        raise ModelError(f"{name}: is not a GGUF file: it starts with {magic!r}; give a .gguf file or a model folder")
    if version not in _VERSIONS:
        raise ModelError(
            f"{name}: has GGUF version {version}; only versions 2 and 3 are supported: convert it again with llama.cpp"
        )
    if max(tensors, fields) > path.stat().st_size:
        raise ModelError(
            f"{name}: its header lists {tensors} tensors and {fields} fields, more than the file has bytes; download it again"
        )
    return int(tensors)
