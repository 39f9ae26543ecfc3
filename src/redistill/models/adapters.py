"""LoRA adapters as others saved them: found, read, and merged into their base.

An adapter_config.json comes from anywhere, and PEFT's own reader obeys all of it: fields there change the base, load further
files, or name a Python module to import.  So only what a plain LoRA adapter needs is read here, and anything more is refused.
"""

import dataclasses
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file

from redistill.errors import ModelError
from redistill.models.families import unwrapped

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

# What shapes the adapters; handed to PEFT as it is.
_READ = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "fan_in_fan_out",
    "use_rslora",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
)
# What has no part in the merged weights, or is checked here.
_UNUSED = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "auto_mapping",
    "init_lora_weights",
}
# Starting points that leave the base as it is; others (PiSSA, LoftQ ...) take something out of it.
_PLAIN_STARTS = (True, False, None, "gaussian")


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """An adapter that has been read and found plain.

    Args:
        name: As the user named it.
        base: Name of the model that it was trained on, and `revision` that model's; "" where the file does not say.
        settings: Arguments of `peft.LoraConfig`.
        weights: The .safetensors file.
        has_tokenizer: Whether a tokenizer lies beside it.
    """

    name: str
    base: str
    revision: str | None
    settings: dict[str, Any]
    weights: Path
    has_tokenizer: bool


def find_adapter(name: str, revision: str | None) -> Adapter | None:
    """The adapter in a folder or hub repository, or None where there is none.

    Raises:
        ModelError: it is no plain LoRA adapter, or its weights are no safetensors file.
    """
    config = find_file(name, CONFIG, revision)
    if config is None:
        return None
    weights = find_file(name, WEIGHTS, revision)
    if weights is None:
        raise ModelError(f"{name}: holds no {WEIGHTS}; pickled adapters are not read, save it again with PEFT")
    try:
        fields = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {CONFIG} is not JSON ({error}); save the adapter again") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{name}: {CONFIG} is no JSON object; save the adapter again")
    _check_plain(name, fields)
    return Adapter(
        name=name,
        base=str(fields.get("base_model_name_or_path") or ""),
        revision=fields.get("revision"),
        settings={field: fields[field] for field in _READ if field in fields},
        weights=weights,
        has_tokenizer=find_file(name, "tokenizer_config.json", revision) is not None,
    )


def merge_adapter(model: Any, adapter: Adapter) -> Any:
    """`model` with the adapter added to its weights: an ordinary model again, every weight of it trainable.

    Args:
        model: The base, not quantised; changed in place.
        adapter: What `find_adapter` gave.

    Raises:
        ModelError: the adapter does not fit the model, weight by weight.
    """
    import peft  # takes a second

    training = model.training
    try:
        weights = load_file(adapter.weights)
        settings = peft.LoraConfig(**adapter.settings, task_type="CAUSAL_LM", init_lora_weights=False)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():  # PEFT draws weights that are overwritten at once
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers by a name that is going away
            adapted = peft.get_peft_model(model, settings)
        _check_fits(adapter, adapted, weights)
        peft.set_peft_model_state_dict(adapted, weights)
        merged = adapted.merge_and_unload()
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, re.error, SafetensorError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{adapter.name}: cannot be merged into its base ({str(error).strip().splitlines()[0][:200]}); "
            "check that they belong together"
        ) from error
    merged.requires_grad_(True)
    merged.name_or_path = merged.config.name_or_path = ""  # no folder holds what it is now
    return merged.train(training)


def _check_plain(name: str, fields: dict[str, Any]) -> None:
    """Refuse what is more than low-rank matrices beside frozen weights."""
    import peft  # takes a second

    usual = {field.name: field.default for field in dataclasses.fields(peft.LoraConfig)}
    wrong = next(
        (
            field
            for field, value in fields.items()
            if field not in _UNUSED.union(_READ)
            and value
            and value != "none"
            and value != usual.get(field)
            # The default of a nested config is an object, and all its switches are off.
            and not (isinstance(value, dict) and not any(value.values()))
        ),
        None,
    )
    if fields.get("peft_type") != "LORA":
        wrong = "peft_type"
    elif fields.get("init_lora_weights", True) not in _PLAIN_STARTS:
        wrong = "init_lora_weights"
    if wrong is not None:
        raise ModelError(
            f"{name}: {CONFIG} sets {wrong} = {str(fields.get(wrong))[:60]!r}; only plain LoRA adapters are read: merge it "
            "into its base with the program that made it, and name the merged model"
        )


def _check_fits(adapter: Adapter, adapted: Any, found: dict[str, torch.Tensor]) -> None:
    """Hold the file's tensors against the ones that its settings ask for."""
    import peft

    expected = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    odd = sorted(expected.keys() ^ found.keys()) or [key for key in expected if expected[key].shape != found[key].shape]
    if odd:
        raise ModelError(
            f"{adapter.name}: {len(odd)} of its weights do not fit its base, first {odd[0]}; check base_model_name_or_path in "
            f"its {CONFIG}"
        )
    plain = unwrapped(adapted)
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    if tied and any(hasattr(layer, "lora_A") for layer in (plain.get_input_embeddings(), plain.get_output_embeddings())):
        raise ModelError(
            f"{adapter.name}: adapts an embedding that is the head as well, which cannot be merged into one matrix; "
            "train it without"
        )


def find_file(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a local folder or, fetched, of a hub repository; None where it is not there, or the hub out of reach.

    Raises:
        ModelError: there is no such repository or revision, or the name cannot be one.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path / file if (path / file).is_file() else None
    try:
        found = cached_file(
            name,
            file,
            revision=revision or "main",
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{name}: cannot be found ({said[:300]}); check the name, the revision, and the network") from error
    return None if found is None else Path(found)
