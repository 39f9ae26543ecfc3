"""Checks of a model's config.json before memory for the model is allocated.

A config is untrusted input, and its numbers determine how much memory a model needs. Therefore the fields of the JSON file
are checked first. Then the model is built on the device "meta", which allocates no memory, with a limit on the number of
modules and parameters. The tensors of this model are compared with the headers of the weight files.
"""

import contextlib
import copy
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import cast

import torch
from torch import nn
from torch.nn.modules import module as registration
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from redistill.errors import ModelError, WeightsError
from redistill.interfaces import CausalModel, ModelSettings
from redistill.models.reading import reading
from redistill.models.weight_files import Stored
from redistill.storage.redaction import plain_line

MAX_LAYERS = 10_000
MAX_COUNT = 1_000_000
_FIX = "fix it, or download the model again"
_OTHER = "download the model again, or use the config.json that belongs to its weights"
# Fields that must be positive if a config sets them. Each family has some of these fields.
_POSITIVE = {
    *("vocab_size", "hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "n_positions"),
}
_TEXT_MODELS = ("text_config", "language_config", "llm_config", "thinker_config", "decoder")


def read_settings(name: str, source: Mapping[str, str]) -> ModelSettings:
    """Read, check and return the config of a model.

    Args:
        name: Name of the model for error messages.
        source: Arguments for `from_pretrained`.

    Raises:
        ModelError: the config is missing or damaged, or one of its fields has the wrong type or is out of range.
    """
    file = source.get("gguf_file", "config.json")
    what = name if name.endswith(file) else f"{name}: {file}"
    remedy = "check the name, the network, and that the file is complete and not damaged"
    with reading(what, remedy):
        fields, _ = PretrainedConfig.get_config_dict(**source)
    if not isinstance(fields, dict) or not fields:
        raise ModelError(f"{what} must be a JSON object with the fields of the model; {_FIX}")
    check_fields(what, fields)
    with _naming_field(what, fields):
        if "gguf_file" in source:  # reading the file again would take seconds
            settings = CONFIG_MAPPING[str(fields.get("model_type", ""))].from_dict(fields)
        else:
            settings = AutoConfig.from_pretrained(**source, trust_remote_code=False)
    settings.name_or_path = name  # some hub names decide which tokenizer class transformers uses
    return cast(ModelSettings, settings)


def check_fields(what: str, fields: Mapping[str, object], *, sizes: bool = True) -> None:
    """Check fields that determine sizes, or that Transformers does not check.

    Args:
        what: Names of the model and the file for error messages.
        fields: All fields of the file, or the fields of one object in it.
        sizes: Whether sizes, such as "hidden_size", must be positive.  True for the settings of a language model, and False
            for other objects, such as the settings of a vision model.

    Raises:
        ModelError: a field has the wrong type or is out of range.
    """

    def refuse(field: str, requirement: str) -> None:
        raise ModelError(f"{what}: {plain_line(field)[:60]} = {repr(fields[field])[:60]}: {requirement}; {_FIX}")

    for field, value in fields.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        varies = value is None or isinstance(value, list)  # a list has a value for each layer
        if sizes and field in _POSITIVE and not varies and not (whole and 1 <= cast(int, value) < 2**40):
            refuse(field, "must be a positive integer")
        most = MAX_LAYERS if "layer" in field else MAX_COUNT if field.startswith(("num_", "n_")) else None
        if most is not None and whole and cast(int, value) > most:  # Transformers makes lists of these lengths
            refuse(field, f"must be at most {most:,}")
        if isinstance(value, float) and math.isnan(value):
            refuse(field, "must be a number")
        if field in ("rope_theta", "rope_scaling", "rope_parameters"):
            _check_rope(what, field, value)
        if isinstance(value, Mapping):
            check_fields(f"{what}: {plain_line(field)[:60]}", value, sizes=field in _TEXT_MODELS)
        if field == "quantization_config" and not (value is None or isinstance(value, Mapping)):
            refuse(field, "must be an object")
        if field == "model_type" and not isinstance(value, str):
            refuse(field, "must be the name of a model family")
    heads, groups = fields.get("num_attention_heads"), fields.get("num_key_value_heads")
    if sizes and isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        refuse("num_key_value_heads", f"must divide num_attention_heads = {heads}")


def _check_rope(what: str, field: str, value: object) -> None:
    """Check the settings of rotary embeddings.

    Transformers only logs a warning if a setting is invalid.
    """
    if isinstance(value, Mapping):
        kind = value.get("rope_type", value.get("type"))
        if kind is not None and (not isinstance(kind, str) or kind not in {*ROPE_INIT_FUNCTIONS, "default", "mrope"}):
            raise ModelError(
                f"{what}: {field}.rope_type = {str(kind)[:60]!r}: must be one of {', '.join(sorted(ROPE_INIT_FUNCTIONS))}; "
                f"{_FIX}"
            )
        for key, inner in value.items():
            if key in ("rope_theta", "factor") or isinstance(inner, Mapping):
                _check_rope(what, f"{field}.{key}", inner)
    elif field.rpartition(".")[2] in ("rope_theta", "factor") and value is not None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < cast(float, value) < math.inf:
            raise ModelError(f"{what}: {field} = {str(value)[:60]}: must be a positive number; {_FIX}")


def check_fits(name: str, settings: ModelSettings, tensors: Mapping[str, Stored]) -> None:
    """Reject a config that does not match the stored weights.

    The model is built on the device "meta", without memory for its weights. This check accepts weights that are missing in
    the files, because the loader later reports their names.

    Args:
        name: Name of the model for error messages.
        settings: The config of the model; it is not changed.
        tensors: The stored weights by name, from the headers of the files.

    Raises:
        ModelError: the model cannot be built; it is much larger than the stored weights; or a tensor of the model and the
            stored tensor with the same name differ in size or type.
    """
    quantised = getattr(settings, "quantization_config", None) is not None
    stored = sum(tensor.size for tensor in tensors.values())
    # A quantised element stores up to 16 weights.
    comparable = {} if quantised else tensors
    check_size(name, settings, parts=len(tensors), weights=(16 if quantised else 1) * stored, tensors=comparable)


def check_size(
    name: str, settings: ModelSettings, *, parts: int, weights: int, tensors: Mapping[str, Stored] = MappingProxyType({})
) -> None:
    """Reject a config whose model does not match the weights in the files.

    This check accepts some weights that are missing in the files, because the loader later reports their names.

    Args:
        name: Name of the model for error messages.
        settings: The config of the model; it is not changed.
        parts: Number of tensors in the files.
        weights: Number of weights in the files, or an upper bound of this number.
        tensors: Stored tensors whose sizes and types are compared with those of the model.

    Raises:
        ModelError: the model cannot be built; a tensor of the model and the stored tensor with the same name differ in size or
            type; or the model has more than 2 * `weights` + 1,000,000 weights.
    """
    model = build_without_memory(name, settings, 16 * parts + 4000)
    expected = model.state_dict() if tensors else {}
    for key in sorted(expected.keys() & tensors.keys()):
        _check_tensor(name, key, expected[key], tensors[key])
    described = sum(parameter.numel() for parameter in model.parameters())
    described += sum(buffer.numel() for buffer in model.buffers())
    if described > 2 * weights + 1_000_000:
        raise WeightsError(f"{name}: its config describes {described:,} weights, but its files contain {weights:,}; {_OTHER}")


def _check_tensor(name: str, key: str, expected: torch.Tensor, found: Stored) -> None:
    if expected.numel() != found.size:
        shapes = " x ".join(map(str, found.shape)) or "one number", " x ".join(map(str, expected.shape)) or "one number"
        raise WeightsError(f"{name}: {key} is {shapes[0]} in {found.file}, but {shapes[1]} according to config.json; {_OTHER}")
    if expected.is_floating_point() and not found.is_float:
        raise ModelError(
            f"{name}: {key} has the type {found.dtype} in {found.file}: must be a floating point type, or "
            "config.json must contain a quantization_config; save the model again with save_pretrained"
        )


def build_without_memory(name: str, settings: ModelSettings, parts: int) -> CausalModel:
    """Build the model of a config on the device "meta".

    No memory is allocated for its weights.

    Args:
        name: Name of the model for error messages.
        settings: The config of the model; it is not changed.
        parts: Maximum number of modules and parameters together, which limits time and memory.

    Raises:
        ModelError: the config is invalid, or the model has more modules and parameters than `parts`.
    """
    config, count = copy.deepcopy(settings), 0
    config._attn_implementation = config._experts_implementation = None  # no kernels are downloaded

    def counted(parent: nn.Module, key: str, part: object) -> None:
        nonlocal count
        count += 1
        if count > parts:
            raise ModelError(
                f"{name}: config.json describes many more modules and parameters than its files have tensors; {_OTHER}"
            )

    with contextlib.ExitStack() as stack:
        stack.enter_context(_naming_field(f"{name}: config.json", vars(settings)))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.device("meta"))
        for register in (
            registration.register_module_module_registration_hook,
            registration.register_module_parameter_registration_hook,
        ):
            stack.callback(register(counted).remove)
        return cast(CausalModel, AutoModelForCausalLM.from_config(config))


@contextlib.contextmanager
def _naming_field(what: str, fields: Mapping[str, object]) -> Iterator[None]:
    """Context that converts exceptions to one-line ModelErrors that name a field.

    The message names the field whose value the exception quotes, such as the name of an unknown activation function. If
    there is no such field, the message names only `what`.
    """

    def field() -> str:
        quoted = next((field for field, value in fields.items() if isinstance(value, str) and value and value in said), None)
        return what if quoted is None else f"{what}: {plain_line(quoted)[:60]} = {repr(fields[quoted])[:60]}"

    said: tuple[str, ...] = ()
    with reading(field, _FIX):
        try:
            yield
        except Exception as error:
            said = tuple(re.findall(r"'([^']*)'", str(error)))
            raise
