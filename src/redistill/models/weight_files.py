"""Headers of the safetensors files of a model, which are read before the weights.

The package safetensors checks each header: sizes and offsets of the tensors, overlaps, and the length of the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from redistill.errors import ModelError
from redistill.models.reading import json_object, reading

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_AGAIN = "download it again"
_POINTER = b"version https://git-lfs"
_READ = (".gguf", ".jinja", ".json", ".model", ".safetensors", ".txt")


@dataclass(frozen=True)
class Stored:
    """The description of a tensor in a safetensors file; it contains no tensor data.

    Args:
        file: Name of the file.
        dtype: dtype of the tensor, by its name in the safetensors format, such as "BF16".
        shape: Shape of the tensor.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements of the tensor."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the tensor in its file, in bytes."""
        return self.size * int("".join(filter(str.isdigit, self.dtype.partition("_")[0])) or 8) // 8

    @property
    def is_float(self) -> bool:
        """Whether the tensor has a floating point dtype."""
        return self.dtype.startswith(("F", "BF"))


def check_pointers(name: str, *paths: Path) -> None:
    """Check that no file is a git-lfs pointer.

    A pointer is a small text file that git stores in place of a large file. A repository that is cloned without git-lfs
    contains only pointers.

    Raises:
        ModelError: one of the files is a pointer.
    """
    for path in paths:
        if not path.name.endswith(_READ) or not path.is_file() or path.stat().st_size > 1024:
            continue
        with reading(f"{name}: {path.name}", "check its permissions"), path.open("rb") as file:
            start = file.read(len(_POINTER))
        if start == _POINTER:
            raise ModelError(
                f"{name}: {path.name} is a git-lfs pointer, not the file itself; run `git lfs pull` in its folder, or download "
                "the model from the hub"
            )


def stored_tensors(name: str, folder: Path) -> dict[str, Stored]:
    """Return a description of each stored tensor of a model, by tensor name.

    Only the headers of the weight files are read, and no tensor data.

    Args:
        name: Name of the model for error messages.
        folder: The local folder of the model. If it has no weights, the result is empty.

    Raises:
        ModelError: a file is missing, truncated, damaged or a git-lfs pointer; or the index (a JSON file that lists the
            weight files) does not match the files.
    """
    if (folder / SINGLE).is_file():
        return header(name, folder / SINGLE)
    return _sharded(name, folder / INDEX) if (folder / INDEX).is_file() else {}


def header(name: str, path: Path) -> dict[str, Stored]:
    """Return a description of each tensor in a safetensors file, by tensor name.

    Only the header of the file is read, and no tensor data.

    Raises:
        ModelError: the file is missing, damaged, or without tensors.
    """
    if not path.is_file():
        raise ModelError(f"{name}: {path.name} is missing; download it again")
    check_pointers(name, path)
    with reading(f"{name}: {path.name}", _AGAIN), safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        found = {key: Stored(path.name, str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
    if not found:
        raise ModelError(f"{name}: {path.name} contains no tensors; download it again")
    return found


def _sharded(name: str, index: Path) -> dict[str, Stored]:
    """Return a description of each tensor in the files of an index, by tensor name.

    Only the headers of the files are read, and no tensor data.
    """
    places = shards(name, index)
    found: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        found |= header(name, index.parent / file)
    lost = next((key for key, file in places.items() if key not in found or found[key].file != file), None)
    if lost is not None:
        raise ModelError(f"{name}: {index.name} lists {lost[:100]!r} in {places[lost]}, which does not contain it; {_AGAIN}")
    return found


def shards(name: str, index: Path) -> dict[str, str]:
    """Read an index; return a map from tensor names to the names of their files.

    An index is a JSON file that lists the files of a model.

    Raises:
        ModelError: the index is damaged, or lists files outside its folder.
    """
    listed = json_object(f"{name}: {index.name}", index, _AGAIN).get("weight_map")
    if not isinstance(listed, Mapping) or not listed:
        raise ModelError(f"{name}: {index.name}: weight_map must map names of tensors to files; {_AGAIN}")
    for key, file in listed.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
            raise ModelError(
                f"{name}: {index.name}: weight_map of {key[:60]!r} is {str(file)[:60]!r}; it must be a .safetensors file "
                f"beside the index; {_AGAIN}"
            )
    return {key: str(file) for key, file in listed.items()}
