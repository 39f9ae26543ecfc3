"""Allow-lists for the fields of a model's JSON files.

The files of a model are untrusted input, and transformers applies every field in them. A field can replace a method of a
class. It can also name a class to create, a kernel to download, or another file to read. Therefore only the fields that
this module returns are passed to transformers. Fields that no code of the model's family reads are removed. A field that
could change which code runs, or which files are read, is removed or raises an error.
"""

import functools
import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    cache_utils,
    masking_utils,
    modeling_rope_utils,
)

from redistill.errors import ModelError
from redistill.records import Json
from redistill.storage.redaction import plain_line

Fields = dict[str, Json]

_FIX = "fix it, or do not use this model"
# Fields of config.json that transformers reads for every family, or that a family may have without declaring them.
_COMMON = {
    *("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "tokenizer_class", "model_name"),
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "layer_types"),
    *("max_position_embeddings", "initializer_range", "attention_dropout", "hidden_dropout", "sliding_window", "head_dim"),
    *("tie_word_embeddings", "is_encoder_decoder", "is_decoder", "add_cross_attention", "use_cache", "is_causal"),
    *(
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "num_labels",
        "id2label",
        "label2id",
        "chunk_size_feed_forward",
    ),
    *("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "per_layer_config", "quantization_config"),
}
# Fields that choose code, kernels, or files. They are never passed on, whatever family declares them.
_DROPPED = {
    *("auto_map", "attn_implementation", "experts_implementation", "output_attentions", "name_or_path"),
    *("configuration_files", "custom_pipelines", "distributed_config", "fusion_config", "trust_remote_code"),
    # Options of timm, with which a vision encoder downloads or unpickles weights.
    *("backbone", "use_timm_backbone", "use_pretrained_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"),
    *("checkpoint_path", "cache_dir"),
}
_REJECTED = {
    *("attribute_map", "sub_configs", "sub_configs_defaults", "extra_files", "extra_config_files", "transformers_weights"),
}
_SHARED_SOURCES = (cache_utils, masking_utils, modeling_rope_utils)
_QUANTISATIONS = ("awq", "bitsandbytes", "compressed-tensors", "fp8", "gptq", "mxfp4")
_DEQUANTISED = ("fp8", "mxfp4")  # transformers downloads kernels for these, unless the weights are dequantised
_GENERATION_DROPPED = {"cache_config", "compile_config", "transformers_version"}
_TOKENIZER = {
    *("model_max_length", "max_len", "padding_side", "truncation_side", "model_input_names", "chat_template"),
    *("clean_up_tokenization_spaces", "split_special_tokens", "spaces_between_special_tokens", "fix_mistral_regex"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "use_default_system_prompt", "chat_control_tokens"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "errors", "trim_offsets", "unk_id", "response_template"),
    *("token_type_ids_pattern", "token_type_ids_include_special_tokens", "special_tokens_pattern", "sp_model_kwargs"),
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
}
# Parameters of tokenizer classes that name files, contain what is read from files, or are options of other programs.
_TOKENIZER_DROPPED = {
    *("vocab", "merges", "tokenizer_object", "args", "kwargs", "self", "init_inputs", "trust_remote_code"),
    *("mecab_dic", "mecab_option", "phonemizer_backend", "phonemizer_lang"),
}
_TOKEN = {"__type", "content", "lstrip", "rstrip", "normalized", "single_word", "special"}
_ENCODED = {"__float__"}  # transformers encodes an infinite number as {"__float__": "Infinity"}
_ABSENT = object()
_SAMPLING = {"enable_sampling", "nbest_size", "alpha"}  # other arguments of SentencePiece name files


def config_fields(what: str, fields: Mapping[str, Json]) -> Fields:
    """The fields of a config.json that are passed to transformers.

    Args:
        what: Names of the model and the file for error messages.
        fields: All fields of the file.

    Raises:
        ModelError: `model_type` is not a family of causal language models in transformers, or a field could change which code
            runs or which files are read.
    """
    family = fields.get("model_type")
    try:
        kind = CONFIG_MAPPING[family] if isinstance(family, str) else None
    except KeyError:
        kind = None
    if kind is None or kind not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{what} cannot be loaded (model_type = {str(family)[:60]!r} is no causal language model of transformers "
            f"{transformers.__version__}); use another model, or a release of transformers that has this family"
        )
    return _config(what, fields, kind)


def _config(what: str, fields: Mapping[str, Json], kind: type[PretrainedConfig] | None) -> Fields:
    """The allowed fields of a config of the class `kind` (None for an unknown class).

    A field can contain another config, such as the config of a vision model. The class of that config determines which of
    its fields are allowed.
    """
    kept: Fields = {}
    parts: Mapping[str, type] = getattr(kind, "sub_configs", {})
    for key, value in fields.items():
        _check_name(what, key, kind)
        if not _is_allowed(key, kind):
            continue
        if key in parts and isinstance(value, Mapping):
            kept[key] = _config(f"{what}: {key}", value, _part_class(parts[key], kind, key, value))
        elif key == "quantization_config" and isinstance(value, Mapping):
            kept[key] = _quantisation(what, value)
        elif key == "per_layer_config" and isinstance(value, Mapping):
            layers = {layer: inner for layer, inner in value.items() if isinstance(inner, Mapping)}
            kept[key] = {layer: _config(f"{what}: {key}", inner, kind) for layer, inner in layers.items()}
        elif key == "tokenizer_class":
            kept |= _tokenizer_class(what, value)
        else:
            _check_dtype(what, key, value)
            kept[key] = _plain(f"{what}: {key}", value)
    return kept


def _check_name(what: str, key: str, kind: type | None = None) -> None:
    """Reject a field whose name could change which code or files are used.

    transformers sets each field of a config as an attribute of an object. A field with the name of a method would replace the
    method. `kind` is the class of the object. It is None if the class is unknown, or if transformers keeps the field in a dict.
    """
    attribute = None if kind is None else inspect.getattr_static(kind, key, None)
    is_method = callable(attribute) or isinstance(attribute, classmethod | staticmethod)
    if key in _REJECTED or key.startswith("__") or (is_method and key not in _declared(kind)):
        raise ModelError(
            f"{what}: {plain_line(key)[:60]}: must not be set, since it changes which code or files are used; {_FIX}"
        )


def _is_allowed(key: str, kind: type | None) -> bool:
    """Whether the field `key` may be passed to models with the config class `kind`."""
    if key in _DROPPED:
        return False
    if key.startswith("_"):  # a few families declare a private field that their models read
        return key in _declared(kind) and not hasattr(PretrainedConfig, key)
    if key in _COMMON or key in _declared(kind):
        return True
    attribute = None if kind is None else inspect.getattr_static(kind, key, None)
    return (attribute is None or isinstance(attribute, property)) and key in _words(kind)


def _declared(kind: type | None) -> set[str]:
    """The names and aliases of the fields that the config class `kind` declares."""
    return {*getattr(kind, "__dataclass_fields__", {}), *getattr(kind, "attribute_map", {})}


@functools.cache
def _words(kind: type | None) -> frozenset[str]:
    """All words in the source code of the model family with the config class `kind`.

    A field of a config has no effect if its name is not one of these words. The source code consists of the config class, the
    model classes, and modules that all families share. It may read fields that the config class does not declare.
    """
    paths = {Path(inspect.getfile(module)) for module in _SHARED_SOURCES}
    for parent in (kind or PretrainedConfig).__mro__:
        if issubclass(parent, PretrainedConfig) and parent is not PretrainedConfig:
            path = Path(inspect.getfile(parent))
            paths |= {path, *path.parent.glob("modeling_*.py")}
    return frozenset(word for path in paths for word in re.findall(r"\w+", path.read_text(encoding="utf-8")))


def _part_class(named: type, kind: type | None, key: str, fields: Mapping[str, Json]) -> type[PretrainedConfig] | None:
    """The class of an inner config (a config inside another config); None if unknown.

    `kind` is the class of the outer config, and `fields` are the fields of the inner config.  The class `kind` declares the
    class `named` for its field `key`, which contains the inner config.  If `named` is AutoConfig, the `model_type` of the
    inner config determines the result.
    """
    if issubclass(named, PretrainedConfig):
        return named
    default = getattr(getattr(kind, "sub_configs_defaults", {}).get(key), "model_type", None)
    family = fields.get("model_type", default)
    try:
        found: type[PretrainedConfig] | None = CONFIG_MAPPING[family] if isinstance(family, str) else None
    except KeyError:
        return None
    return found


def _plain(what: str, value: Json) -> Json:
    """A copy of `value` without private fields ("_...") and the fields in `_DROPPED`.

    Raises:
        ModelError: an object in `value` has a field that could change which code or files are used.
    """
    if isinstance(value, Mapping):
        kept: Fields = {}
        for key, inner in value.items():
            if key not in _ENCODED:
                _check_name(what, key)
            if key in _ENCODED or not (key in _DROPPED or key.startswith("_")):
                kept[key] = _plain(what, inner)
        return kept
    if isinstance(value, list):
        return [_plain(what, inner) for inner in value]
    return value


def _check_dtype(what: str, key: str, value: Json) -> None:
    """Reject a field that must be a dtype but is not the name of a torch dtype.

    transformers would accept the name of any attribute of the module torch.
    """
    named = key.endswith("dtype") or key == "bnb_4bit_quant_storage"
    if named and isinstance(value, str) and not isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype):
        raise ModelError(f"{what}: {key} = {value[:60]!r}: must be the name of a torch dtype; {_FIX}")


def _quantisation(what: str, fields: Mapping[str, Json]) -> Fields:
    """The allowed fields of a quantization_config."""
    loaded = "bitsandbytes" if fields.get("load_in_4bit") or fields.get("load_in_8bit") else None
    method = fields.get("quant_method", loaded)
    if method not in _QUANTISATIONS:
        allowed = ", ".join(_QUANTISATIONS)
        raise ModelError(
            f"{what}: quantization_config.quant_method = {str(method)[:60]!r}: must be one of {allowed}; use a model with "
            "weights of one of these formats, or without quantisation"
        )
    for key, value in fields.items():
        _check_dtype(f"{what}: quantization_config", key, value if key.startswith("bnb_") else None)
    kept = _plain(f"{what}: quantization_config", fields)
    assert isinstance(kept, dict)
    return {**kept, "quant_method": method, **({"dequantize": True} if method in _DEQUANTISED else {})}


def generation_fields(what: str, fields: Mapping[str, Json]) -> Fields:
    """The fields of a generation_config.json that are passed to transformers.

    Args:
        what: Names of the model and the file for error messages.
        fields: All fields of the file.

    Raises:
        ModelError: a field has the name of a method, or could change which code runs.
    """
    declared = {key for key in vars(GenerationConfig()) if not key.startswith("_")} - _GENERATION_DROPPED
    for key in fields:
        _check_name(what, key, GenerationConfig)
    return {key: _plain(f"{what}: {key}", value) for key, value in fields.items() if key in declared}


def tokenizer_fields(what: str, fields: Mapping[str, Json]) -> Fields:
    """The fields of a tokenizer's JSON file that are passed to transformers.

    The file is tokenizer_config.json or special_tokens_map.json. The allowed fields are the settings that all tokenizers have,
    the parameters of the class that the field `tokenizer_class` names, and special tokens. Names of files are left out:
    transformers finds the files of a tokenizer by their usual names.

    Args:
        what: Names of the model and the file for error messages.
        fields: All fields of the file.

    Raises:
        ModelError: `tokenizer_class` is not the name of a class, or names an object of transformers that is not a tokenizer; or
            a field has the name of a method.
    """
    named = _tokenizer_class(what, fields.get("tokenizer_class"))
    found = getattr(transformers, str(named.get("tokenizer_class")), None)
    kind = found if isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase) else PreTrainedTokenizerBase
    parameters = {
        name
        for parent in kind.__mro__
        if "__init__" in vars(parent)
        for name in inspect.signature(vars(parent)["__init__"]).parameters
    }
    parameters -= _TOKENIZER_DROPPED
    kept = dict(named)
    for key, value in fields.items():
        _check_name(what, key, kind)
        is_token = key.endswith("_token") and isinstance(value, str | Mapping)
        is_parameter = key in parameters and not isinstance(value, Mapping | list)
        if key.startswith("_") or key.endswith("_file") or not (key in _TOKENIZER or is_parameter or is_token):
            continue
        if key == "sp_model_kwargs":
            kept[key] = {name: value[name] for name in _SAMPLING & value.keys()} if isinstance(value, Mapping) else {}
        elif key in ("extra_special_tokens", "model_specific_special_tokens") and isinstance(value, Mapping):
            kept[key] = {name: _token(token) for name, token in value.items() if re.fullmatch(r"[a-zA-Z]\w*_token", name)}
        elif key == "added_tokens_decoder" and isinstance(value, Mapping):
            kept[key] = {number: _token(token) for number, token in value.items()}
        elif isinstance(value, list):
            kept[key] = [_token(item) if key.endswith("_tokens") else item for item in value]
        else:
            kept[key] = _token(value) if is_token else value
    return kept


def _token(value: Json) -> Json:
    """Return the allowed fields of a special token; a plain text is not changed."""
    return {key: inner for key, inner in value.items() if key in _TOKEN} if isinstance(value, Mapping) else value


def _tokenizer_class(what: str, name: Json) -> Fields:
    """Return a dict with the field `tokenizer_class`; an empty dict if `name` is None.

    The value of the field is `name`. If transformers has no class with this name, the value is TokenizersBackend, which
    transformers uses for unknown names.

    Raises:
        ModelError: `name` is not the name of a class, or names an object of transformers that is not a tokenizer.
    """
    if name is None:
        return {}
    found: object = None
    if isinstance(name, str) and name.isidentifier():
        found = getattr(transformers, name, getattr(transformers, name.removesuffix("Fast"), _ABSENT))
    if found is _ABSENT:
        return {"tokenizer_class": "TokenizersBackend"}
    if not (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
        raise ModelError(f"{what}: tokenizer_class = {str(name)[:60]!r}: must be a tokenizer of transformers; {_FIX}")
    return {"tokenizer_class": name}
