"""Loading of models and tokenizers from the hub, a folder or a GGUF file.

Weights are read from safetensors and GGUF files only, and no code from a model is run. Error messages have one line.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from redistill.errors import ConfigError, ModelError, WeightsError, check_field
from redistill.interfaces import CausalModel, ModelSettings, Tokenizer
from redistill.models.adapters import Adapter, find_adapter, merge_adapter
from redistill.models.attention import FLASH, Attention, use_attention
from redistill.models.caches import check_cache
from redistill.models.chat_templates import check_chat_templates, two_turns
from redistill.models.checked_model import CheckedModel, checked_model, checked_tokenizer
from redistill.models.configs import check_fits, check_size, read_settings
from redistill.models.families import check_split, text_config, unwrapped
from redistill.models.gguf_files import check_gguf
from redistill.models.quantised import Quantise, keep_trainable, loading_options, num_weights
from redistill.models.reading import reading
from redistill.models.recompute import checkpoint_activations
from redistill.models.snapshots import ADAPTER_CONFIG, CONFIG, download_weights
from redistill.models.tokenizers import check_ids, check_sentencepiece, check_tokenizer, damaged_file
from redistill.models.values import check_values
from redistill.models.weight_files import INDEX, SINGLE, Stored, stored_tensors
from redistill.processes.memory import device_bytes, machine_bytes
from redistill.storage.redaction import printable

# The implementations in transformers and torch; all other names select kernels that may be downloaded from the hub.
_IMPLEMENTATIONS = {
    "_attn_implementation": (None, "eager", "sdpa"),
    "_experts_implementation": (None, "eager", "batched_mm", "grouped_mm"),
}
_DAMAGED = "the file may be cut or damaged: download it again"
_DTYPES: dict[str, torch.dtype | str] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to load, and the options for loading it.

    Args:
        model: A hub name ("openai-community/gpt2"), a local folder, or the path of a .gguf file.  A LoRA adapter is merged
            into the base model that its configuration names.
        revision: Branch, tag or commit of a hub model; if None, its main branch is used.
        adapter: Folder or hub name of a LoRA adapter to be merged into `model`; if None, no adapter is merged.
        dtype: dtype of the weights: "float32", "bfloat16", or "auto" for the file's dtype.  Students are trained in float32;
            with adapters, "bfloat16" is the dtype of the frozen weights.
        gradient_checkpointing: Whether activations are recomputed in the backward pass, which needs less memory and about a
            third more time.
        attention: Attention implementation: "eager", "sdpa", or "flash_attention_2", which needs a GPU and the package
            flash_attn. If None, it is the default of the model family, usually "sdpa".

    Raises:
        ConfigError: the name is empty or contains control characters, or the dtype is unknown.

    Example:
        >>> ModelConfig(model="openai-community/gpt2").dtype
        'float32'
        >>> ModelConfig(model="")
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: model = '': must be a hub name, a local folder, or a .gguf file
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    gradient_checkpointing: bool = False
    attention: Attention | None = None

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("model = '': must be a hub name, a local folder, or a .gguf file")
        if printable(self.model) != self.model or "\n" in self.model:
            fault = "must not contain control characters or bytes that are not UTF-8; rename its folder"
            raise ConfigError(f"model = {self.model[:60]!r}: {fault}")
        one_of = f"must be one of {', '.join(_DTYPES)}; students are trained in float32"
        check_field(self, "dtype", self.dtype in _DTYPES, one_of)


def load_model(
    config: ModelConfig, quantise: Quantise = "none", device: torch.device | str = "cpu"
) -> tuple[CausalModel, Tokenizer]:
    """Load a causal language model and its tokenizer.

    Args:
        config: The model, and the adapter that is merged into it.
        quantise: Format of the quantised weights, "nf4" or "int8"; "none" if they are not quantised.
        device: Device for the weights.  They are read to this device one by one, so that the machine's memory never contains
            the whole model.  GGUF files, models with an adapter and quantised models are read to the CPU instead.

    Returns:
        The model, in eval mode, and its tokenizer.

    Raises:
        ConfigError: the model cannot be quantised, because bitsandbytes is not installed, the model is a GGUF file, or an
            adapter is merged into the model.
        ModelError: the model is missing, incomplete or damaged, or its family cannot be split into a body and an LM head.
        WeightsError: weights of the model are missing, or their shapes do not match its config.
        NotFiniteError: weights or logits of the model are not finite, or a matrix has a weight above 10^12 in absolute value.
    """
    base, adapter = base_and_adapter(config)
    if quantise != "none" and (adapter is not None or base.model.endswith(".gguf")):
        raise ConfigError(
            f"quantise = {quantise!r}: must be none, since {config.model} is a GGUF file or has an adapter to be merged; "
            "set quantise to none, or first save the model with save_pretrained"
        )
    with checked_model(base.model, base.revision, downloads=True) as checked:
        settings, tensors = _checked_settings(base, checked)
        if adapter is not None or quantise != "none" or checked.gguf:
            device = "cpu"
        if quantise == "none":
            _check_memory(base, tensors, device)
        tokenizer = load_tokenizer(config)
        compute_dtype = torch.float32 if base.dtype == "float32" else torch.bfloat16  # dtype of products with quantised weights
        placed = {} if torch.device(device).type == "cpu" else {"device_map": {"": device}}
        model = _read_weights(base, checked, settings, loading_options(quantise, compute_dtype) | placed)
    keep_trainable(model)
    if config.attention != FLASH:  # flash attention cannot run the checks below, which are on the CPU
        use_attention(model, config.attention)
    check_values(base.model, model)
    _check_generation_config(base.model, model)
    with reading(f"{base.model}:", "check its config.json", failure="cannot process a test input of 8 tokens"):
        check_split(model, name=config.model)
        check_cache(model, name=config.model)
    if adapter is not None:
        model = merge_adapter(model, adapter)
        check_values(config.model, model)
        with reading(f"{config.model}:", f"check its {ADAPTER_CONFIG}", failure="cannot process a test input after the merge"):
            check_split(model, name=config.model)
    check_ids(config.model, tokenizer, text_config(model).vocab_size)
    use_attention(model, config.attention)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return model, tokenizer


def read_config(config: ModelConfig) -> ModelSettings:
    """Read the transformers config of a model, without its weights.

    For an adapter, this is the config of its base model. The config of a local folder is compared with the headers of the
    weight files.

    Raises:
        ModelError: the model is missing or damaged.
    """
    base, _ = base_and_adapter(config)
    with checked_model(base.model, base.revision) as checked:
        return _checked_settings(base, checked)[0]


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """Load the tokenizer of a model.

    If the tokenizer has no pad token, its end token is used for padding. End tokens are still learned, since padding is
    always identified by position and not by token id.

    Raises:
        ModelError: the tokenizer is missing or damaged, has no end token, has two tokens with the same id, or has an unsafe
            chat template.
        VocabularyError: the tokenizer has ids beyond the vocabulary size in the model's config.
    """
    base, adapter = base_and_adapter(config)
    own = None if adapter is None else adapter.tokenizer_folder(config.model)
    if own is not None:
        with checked_tokenizer(own) as checked:
            return _read_tokenizer(checked, None)
    with checked_model(base.model, base.revision) as checked:
        check_sentencepiece(checked.name, checked.source)
        return _read_tokenizer(checked, None if checked.gguf else read_settings(checked.name, checked.source))


def _read_tokenizer(checked: CheckedModel, settings: ModelSettings | None) -> Tokenizer:
    """Load and check the tokenizer of a checked model.

    `settings` is the config of the model. It is None for a GGUF file, and for a tokenizer without a model.
    """
    name, source = checked.name, checked.source
    remedy = _DAMAGED if checked.gguf else "check the name, the network, and that the folder is complete"
    known = {} if settings is None else {"config": settings}
    with reading(lambda: f"{name}: {damaged_file(source)}", remedy):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(**source, **known, trust_remote_code=False)
    checked.restore_paths(tokenizer)
    check_tokenizer(name, tokenizer)
    if settings is not None:
        check_ids(name, tokenizer, settings.get_text_config().vocab_size)
    check_chat_templates(name, tokenizer)
    return tokenizer


def _check_generation_config(name: str, model: nn.Module) -> None:
    """Reject end tokens in generation_config.json that are not integers."""
    listed = getattr(unwrapped(model).generation_config, "eos_token_id", None)
    for number in listed if isinstance(listed, list | tuple) else [listed]:
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise ModelError(f"{name}: generation_config.json: eos_token_id = {str(listed)[:60]!r}: must be token ids; fix it")


def _check_memory(config: ModelConfig, tensors: Mapping[str, Stored], device: torch.device | str) -> None:
    """Reject weights that need more memory than this machine or its GPU has."""
    width = {"float32": 4, "bfloat16": 2}.get(config.dtype)
    needed = sum(tensor.num_bytes if width is None else tensor.size * width for tensor in tensors.values())
    place, memory = "this machine", machine_bytes()
    if (on_device := device_bytes(device)) is not None:
        place, memory = "the GPU", on_device
    if memory is not None and needed > memory:
        raise ModelError(
            f"{config.model}: its weights need {needed / 2**30:.1f} GiB as {config.dtype}, but {place} has "
            f"{memory / 2**30:.1f} GiB; use a smaller model, dtype: bfloat16, or a machine with more memory"
        )


def end_token_ids(model: nn.Module, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of the tokens that end a response.

    The tokenizer's end token comes first, then the end tokens of the generation config, then the token that ends an answer
    in the chat template. The generation config of a base model often lacks the token of the chat template, but a student
    that learns this token must stop after it.
    """
    listed = getattr(unwrapped(model).generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    candidates = [tokenizer.eos_token_id, *listed, end_of_turn(tokenizer)]
    return tuple(dict.fromkeys(int(i) for i in candidates if i is not None))


def end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that ends an answer in the chat template, or None."""
    text = two_turns(tokenizer).rstrip()
    if not text:
        return None
    last = tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    return int(last) if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a model; tied parameters are counted once."""
    return sum(num_weights(parameter) for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Return the size of the parameters in bytes; tied parameters are counted once.

    A file with all weights of the model consists of a header and this number of bytes.
    """
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def base_and_adapter(config: ModelConfig) -> tuple[ModelConfig, Adapter | None]:
    """Find the model to load, and the adapter to merge into it.

    If `config.model` is an adapter, the model is the adapter's base. A folder with an adapter_config.json is never given to
    transformers, which would load any model that the file names.

    Raises:
        ModelError: an adapter or its base is missing or damaged, or `config` names two adapters.
    """
    own = None if config.model.endswith(".gguf") else find_adapter(config.model, config.revision)
    if own is None:
        adapter = None if config.adapter is None else find_adapter(config.adapter, None)
        if config.adapter is not None and adapter is None:
            raise ModelError(
                f"{config.adapter}: contains no adapter_config.json; set `adapter` to a LoRA adapter saved by PEFT"
            )
        return config, adapter
    if config.adapter is not None:
        raise ModelError(
            f"{config.model}: is an adapter itself, and `adapter` is set too; set `model` to the base model, "
            "and `adapter` to one adapter"
        )
    if own.folder.find(CONFIG) is not None:
        download_weights(own.folder)
    if any(own.folder.find(file) for file in (SINGLE, INDEX)):
        raise ModelError(
            f"{config.model}: contains a model and an adapter; move the adapter to another folder, and set `adapter` to it"
        )
    if not own.base:
        raise ModelError(
            f"{config.model}: its adapter_config.json does not name its base model; set `model` to the base model and "
            "`adapter` to this adapter"
        )
    base = ModelConfig(model=own.base, revision=own.revision, dtype=config.dtype, attention=config.attention)
    try:
        second = find_adapter(base.model, base.revision)
    except ModelError as error:
        raise ModelError(f"{config.model}: its base model {error}") from error
    if second is not None:
        raise ModelError(
            f"{config.model}: its base model {base.model} is an adapter as well; first merge it into its own base model"
        )
    return base, own


def _checked_settings(base: ModelConfig, checked: CheckedModel) -> tuple[ModelSettings, Mapping[str, Stored]]:
    """Read the config of a model and the headers of its weights, and compare them.

    The mapping of headers is empty for a GGUF file, and for a hub model whose weights are not downloaded.
    """
    if checked.gguf is not None:
        path = checked.folder / checked.gguf
        count = check_gguf(base.model, path)
        settings = read_settings(base.model, checked.source)
        check_size(base.model, settings, parts=count, weights=8 * path.stat().st_size)  # at least one bit per weight
        return settings, {}
    settings = read_settings(base.model, checked.source)
    tensors = stored_tensors(base.model, checked.folder)
    if tensors:
        check_fits(base.model, settings, tensors)
    return settings, tensors


def _read_weights(
    config: ModelConfig, checked: CheckedModel, settings: ModelSettings, options: dict[str, object]
) -> CausalModel:
    """Load a model with its weights.

    Args:
        config: Name, revision and dtype of the model.
        checked: The files of the model.
        settings: The checked config of the model.
        options: Further arguments for `from_pretrained`, which may quantise the weights.

    Raises:
        WeightsError: a weight is missing, or its shape does not match the config.
        ModelError: the weights cannot be read, or the model uses a kernel that is not part of transformers or torch.
    """
    remedy = _DAMAGED if checked.gguf else "check the name, the network, and that the folder is complete"
    with reading(f"{config.model}: its weights", remedy), _quietly():
        if checked.gguf:
            gguf_config = getattr(transformers, "GgufConfig", None)  # releases without GgufConfig always dequantise
            options = {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
        else:
            # A config.json must not select kernels to be downloaded and run.
            settings._attn_implementation = settings._experts_implementation = None
            options = {"config": settings, **options}
        # Weights of another shape are reported below, together with missing weights.
        options |= {"dtype": _DTYPES[config.dtype], "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = AutoModelForCausalLM.from_pretrained(
            **checked.source, **options, use_safetensors=True, trust_remote_code=False
        )
    # transformers initialises missing weights at random and only logs a warning.
    other_shapes = sorted(report["mismatched_keys"])
    absent = sorted(report["missing_keys"])
    absent += [
        f"{key} ({list(found)} in its file, {list(wanted)} according to its config)" for key, found, wanted in other_shapes
    ]
    if absent:
        raise WeightsError(
            f"{config.model}: {len(absent)} weights are missing or have another shape, first {absent[0]}; "
            "download the model again, or choose a model whose weights match its config.json"
        )
    model.name_or_path = model.config.name_or_path = checked.location
    if checked.commit is not None:
        model.config._commit_hash = checked.commit
    _check_implementations(config.model, model)
    return cast(CausalModel, model)


def _check_implementations(name: str, model: nn.Module) -> None:
    """Reject a model whose attention or experts use code of other packages."""
    for module in model.modules():
        for field, allowed in _IMPLEMENTATIONS.items():
            used = getattr(getattr(module, "config", None), field, None)
            if used not in allowed:
                names = ", ".join(filter(None, allowed))
                raise ModelError(f"{name}: {field} = {str(used)[:60]!r}: must be one of {names}; use another model")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Context without the warnings of transformers.

    These warnings contain names from weight files, which may include terminal escape sequences.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
