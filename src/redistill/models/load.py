"""Loading of models and tokenizers from the hub, a folder or a GGUF file.

Weights are read from safetensors and GGUF files only, and no code from a model is run. Every failure is an error of one line.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from redistill.errors import ConfigError, ModelError, WeightsError, check_field
from redistill.interfaces import CausalModel, ModelSettings, Tokenizer
from redistill.models.adapters import CONFIG, Adapter, find_adapter, find_file, merge_adapter
from redistill.models.caches import check_cache
from redistill.models.chat_templates import check_chat_templates, two_turns
from redistill.models.configs import check_fits, check_size, read_settings
from redistill.models.families import check_split, text_config, unwrapped
from redistill.models.gguf_files import check_gguf
from redistill.models.quantised import Quantise, keep_trainable, loading_options, num_weights
from redistill.models.reading import reading
from redistill.models.tokenizers import check_ids, check_sentencepiece, check_tokenizer, damaged_file
from redistill.models.values import check_values
from redistill.models.weight_files import INDEX, SINGLE, Stored, check_pointers, shards, stored_tensors
from redistill.processes.memory import machine_bytes
from redistill.storage.redaction import printable

_DAMAGED = "the file may be cut or damaged: download it again"
_DTYPES: dict[str, torch.dtype | str] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to load, and the options for loading it.

    Args:
        model: A hub name ("openai-community/gpt2"), a local folder, or the path of a .gguf file.  A LoRA adapter is merged into
            the base that its configuration names.
        revision: Branch, tag or commit of a hub model; if None, its main branch is used.
        adapter: Folder or hub name of a LoRA adapter to be merged into `model`; if None, no adapter is merged.
        dtype: dtype of the weights: "float32", "bfloat16", or "auto" for the file's dtype.  Students are trained in float32.
        gradient_checkpointing: Whether activations are recomputed in the backward pass, which needs less memory and about a
            third more time.

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

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("model = '': must be a hub name, a local folder, or a .gguf file")
        if printable(self.model) != self.model or "\n" in self.model:
            fault = "must not contain control characters or bytes that are not UTF-8; rename its folder"
            raise ConfigError(f"model = {self.model[:60]!r}: {fault}")
        one_of = f"must be one of {', '.join(_DTYPES)}; students are trained in float32"
        check_field(self, "dtype", self.dtype in _DTYPES, one_of)


def load_model(config: ModelConfig, quantise: Quantise = "none") -> tuple[CausalModel, Tokenizer]:
    """Load a causal language model and its tokenizer.

    Args:
        config: The model, and the adapter that is merged into it.
        quantise: Format of the quantised base of a QLoRA student, "nf4" or "int8"; "none" for every other model.

    Returns:
        The model, in eval mode on the CPU, and its tokenizer.

    Raises:
        ConfigError: `quantise` is not "none", but bitsandbytes is not installed, the model is a GGUF file, or it has an adapter
            to be merged.
        ModelError: the model is missing, incomplete or damaged, or its family cannot be split into a body and an LM head.
        WeightsError: weights of the model are missing or have another shape than its config describes.
        NotFiniteError: weights or logits of the model are not finite, or weights are too large.
    """
    base, adapter = base_and_adapter(config)
    source = _locate(base)
    if quantise != "none" and (adapter is not None or "gguf_file" in source):
        raise ConfigError(
            f"quantise = {quantise!r}: must be none, since {config.model} is a GGUF file or has an adapter to be merged; "
            "set it to none, or first save the model with save_pretrained"
        )
    settings, tensors = _checked_settings(base, source, downloads=True)
    if quantise == "none":
        _check_memory(base, tensors)
    tokenizer = load_tokenizer(config)
    compute_dtype = torch.float32 if base.dtype == "float32" else torch.bfloat16  # dtype of products with quantised weights
    model = _read_weights(base, source, settings, loading_options(quantise, compute_dtype))
    keep_trainable(model)
    check_values(base.model, model)
    _check_generation_config(base.model, model)
    with reading(f"{base.model}:", "check its config.json", failure="cannot process a test input of 8 tokens"):
        check_split(model, name=config.model)
        check_cache(model, name=config.model)
    if adapter is not None:
        model = merge_adapter(model, adapter)
        check_values(config.model, model)
        with reading(f"{config.model}:", f"check its {CONFIG}", failure="cannot process a test input once it is merged"):
            check_split(model, name=config.model)
    check_ids(config.model, tokenizer, text_config(model).vocab_size)
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
    return _checked_settings(base, _locate(base), downloads=False)[0]


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """Load the tokenizer of a model.

    If the tokenizer has no pad token, its end token is used for padding. This does not mask end tokens, since padding is always
    identified by position and not by token id.

    Raises:
        ModelError: the tokenizer is missing or damaged, has no end token, has two tokens with the same id, or has an unsafe
            chat template.
        VocabularyError: the tokenizer has ids beyond the vocabulary size in the model's config.
    """
    base, adapter = base_and_adapter(config)
    own = None if adapter is None else adapter.tokenizer_folder(config.model)
    if own is not None:
        name, source = config.model, {"pretrained_model_name_or_path": str(own)}
        check_pointers(name, *own.iterdir())
    else:
        name, source = base.model, _locate(base)
    check_sentencepiece(name, base.revision)
    settings = None if own is not None or "gguf_file" in source else read_settings(name, source)
    remedy = _DAMAGED if "gguf_file" in source else "check the name, the network, and that the folder is complete"
    with reading(lambda: f"{name}: {damaged_file(source)}", remedy):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
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


def _check_memory(config: ModelConfig, tensors: Mapping[str, Stored]) -> None:
    """Reject weights that need more memory than this machine has."""
    width = {"float32": 4, "bfloat16": 2}.get(config.dtype)
    needed = sum(tensor.num_bytes if width is None else tensor.size * width for tensor in tensors.values())
    memory = machine_bytes()
    if memory is not None and needed > memory:
        raise ModelError(
            f"{config.model}: its weights need {needed / 2**30:.1f} GiB as {config.dtype}, but this machine has "
            f"{memory / 2**30:.1f} GiB; use a smaller model, dtype: bfloat16, or a machine with more memory"
        )


def checkpoint_activations(model: nn.Module) -> None:
    """Enable gradient checkpointing, by the method name of this transformers release."""
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, "gradient_checkpointing_enable")  # noqa: B009
    enable({"use_reentrant": False})


def end_token_ids(model: nn.Module, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids of the tokens that end a response.

    The tokenizer's end token comes first, then the end tokens of the generation config, then the token that ends an answer in
    the chat template. The generation config of a base model often lacks the token of the chat template, but a student that has
    learned to generate this token must stop there.
    """
    listed = getattr(unwrapped(model).generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    candidates = [tokenizer.eos_token_id, *listed, _end_of_turn(tokenizer)]
    return tuple(dict.fromkeys(int(i) for i in candidates if i is not None))


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Return the id of the special token that ends an answer in the chat template, or None."""
    text = two_turns(tokenizer).rstrip()
    if not text:
        return None
    last = tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    return int(last) if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None


def compatibility_warnings(teacher_tokenizer: Tokenizer, student_tokenizer: Tokenizer) -> list[str]:
    """Return warnings about differences between tokenizers with the same vocabulary.

    The differences do not prevent distillation, but they may reduce the quality of the student.
    """
    warnings = []
    if teacher_tokenizer.eos_token_id != student_tokenizer.eos_token_id:
        warnings.append(
            f"the teacher's end token is {teacher_tokenizer.eos_token!r} and the student's {student_tokenizer.eos_token!r}: "
            "the student learns the teacher's end token; set eos_token in one of the tokenizers if this is not intended"
        )
    if teacher_tokenizer.chat_template != student_tokenizer.chat_template:
        warnings.append(
            "the teacher and the student have different chat templates: both models get prompts in the student's template; "
            "a teacher trained on its own template may give worse answers"
        )
    return warnings


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a model; tied parameters are counted once."""
    return sum(num_weights(parameter) for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Return the size of the parameters in bytes; tied parameters are counted once.

    A weight file has this size without its header.
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
        raise ModelError(f"{config.model}: is an adapter itself; set `model` to its base model and `adapter` to one adapter")
    if any(find_file(config.model, file, config.revision) for file in ("model.safetensors", "model.safetensors.index.json")):
        raise ModelError(
            f"{config.model}: contains a model and an adapter; move the adapter to another folder, and set `adapter` to it"
        )
    if not own.base:
        raise ModelError(
            f"{config.model}: its adapter_config.json does not name its base model; set `model` to the base model and "
            "`adapter` to this adapter"
        )
    base = ModelConfig(model=own.base, revision=own.revision, dtype=config.dtype)
    try:
        second = find_adapter(base.model, base.revision)
    except ModelError as error:
        raise ModelError(f"{config.model}: its base {error}") from error
    if second is not None:
        raise ModelError(
            f"{config.model}: its base {base.model} is an adapter as well; first merge {base.model} into its own base"
        )
    return base, own


def _checked_settings(
    base: ModelConfig, source: Mapping[str, str], *, downloads: bool
) -> tuple[ModelSettings, Mapping[str, Stored]]:
    """Read, compare and return the config of a model and the headers of its weights.

    The weights of a hub model are downloaded if `downloads` is True.  The mapping of headers is empty for a GGUF file, and for
    a hub model whose weights are not downloaded or have no safetensors files.
    """
    if "gguf_file" in source:
        path = Path(base.model).expanduser()
        count = check_gguf(base.model, path)
        settings = read_settings(base.model, source)
        check_size(base.model, settings, parts=count, weights=8 * path.stat().st_size)  # at least one bit per weight
        return settings, {}
    settings = read_settings(base.model, source)
    folder: Path | None = Path(source["pretrained_model_name_or_path"])
    if folder is not None and not folder.is_dir():
        folder = _downloaded_weights(base) if downloads else None
    if folder is None:
        return settings, {}
    tensors = stored_tensors(base.model, folder, getattr(settings, "transformers_weights", None))
    check_fits(base.model, settings, tensors)
    return settings, tensors


def _downloaded_weights(config: ModelConfig) -> Path | None:
    """Download the safetensors files of a hub model, and return their folder, or None without such files."""
    single = find_file(config.model, SINGLE, config.revision)
    index = single or find_file(config.model, INDEX, config.revision)
    if single is None and index is not None:
        for file in sorted(set(shards(config.model, index).values())):
            find_file(config.model, file, config.revision)
    return None if index is None else index.parent


def _read_weights(
    config: ModelConfig, source: Mapping[str, str], settings: ModelSettings, options: dict[str, object]
) -> CausalModel:
    """Load a model with its weights.

    Args:
        config: Name, revision and dtype of the model.
        source: Arguments for `from_pretrained`.
        settings: The checked config of the model.
        options: Further arguments for `from_pretrained`, which may quantise the weights.

    Raises:
        WeightsError: a weight is missing or has another shape than the config describes.
    """
    is_file = "gguf_file" in source
    remedy = _DAMAGED if is_file else "check the name, the network, and that the folder is complete"
    with reading(f"{config.model}: its weights", remedy), _quietly():
        if "gguf_file" in source:
            gguf_config = getattr(transformers, "GgufConfig", None)  # releases without GgufConfig always dequantise
            options = {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
        else:
            # A config.json must not select kernels to be downloaded and run.
            settings._attn_implementation = settings._experts_implementation = None
            options = {"config": settings, **options}
        # Weights of another shape are reported below, together with missing weights.
        options |= {"dtype": _DTYPES[config.dtype], "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, report = AutoModelForCausalLM.from_pretrained(**source, **options, use_safetensors=True, trust_remote_code=False)
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
    if "gguf_file" in source:
        model.name_or_path = model.config.name_or_path = ""  # the file's folder cannot be loaded as a model
    return cast(CausalModel, model)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the warnings of transformers while the context is active.

    These warnings contain names from weight files, which may include terminal escape sequences.
    """
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _locate(config: ModelConfig) -> dict[str, str]:
    """Check that a local model has its files; return the arguments for `from_pretrained`."""
    path = Path(config.model).expanduser()
    if config.model.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"{config.model}: no such file; give a .gguf file, a model folder, or a hub model")
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(f"{config.model}: reading GGUF needs the gguf package; pip install 'redistill[gguf]'")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if not path.is_dir():
        return {"pretrained_model_name_or_path": config.model, "revision": config.revision or "main"}
    if not (path / "config.json").is_file():
        raise ModelError(f"{config.model}: contains no config.json; give a folder written by save_pretrained")
    if not any(path.glob("*.safetensors")):
        raise ModelError(
            f"{config.model}: contains no .safetensors file; pickled weights are not read, convert them with save_pretrained"
        )
    check_pointers(config.model, *path.iterdir())
    return {"pretrained_model_name_or_path": str(path)}
