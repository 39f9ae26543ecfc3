"""Hashes of the files that a model is loaded from.

Models with equal hashes compute the same results.  The hashes do not depend on files that `load_model` does not read, or on
fields of config.json that do not affect the computation.  The hashed files are the original files of the model, not the
temporary files that `checked_model` creates.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from redistill.errors import ModelError
from redistill.models.load import ModelConfig, base_and_adapter
from redistill.models.reading import json_object
from redistill.models.snapshots import (
    CONFIG,
    GENERATION_CONFIG,
    TEMPLATE_FILES,
    TOKEN_FILES,
    TOKENIZER_CONFIG,
    VOCABULARY_FILES,
    ModelFolder,
    model_folder,
    weight_names,
)
from redistill.models.weight_files import SINGLE
from redistill.records import Json
from redistill.storage.paths import expanded

TEMPLATE = "chat_template"
_CONFIGS = (CONFIG, GENERATION_CONFIG)  # the second has the end tokens
_TOKENIZER_FILES = (*VOCABULARY_FILES, *TOKEN_FILES)
_RECORDED = {"_name_or_path", "transformers_version"}  # fields that record how a file was written
_RESTORE = "restore its files"


def model_hashes(config: ModelConfig, file_hash: Callable[[Path], str]) -> dict[str, str]:
    """Hash the files from which `load_model(config)` reads model and tokenizer.

    For a hub model, the files of the snapshot that this process has loaded are hashed.

    Args:
        config: The model, and the adapter that is merged into it.
        file_hash: Returns the SHA-256 of a file.

    Returns:
        A SHA-256 for each of "weights", "adapter", "config", "tokenizer" and "chat template".  If an adapter is merged,
        "weights" is the hash of the base model's weights.  For a GGUF file, "weights" is the hash of the whole file, which also
        contains the config and the tokenizer; the hashes of "config", "tokenizer" and "chat template" are then constants.

    Raises:
        ModelError: a file of the model has been removed, or cannot be read.
    """
    base, adapter = base_and_adapter(config)
    try:
        parts: dict[str, Json] = {"weights": {}, "adapter": {}, "config": {}, "tokenizer": {}, "chat template": {}}
        if base.model.endswith(".gguf"):
            parts["weights"] = file_hash(expanded(base.model))
        else:
            folder = model_folder(base.model, base.revision)
            own = None if adapter is None else adapter.tokenizer_folder(config.model)
            parts |= _folder_parts(folder, file_hash) | _tokenizer_parts(own or folder, file_hash)
        if adapter is not None:
            parts["adapter"] = {"settings": adapter.settings, "weights": file_hash(adapter.weights)}
    except OSError as error:
        raise ModelError(f"{config.model}: was read before, but cannot be read now ({error.strerror}); {_RESTORE}") from error
    return {name: _hash(part) for name, part in parts.items()}


def _folder_parts(folder: ModelFolder, file_hash: Callable[[Path], str]) -> dict[str, Json]:
    """Return the values from which the hashes of a model in a folder are computed.

    These values are the hashes of the weight files ("weights") and the fields of the configs ("config").
    """
    weights = weight_names(folder) or [SINGLE]
    removed = next((file for file in (CONFIG, *weights) if folder.find(file) is None), None)
    if removed is not None:
        raise ModelError(f"{folder.name}: its {removed} was removed after the model was loaded; restore it")
    configs = {file: _fields(folder, file) for file in _CONFIGS}
    return {
        "weights": _hashes(folder, weights, file_hash),
        "config": {file: fields for file, fields in configs.items() if fields is not None},
    }


def _tokenizer_parts(folder: ModelFolder, file_hash: Callable[[Path], str]) -> dict[str, Json]:
    """Return the values from which the hashes of a tokenizer in a folder are computed.

    The result has two entries: "tokenizer" and "chat template".  Each contains hashes of files, and fields of
    tokenizer_config.json.
    """
    tokenizer, template = (
        _hashes(folder, [file for pattern in patterns for file in folder.matching(pattern)], file_hash)
        for patterns in (_TOKENIZER_FILES, TEMPLATE_FILES)
    )
    fields = _fields(folder, TOKENIZER_CONFIG)
    if fields is not None:
        template[TOKENIZER_CONFIG] = fields.pop(TEMPLATE, None)
        tokenizer[TOKENIZER_CONFIG] = fields
    return {"tokenizer": tokenizer, "chat template": template}


def _hashes(folder: ModelFolder, names: Sequence[str], file_hash: Callable[[Path], str]) -> dict[str, Json]:
    paths = {name: folder.find(name) for name in names}
    return {name: file_hash(path) for name, path in paths.items() if path is not None}


def _fields(folder: ModelFolder, file: str) -> dict[str, Json] | None:
    """Return the fields of a JSON file that affect the model; None without the file."""
    path = folder.find(file)
    if path is None:
        return None
    fields = json_object(f"{folder.name}: {file}", path, _RESTORE)
    return {name: value for name, value in fields.items() if name not in _RECORDED}


def _hash(part: Json) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
