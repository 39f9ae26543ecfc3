"""The only way in which the files of a model are passed to transformers.

A model is loaded from a temporary folder that contains only the files that are needed. The JSON files in the folder contain
only the fields that `allowed_fields` permits. Weights and files of the tokenizer are links to the files of the model, so
that nothing large is copied and weights stay memory-mapped. Code, pickles, adapters and other files of the model are not in
the folder, so no library can find them. For a GGUF file, the folder contains only this file.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from redistill.errors import ModelError
from redistill.interfaces import Tokenizer
from redistill.models.allowed_fields import Fields, config_fields, generation_fields, tokenizer_fields
from redistill.models.gguf_files import check_gguf
from redistill.models.reading import json_object, reading
from redistill.models.snapshots import (
    CONFIG,
    GENERATION_CONFIG,
    TEMPLATE_FILES,
    TOKENIZER_CONFIG,
    VOCABULARY_FILES,
    ModelFolder,
    download_weights,
    model_folder,
    model_path,
    weight_names,
)
from redistill.models.weight_files import INDEX, SINGLE, check_pointers, shards
from redistill.records import Json

_REMEDY = "check the name, the network, and that the file is complete and not damaged"


def _numbers(what: str, fields: Mapping[str, Json]) -> Fields:
    """Check and return the fields of an added_tokens.json, which maps tokens to ids."""
    if not all(isinstance(number, int) for number in fields.values()):
        raise ModelError(f"{what}: must map tokens to ids; download the model again")
    return dict(fields)


_CHECKS: dict[str, Callable[[str, Mapping[str, Json]], Fields]] = {
    CONFIG: config_fields,
    GENERATION_CONFIG: generation_fields,
    TOKENIZER_CONFIG: tokenizer_fields,
    "special_tokens_map.json": tokenizer_fields,
    "added_tokens.json": _numbers,
}


@dataclass(frozen=True)
class CheckedModel:
    """A model whose files have been checked.

    Args:
        name: Name of the model, as given by the user.
        origin: The folder that has the files of the model.
        folder: The temporary folder with the checked files.
        gguf: Name of the GGUF file; None for a model folder.
        commit: Commit of a hub model; None for a local model.
    """

    name: str
    origin: Path
    folder: Path
    gguf: str | None = None
    commit: str | None = None

    @property
    def source(self) -> dict[str, str]:
        """Arguments with which `from_pretrained` loads the checked files."""
        named = {} if self.gguf is None else {"gguf_file": self.gguf}
        return {"pretrained_model_name_or_path": str(self.folder), **named}

    @property
    def location(self) -> str:
        """The name by which transformers can load the model again.

        The name is the hub name or the folder of the model, and "" for a GGUF file.
        """
        local = "" if self.gguf else str(self.origin)
        return local if self.commit is None else self.name

    def restore_paths(self, tokenizer: Tokenizer) -> None:
        """Replace paths in the temporary folder by paths of the model's own files.

        The attributes of a tokenizer contain paths of the files that it was loaded from. Some tokenizers copy these files
        when they are saved, but the temporary folder has been removed by then. The tokenizer is changed in place.
        """
        for kept in (vars(tokenizer), getattr(tokenizer, "init_kwargs", {})):
            for key, value in kept.items():
                if value == str(self.folder):
                    kept[key] = self.location
                elif isinstance(value, str) and value.startswith(f"{self.folder}{os.sep}"):
                    kept[key] = str(self.origin / value[len(str(self.folder)) + 1 :])


@contextlib.contextmanager
def checked_model(name: str, revision: str | None, *, downloads: bool = False) -> Iterator[CheckedModel]:
    """Check the files of a model, and provide them in a temporary folder.

    transformers can load the model from this folder while the context is active.

    Args:
        name: A hub name, a local folder, or the path of a .gguf file.
        revision: Branch, tag or commit of a hub model; None uses its main branch.
        downloads: Whether the weights of a hub model are downloaded; if not, the checked model has only its other files.

    Yields:
        The checked model; its temporary folder is removed when the context ends.

    Raises:
        ModelError: the model is missing or incomplete; a link points to a file outside of the model's folder; or a field of
            a JSON file is invalid, or could change which code or files are used. If a ModelError is raised inside the
            context, its message contains the name of the model instead of the path of the temporary folder.
    """
    if name.endswith(".gguf"):
        path = model_path(name)
        if not path.is_file():
            raise ModelError(f"{name}: no such file; give a .gguf file, a model folder, or a hub model")
        check_gguf(name, path)
        with _temporary_folder(name) as folder:
            _link(path.resolve(), folder / path.name)
            yield CheckedModel(name, path.parent, folder, gguf=path.name)
        return
    found = model_folder(name, revision)
    has_weights = downloads or found.commit is None
    if has_weights:
        download_weights(found)
        _check_complete(found)
    with _temporary_folder(name) as folder:
        _copy_settings(found, folder)
        if has_weights:
            _link_weights(found, folder)
        yield CheckedModel(name, found.path, folder, commit=found.commit)


@contextlib.contextmanager
def checked_tokenizer(found: ModelFolder) -> Iterator[CheckedModel]:
    """Check the files of a tokenizer, and provide them in a temporary folder.

    transformers can load the tokenizer from this folder while the context is active.

    Args:
        found: The folder with the tokenizer. It need not contain a model; an example is the folder of an adapter.

    Yields:
        The checked tokenizer; its temporary folder is removed when the context ends.

    Raises:
        ModelError: a link points to a file outside of the folder `found`; or a field of a JSON file is invalid, or could change
            which code or files are used.
    """
    with _temporary_folder(found.name) as folder:
        _copy_settings(found, folder)
        yield CheckedModel(found.name, found.path, folder, commit=found.commit)


def _check_complete(found: ModelFolder) -> None:
    """Check that a folder has a config and weights, and no git-lfs pointers."""
    if found.find(CONFIG) is None:
        raise ModelError(f"{found.name}: contains no config.json; give a folder written by save_pretrained")
    first = next(iter(found.matching("*.safetensors")), None)
    if first is None:
        raise ModelError(
            f"{found.name}: contains no .safetensors file; pickled weights are not read: convert them with save_pretrained"
        )
    if found.find(SINGLE) is None and found.find(INDEX) is None:
        raise ModelError(
            f"{found.name}: contains {first}, but neither {SINGLE} nor the index {INDEX}; download the model again"
        )
    check_pointers(found.name, *found.path.iterdir())


@contextlib.contextmanager
def _temporary_folder(name: str) -> Iterator[Path]:
    """Context with a temporary folder that only this user can read.

    If a ModelError is raised inside the context, `name` replaces the path of the folder in its message.
    """
    with contextlib.ExitStack() as stack:
        with reading(f"{name}:", "free space in the folder for temporary files, or set TMPDIR", failure="cannot be checked"):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="redistill-", ignore_cleanup_errors=True))
        try:
            yield Path(folder)
        except ModelError as error:
            if folder not in str(error):
                raise
            raise type(error)(str(error).replace(folder, name)) from error


def _copy_settings(found: ModelFolder, folder: Path) -> None:
    """Write the JSON files with their allowed fields, and link the tokenizer's files."""
    for file, allowed in _CHECKS.items():
        path, what = found.find(file), f"{found.name}: {file}"
        if path is None:
            continue
        check_pointers(found.name, path)
        fields = json_object(what, path, _REMEDY)
        with reading(what, _REMEDY):
            (folder / file).write_text(json.dumps(allowed(what, fields)), encoding="utf-8")
    for pattern in (*VOCABULARY_FILES, *TEMPLATE_FILES):
        for file in found.matching(pattern):
            path = found.find(file)
            if path is not None:
                check_pointers(found.name, path)
                _link(path, folder / file)


def _link_weights(found: ModelFolder, folder: Path) -> None:
    """Create links to the weight files, and write their index.

    The index contains only the names of tensors and files.
    """
    for file in weight_names(found):
        path = found.find(file)
        if path is None:  # the headers of the files are read next, and a missing file is reported then
            continue
        if file == INDEX:
            index = {"metadata": {}, "weight_map": shards(found.name, path)}
            (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
        else:
            _link(path, folder / file)


def _link(path: Path, link: Path) -> None:
    """Create a symbolic link to a file, or a hard link if that fails.

    On Windows, symbolic links need a privilege.
    """
    link.parent.mkdir(exist_ok=True)
    try:
        link.symlink_to(path.absolute())
    except OSError:
        os.link(path, link)
