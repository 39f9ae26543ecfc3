"""Folders of models: local folders, and cached snapshots of hub models.

A snapshot is the folder of one commit in the cache of the hub. Only files that are read are downloaded: no code, and no weights
in formats that contain code.

A link in a folder may point to another file in the folder. A link in a snapshot may also point to a downloaded file of the
same model in the cache. All other links are rejected. Otherwise, a link in a tokenizer's folder could point to a private
file of the user, which would be copied into each exported student.

A process resolves a branch or tag of a hub model to a commit only once. Config, tokenizer, weights and hashes of a model are
therefore of the same commit, even if the branch moves while the process runs.
"""

import fnmatch
import glob
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from redistill.errors import ModelError
from redistill.models.reading import reading
from redistill.models.weight_files import INDEX, SINGLE, check_pointers, shards
from redistill.storage.hub import HUB_NAME, is_local, unreachable
from redistill.storage.paths import expanded, unusable
from redistill.storage.redaction import plain_line

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
TOKEN_FILES = ("special_tokens_map.json", "added_tokens.json")
JSON_FILES = (CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, *TOKEN_FILES)
"""The JSON files whose fields are checked by `allowed_fields`."""

TEMPLATE_FILES = ("chat_template.jinja", "additional_chat_templates/*.jinja")
"""Patterns of the files with chat templates, which are read verbatim."""

VOCABULARY_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "dict.txt", "bpe.codes", "emoji.json", "normalizer.json"),
    *("tokenizer.model", "tokenizer.model.v*", "tiktoken.model", "spiece.model", "spm.model", "spm_char.model", "tekken.json"),
    *("sentencepiece.model", "sentencepiece.bpe.model", "*.tiktoken"),
)
"""Patterns of the files with the vocabulary of a tokenizer, which are read verbatim."""

EXPORT = "redistill.json"
"""Name of a file in the folder of an exported student.  The file describes how prompts were tokenised in training."""

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WITH_REVISION = re.compile(r"([\w.-]+(?:/[\w.-]+)?)@([\w./-]+)")
_HASH = re.compile(r"[0-9a-f]{40,64}")
_SMALL_FILES = (*JSON_FILES, *VOCABULARY_FILES, *TEMPLATE_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXPORT)


@dataclass(frozen=True)
class ModelFolder:
    """The local folder of a model.

    Args:
        name: Folder or hub name, as given by the user; used in error messages.
        path: The folder.
        commit: Commit of the hub model that was downloaded to the folder; None for a local folder.
    """

    name: str
    path: Path
    commit: str | None = None

    def find(self, file: str) -> Path | None:
        """Return the path of a file; None if the file does not exist or is a folder.

        Args:
            file: Path of the file relative to the folder.

        Raises:
            ModelError: the path is a link to a file outside of the folder, or is neither a file nor a folder.
        """
        path = self.path / file
        if not (path.is_symlink() or path.exists()):
            return None
        with reading(f"{self.name}: {file}", "remove the link", failure="cannot be followed"):
            target, root = path.resolve(strict=True), self.path.resolve()
        is_cached = root.parent.name == "snapshots" and _HASH.fullmatch(target.name) is not None
        if not (target.is_relative_to(root) or (is_cached and target.parent == root.parent.parent / "blobs")):
            raise ModelError(
                f"{self.name}: {file} is a link to a file outside of the folder; replace the link by a copy of the file, or do "
                "not use this model"
            )
        if target.is_dir():
            return None
        if not target.is_file():
            raise ModelError(f"{self.name}: {file} is not a regular file; replace it by a file, or do not use this model")
        return path

    def matching(self, pattern: str) -> list[str]:
        """Return the paths of the files and links that match a pattern.

        The paths are relative to the folder and in alphabetical order.

        Args:
            pattern: Path relative to the folder, whose last part may have wildcards.
        """
        parent = (self.path / pattern).parent
        names = [path.name for path in parent.iterdir()] if parent.is_dir() else []
        return sorted(str(Path(pattern).parent / name) for name in fnmatch.filter(names, Path(pattern).name))


# Snapshots that this process has opened, by the folder of the hub's cache, the hub name and the revision.
_resolved: dict[tuple[str, str, str], ModelFolder] = {}


def model_folder(name: str, revision: str | None) -> ModelFolder:
    """Find the folder of a model.

    For a model on the hub, the function downloads the configs, the tokenizer and the adapter (if any). It does not download
    the weights of the model. With `HF_HUB_OFFLINE=1`, or if the hub does not answer within 10 s, files that were downloaded
    before are used. If `is_local` recognises `name` as a path, the hub is not used: anyone could register a model with this
    name on the hub.

    Args:
        name: A local folder, or a hub name.
        revision: Branch, tag or commit of a hub model; None uses its main branch.

    Raises:
        ModelError: the folder, repository or revision does not exist; `name` is neither a valid path nor a valid hub name; or
            the hub cannot be reached, and no files of the model were downloaded before.
    """
    path = model_path(name)
    if path.is_dir():
        return ModelFolder(name, path)
    first = name.partition("/")[0]
    if is_local(name) and HUB_NAME.fullmatch(name):
        raise ModelError(
            f"{name}: no such folder in the folder {first}; give a model folder. If this is a hub model, the folder {first} "
            f"hides it: to load it, run from a folder that does not contain {first}"
        )
    if not is_local(name) and (match := _WITH_REVISION.fullmatch(name)):
        remedy = f"use {match[1]}, and set revision (--revision of evaluate) to {match[2]}"
        raise ModelError(f"{name}: a hub name contains no revision; {remedy}")
    if is_local(name) or path.exists() or name.endswith("/") or name.count("/") > 1:
        raise ModelError(f"{name}: no such folder; give a model folder, a .gguf file, or a hub model as owner/name")
    key = (str(constants.HF_HUB_CACHE), name, revision or "main")
    if key not in _resolved or not _resolved[key].path.is_dir():
        if (fault := unreachable()) and not _has_copy(name, revision or "main"):
            raise ModelError(
                f"{name}: cannot be looked up on the hub ({fault}), and this machine has no copy of it; check the name and the "
                "network, or give a model folder"
            )
        _resolved[key] = _downloaded(name, revision or "main", _SMALL_FILES)
    return _resolved[key]


def model_path(name: str) -> Path:
    """Return the path of a model that is a local file or folder.

    The path need not exist. "~" stands for the home folder.

    Args:
        name: The name of the model, as given by the user.

    Raises:
        ModelError: no path can have this name; for example, a part of it has more than 255 bytes.
    """
    if (fault := unusable(name)) is not None:
        raise ModelError(f"{plain_line(name)[:60]}: {fault}")
    return expanded(name)


def _has_copy(name: str, revision: str) -> bool:
    """Return whether this machine has a copy of a hub model, which may be incomplete."""
    try:
        snapshot_download(name, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def weight_names(folder: ModelFolder) -> list[str]:
    """Return the names of the files that contain a model's weights.

    A model has one weight file, or several weight files and an index, which is a JSON file that lists the weight files.

    Returns:
        For a single weight file, its name. For several weight files, the name of the index, and then the names that the
        index lists, even if such a file is missing. [] if the folder has neither a single weight file nor an index.

    Raises:
        ModelError: the index is damaged, lists files outside of its folder, or is a git-lfs pointer.
    """
    if folder.find(SINGLE) is not None:
        return [SINGLE]
    index = folder.find(INDEX)
    if index is None:
        return []
    check_pointers(folder.name, index)
    return [INDEX, *sorted(set(shards(folder.name, index).values()))]


def download_weights(folder: ModelFolder) -> None:
    """Download the safetensors files of a hub model.

    Nothing is done for a local folder.

    Raises:
        ModelError: the hub cannot be reached, or the index of the files is damaged.
    """
    if folder.commit is None:
        return
    _downloaded(folder.name, folder.commit, (SINGLE, INDEX))
    files = weight_names(folder)[1:]
    if files:
        _downloaded(folder.name, folder.commit, tuple(map(glob.escape, files)))


def _downloaded(name: str, revision: str, patterns: tuple[str, ...]) -> ModelFolder:
    """Download the files of a hub repository that match the patterns."""
    with reading(f"{name}:", "check the name, the revision, and the network", failure="cannot be found"):
        try:
            path = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        except LocalEntryNotFoundError as error:
            # Without a network, a snapshot that lacks some of the files may still have those that the model needs.
            try:
                path = Path(snapshot_download(name, revision=revision, allow_patterns=[], local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from None
    return ModelFolder(name, path, path.name)
