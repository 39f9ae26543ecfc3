"""Hashes of the files that a model is loaded from.

They identify the model: two models with equal hashes compute the same.  Files that `load_model` does not read, and fields of
config.json that do not affect the computation, have no effect on the hashes.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from redistill.errors import DataError, ModelError
from redistill.models.adapters import find_file
from redistill.models.load import ModelConfig, base_and_adapter
from redistill.models.weight_files import weight_paths
from redistill.records import Json
from redistill.storage import files

CONFIG, TOKENIZER_CONFIG, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template"
_CONFIGS = (CONFIG, "generation_config.json")  # the second has the end tokens
_RECORDED = {"_name_or_path", "transformers_version"}  # fields that record how a file was written
_TOKENIZER_FILES = re.compile(
    r"(added_tokens|bpe|merges|sentencepiece|special_tokens_map|spiece|spm|tekken|tiktoken|tokenizer|vocab)[\w.-]*"
)
_TEMPLATE_FILES = (f"{TEMPLATE}.jinja", "additional_chat_templates/*.jinja")


def model_hashes(config: ModelConfig, file_hash: Callable[[Path], str]) -> dict[str, str]:
    """Hash the files from which `load_model(config)` reads model and tokenizer.

    The files of a hub model are those in the local copy of the hub; nothing is downloaded.

    Args:
        config: The model, and the adapter that is merged into it.
        file_hash: Returns the SHA-256 of a file.

    Returns:
        A SHA-256 for each of "weights", "adapter", "config", "tokenizer" and "chat template".  The weights of an adapter's base
        are "weights".  The weights of a GGUF file include everything else.

    Raises:
        ModelError: a file of the model has been removed, or cannot be read.
    """
    base, adapter = base_and_adapter(config)
    try:
        parts: dict[str, Json] = {"weights": {}, "adapter": {}, "config": {}, "tokenizer": {}, "chat template": {}}
        if base.model.endswith(".gguf"):
            parts["weights"] = file_hash(Path(base.model).expanduser())
        else:
            folder = _folder(base)
            own = None if adapter is None else adapter.tokenizer_folder(config.model)
            parts |= _folder_parts(base.model, folder, file_hash) | _tokenizer_parts(own or folder, file_hash)
        if adapter is not None:
            parts["adapter"] = {"settings": adapter.settings, "weights": file_hash(adapter.weights)}
    except OSError as error:
        raise ModelError(f"{config.model}: cannot be read again ({error.strerror}); restore its files") from error
    return {name: _hash(part) for name, part in parts.items()}


def _folder(config: ModelConfig) -> Path:
    """Return the folder of a model; for a hub model, the snapshot that was loaded last."""
    found = find_file(config.model, CONFIG, config.revision, downloads=False)
    if found is None:
        raise ModelError(f"{config.model}: its {CONFIG} was removed after the model was loaded; restore it")
    return found.parent


def _folder_parts(name: str, folder: Path, file_hash: Callable[[Path], str]) -> dict[str, Json]:
    """Describe the weights and the config of the model in a folder."""
    configs = {file: _fields(folder / file) for file in _CONFIGS if (folder / file).is_file()}
    settings = configs[CONFIG]
    explicit = settings.get("transformers_weights") if isinstance(settings, Mapping) else None
    paths = weight_paths(name, folder, explicit if isinstance(explicit, str) else None)
    weights: dict[str, Json] = {path.name: file_hash(path) for path in paths}
    # Transformers loads a hub model without safetensors files from a converted copy, which belongs to the same commit.
    return {"weights": weights or {"commit": folder.name}, "config": configs}


def _tokenizer_parts(folder: Path, file_hash: Callable[[Path], str]) -> dict[str, Json]:
    """Describe the tokenizer in a folder, without and with its chat templates."""
    paths = sorted(path for path in folder.iterdir() if _TOKENIZER_FILES.fullmatch(path.name) and path.is_file())
    tokenizer: dict[str, Json] = {path.name: file_hash(path) for path in paths if path.name != TOKENIZER_CONFIG}
    template: dict[str, Json] = {path.name: file_hash(path) for each in _TEMPLATE_FILES for path in sorted(folder.glob(each))}
    if (folder / TOKENIZER_CONFIG).is_file():
        fields = _fields(folder / TOKENIZER_CONFIG)
        if isinstance(fields, dict):
            template[TOKENIZER_CONFIG] = fields.pop(TEMPLATE, None)
        tokenizer[TOKENIZER_CONFIG] = fields
    return {"tokenizer": tokenizer, "chat template": template}


def _fields(path: Path) -> Json:
    """Read the fields of a JSON file that affect the model; return its hash if it is not JSON."""
    try:
        found = files.read_json(path)
    except DataError:
        return files.digest(path)
    return {name: value for name, value in found.items() if name not in _RECORDED} if isinstance(found, dict) else str(found)


def _hash(part: Json) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()
