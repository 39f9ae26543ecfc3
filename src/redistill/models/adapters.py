"""Reads LoRA (low-rank) adapters, and merges them into a base model.

The adapters can come from other programs.

The file adapter_config.json is untrusted input. PEFT applies every field of the file, and a field can change the base
model, load further files, or name a Python module to import. Therefore this module reads only the fields of a plain LoRA
adapter. It rejects an adapter if any other field is not at its default.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from redistill.errors import ModelError
from redistill.interfaces import CausalModel
from redistill.models.families import unwrapped
from redistill.models.reading import json_object, reading
from redistill.models.snapshots import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TOKENIZER_CONFIG, ModelFolder, model_folder
from redistill.models.values import check_tensor
from redistill.models.weight_files import Stored, check_pointers, header
from redistill.records import Json
from redistill.storage.redaction import plain_line

# Fields that define the adapters; passed to PEFT unchanged.
_READ = {
    *("r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"),
}
# Fields that do not affect the merged weights, or that are checked here.
_UNUSED = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"),
    *("auto_mapping", "init_lora_weights"),
}
_DOWN = re.compile(r"\blora_(?:embedding_)?A\b")  # the first matrix of an adapter: rank x inputs


def _is_rank(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_bool(value: Json) -> bool:
    return isinstance(value, bool)


def _is_text(value: Json) -> bool:
    return isinstance(value, str)


def _are_names(value: Json) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(map(_is_text, value)))


def _are_layers(value: Json) -> bool:
    return all(isinstance(index, int) for index in (value if isinstance(value, list) else [value]))


_TYPES: dict[str, tuple[Callable[[Json], bool], str]] = {
    "r": (_is_rank, "a positive integer"),
    "lora_alpha": (_is_number, "a number"),
    **dict.fromkeys(("fan_in_fan_out", "use_rslora"), (_is_bool, "true or false")),
    **dict.fromkeys(("target_modules", "exclude_modules", "layers_pattern"), (_are_names, "a name or a list of names")),
    "layers_to_transform": (_are_layers, "a layer index or a list of layer indices"),
    "rank_pattern": (lambda value: isinstance(value, dict) and all(map(_is_rank, value.values())), "ranks by module"),
    "alpha_pattern": (lambda value: isinstance(value, dict) and all(map(_is_number, value.values())), "numbers by module"),
    **dict.fromkeys(("base_model_name_or_path", "revision"), (_is_text, "a text")),
}

# Values of init_lora_weights that leave the base unchanged. Others (PiSSA, LoftQ ...) subtract the adapter from the base.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian")


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """A LoRA adapter whose configuration has been read and validated.

    Args:
        name: Folder or hub name of the adapter, as given by the user.
        base: Name of the base model that the adapter was trained on; "" if the configuration does not name it.
        revision: Revision of the base model; None if the configuration does not set it.
        settings: Arguments for `peft.LoraConfig`.
        folder: The folder of the adapter.
        weights: Path of the adapter's .safetensors file.
        has_tokenizer: Whether the adapter's folder contains a tokenizer.
    """

    name: str
    base: str
    revision: str | None
    settings: dict[str, Json]
    folder: ModelFolder
    weights: Path
    has_tokenizer: bool

    def tokenizer_folder(self, model: str) -> ModelFolder | None:
        """The adapter's folder, if the tokenizer is loaded from this folder.

        This is the case if `model` is the name of the adapter, and the adapter's folder contains a tokenizer. Otherwise the
        tokenizer of the base model is loaded.

        Args:
            model: Name of the model to load, as given by the user.

        Returns:
            The folder; None if the tokenizer of the base model is loaded.
        """
        return self.folder if self.name == model and self.has_tokenizer else None


def find_adapter(name: str, revision: str | None) -> Adapter | None:
    """Read and validate the adapter in a folder or hub repository.

    The function returns None if there is no adapter.

    Raises:
        ModelError: the adapter is not a plain LoRA adapter, or its weights are not a safetensors file.
    """
    folder = model_folder(name, revision)
    config = folder.find(ADAPTER_CONFIG)
    if config is None:
        return None
    weights = folder.find(ADAPTER_WEIGHTS)
    if weights is None:
        raise ModelError(
            f"{name}: contains no {ADAPTER_WEIGHTS}; pickled adapters are not read: save the adapter again with PEFT"
        )
    check_pointers(name, config, weights)
    fields = json_object(f"{name}: {ADAPTER_CONFIG}", config, "save the adapter again")
    _check_plain(name, fields)
    _check_types(name, fields)
    _check_ranks(name, fields, header(name, weights))
    return Adapter(
        name=name,
        base=str(fields.get("base_model_name_or_path") or ""),
        revision=None if fields.get("revision") is None else str(fields["revision"]),
        settings={field: fields[field] for field in _READ if field in fields},
        folder=folder,
        weights=weights,
        has_tokenizer=folder.find(TOKENIZER_CONFIG) is not None,
    )


def merge_adapter(model: CausalModel, adapter: Adapter) -> CausalModel:
    """Merge the adapter into the weights of `model`.

    Args:
        model: The base model, which must not be quantised; it is changed in place.
        adapter: The adapter, returned by `find_adapter`.

    Returns:
        The merged model, without adapters and with every weight trainable.

    Raises:
        ModelError: names or shapes of the adapter's weights do not match the model, or the values of its weights are invalid.
    """
    import peft  # takes a second

    training = model.training
    with reading(f"{adapter.name}: {ADAPTER_WEIGHTS}", "save the adapter again"):
        weights = load_file(adapter.weights)
    for key, tensor in weights.items():
        check_tensor(adapter.name, key, tensor)
    remedy = "check that the adapter was trained on this base model"
    with reading(f"{adapter.name}:", remedy, failure="cannot be merged into its base model"):
        settings = peft.LoraConfig(**adapter.settings, task_type="CAUSAL_LM", init_lora_weights=False)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # PEFT samples weights that are overwritten below
            warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
            adapted = peft.get_peft_model(model, settings)
        _check_fits(adapter, adapted, weights)
        peft.set_peft_model_state_dict(adapted, weights)
        merged: CausalModel = adapted.merge_and_unload()
    merged.requires_grad_(True)
    merged.name_or_path = merged.config.name_or_path = ""  # the merged model is not saved in any folder
    return merged.train(training)


def _check_plain(name: str, fields: dict[str, Json]) -> None:
    """Reject a config that sets an option beyond plain LoRA.

    Plain LoRA only adds low-rank matrices to weights of the base model.
    """
    import peft  # takes a second

    usual = {field.name: field.default for field in dataclasses.fields(peft.LoraConfig)}
    # The default of a nested config is an object with every option off.
    is_set = {field: any(value.values()) if isinstance(value, dict) else bool(value) for field, value in fields.items()}
    other = [field for field in fields if is_set[field] and field not in _READ | _UNUSED]
    wrong = next((field for field in other if fields[field] not in ("none", usual.get(field))), None)
    if fields.get("peft_type") != "LORA":
        wrong = "peft_type"
    elif fields.get("init_lora_weights", True) not in _PLAIN_INITIALISATIONS:
        wrong = "init_lora_weights"
    if wrong is not None:
        shown = f"{plain_line(wrong)[:60]} = {str(fields.get(wrong))[:60]!r}"
        raise ModelError(
            f"{name}: {ADAPTER_CONFIG} sets {shown}; only plain LoRA adapters "
            "are supported: merge the adapter into its base model with the program that created it, and load the merged model"
        )


def _check_types(name: str, fields: Mapping[str, Json]) -> None:
    """Reject config fields of the wrong type.

    PEFT itself checks the types of only a few fields.
    """
    for field, (allowed, what) in _TYPES.items():
        value = fields.get(field)
        if value is not None and not allowed(value):
            raise ModelError(f"{name}: {ADAPTER_CONFIG}: {field} = {str(value)[:60]!r}: must be {what}; save the adapter again")


def _check_ranks(name: str, fields: Mapping[str, Json], tensors: Mapping[str, Stored]) -> None:
    """Reject a config with a rank larger than the rank of the stored weights.

    PEFT would allocate matrices of the rank in the config, however large it is.
    """
    stored = max((tensor.shape[0] for key, tensor in tensors.items() if _DOWN.search(key) and tensor.shape), default=0)
    if not stored:
        raise ModelError(f"{name}: {ADAPTER_WEIGHTS} contains no matrix lora_A; save the adapter again")
    pattern = fields.get("rank_pattern")
    ranks = {"r": fields.get("r", 8), **(pattern if isinstance(pattern, dict) else {})}
    for field, rank in ranks.items():
        if isinstance(rank, int) and rank > stored:
            raise ModelError(
                f"{name}: {ADAPTER_CONFIG}: {field} = {rank}: must be at most {stored}, the rank of its weights; "
                "save the adapter again"
            )


def _check_fits(adapter: Adapter, adapted: CausalModel, found: dict[str, torch.Tensor]) -> None:
    """Reject an adapter whose tensors do not match its config and the base model.

    Names and shapes of the tensors are compared. An adapter of an embedding that is tied to the LM head is also rejected.
    """
    import peft

    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT saves copies of embeddings and head that were adapted or resized, and loads them with the adapter.
    copies = peft.get_peft_model_state_dict(adapted, save_embedding_layers=True)
    for key in sorted((copies.keys() - expected.keys()) & found.keys()):
        if copies[key].shape != found[key].shape:
            raise ModelError(
                f"{adapter.name}: was saved with resized embeddings: {key} has {found[key].shape[0]} rows in the adapter, and "
                f"{copies[key].shape[0]} in the base model; resize the base model to {found[key].shape[0]} rows "
                "(resize_token_embeddings), merge the adapter into it with PEFT, and load the merged model"
            )
        expected[key] = copies[key]
    strange = sorted(expected.keys() ^ found.keys())
    if strange:
        lacks = "is missing in the adapter" if strange[0] in expected else "does not exist in the base model"
        raise ModelError(
            f"{adapter.name}: {len(strange)} weights do not match the base model; the first, {strange[0]}, {lacks}; check "
            f"base_model_name_or_path and target_modules in its {ADAPTER_CONFIG}"
        )
    odd = sorted(key for key in expected if expected[key].shape != found[key].shape)
    if odd:
        shapes = (" x ".join(map(str, tensors[odd[0]].shape)) for tensors in (found, expected))
        raise ModelError(
            f"{adapter.name}: {len(odd)} weights do not match the base model; the first, {odd[0]}, has the shape "
            f"{next(shapes)}, but {next(shapes)} is expected; check r and base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    layers = unwrapped(adapted).get_input_embeddings(), unwrapped(adapted).get_output_embeddings()
    if layers[0].weight is layers[1].weight and any(hasattr(layer, "lora_A") for layer in layers):
        raise ModelError(
            f"{adapter.name}: adapts an embedding that is tied to the LM head, so the adapter cannot be merged; "
            "train an adapter without this embedding"
        )
