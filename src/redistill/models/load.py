"""Loading of models and tokenizers from the hub, a folder or a GGUF file.

Weights are read from safetensors or GGUF only, and no code from a model runs.

Every failure is raised as an error of one line: transformers answers a mistyped path with a page about the hub.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import jinja2
import torch
import transformers
from jinja2.exceptions import SecurityError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from redistill.errors import ConfigError, ModelError, check_field, first_line
from redistill.interfaces import CausalModel, ModelSettings, Tokenizer
from redistill.models.adapters import Adapter, find_adapter, find_file, merge_adapter
from redistill.models.caches import check_cache
from redistill.models.families import check_split, unwrapped
from redistill.models.quantised import Quantise, keep_trainable, loading_options, num_weights
from redistill.storage import files

# Exceptions of a chat template that is invalid or does not support the conversation: its expressions behave as Python's.
_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_DTYPES: dict[str, torch.dtype | str] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to load, and how.

    Args:
        model: A hub name ("openai-community/gpt2"), a local folder, or the path of a .gguf file.  A LoRA adapter is merged
            into the base that its configuration names.
        revision: Branch, tag or commit of a hub model; None uses its main branch.
        adapter: Folder or hub name of a LoRA adapter to be merged into `model`; None merges none.
        dtype: dtype of the weights: "float32", "bfloat16", or "auto" for the file's dtype.  Students are trained in float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.

    Raises:
        ConfigError: an empty name, or an unknown dtype.

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
        one_of = f"must be one of {', '.join(_DTYPES)}; students are trained in float32"
        check_field(self, "dtype", self.dtype in _DTYPES, one_of)


def load_model(config: ModelConfig, quantise: Quantise = "none") -> tuple[CausalModel, Tokenizer]:
    """Load a causal language model and its tokenizer.

    Args:
        config: The model, and the adapter that is merged into it.
        quantise: Storage of the base of a QLoRA student: "nf4" or "int8"; "none" for every other model.

    Returns:
        The model, in eval mode on the CPU, and its tokenizer.

    Raises:
        ConfigError: bitsandbytes is needed and not installed, or the model is a GGUF file or has an adapter to be merged, which
            cannot be quantised.
        ModelError: the model is missing, incomplete, damaged, or of a family that cannot be split into body and head.
    """
    base, adapter = _base_and_adapter(config)
    source = _locate(base)
    if quantise != "none" and (adapter is not None or "gguf_file" in source):
        raise ConfigError(
            f"quantise = {quantise!r}: must be none, since {config.model} is a GGUF file or has an adapter to be merged; "
            "set it to none, or first save the model with save_pretrained"
        )
    tokenizer = load_tokenizer(config)
    compute_dtype = torch.float32 if base.dtype == "float32" else torch.bfloat16  # of products with quantised weights
    model = _read_weights(base, source, loading_options(quantise, compute_dtype))
    keep_trainable(model)
    check_split(model, name=config.model)
    check_cache(model, name=config.model)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return model, tokenizer


def read_config(config: ModelConfig) -> ModelSettings:
    """The transformers config of a model, without reading weights.

    For an adapter it is the config of its base.

    Raises:
        ModelError: the model is missing or damaged.
    """
    base, _ = _base_and_adapter(config)
    source = _locate(base)
    with _one_line(base.model):
        return cast(ModelSettings, AutoConfig.from_pretrained(**source, trust_remote_code=False))


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """Load the tokenizer of a model.

    If it has no pad token, its end token is used for padding.

    Padding is always identified by position, never by this id.

    Raises:
        ModelError: the tokenizer is missing or damaged, has neither a pad nor an end token, or has an unsafe chat template.
    """
    base, adapter = _base_and_adapter(config)
    if adapter is not None and adapter.name == config.model and adapter.has_tokenizer:
        name, source = config.model, {"pretrained_model_name_or_path": str(adapter.weights.parent)}
    else:
        name, source = base.model, _locate(base)
    _check_sentencepiece(name, base.revision)
    with _one_line(name):
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{name}: its tokenizer has neither pad_token nor eos_token; set one in tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    _check_chat_templates(name, tokenizer)
    return tokenizer


def _check_chat_templates(name: str, tokenizer: Tokenizer) -> None:
    """Reject templates that the sandbox blocks, or whose names are paths out of the folder that they are saved to.

    Jinja's sandbox blocks an unsafe template whenever it is rendered; this check reports it before a run starts.
    """
    if isinstance(tokenizer.chat_template, dict):
        for key in tokenizer.chat_template:
            if files.slug(str(key)) != key:
                raise ModelError(
                    f"{name}: the name of a chat template is {str(key)[:60]!r}, which is not a plain file name; do not "
                    "use this model"
                )
    try:
        _two_turns(tokenizer)
    except SecurityError as error:
        raise ModelError(f"{name}: its chat template was rejected by the sandbox ({error}); do not use this model") from error
    except _TEMPLATE_ERRORS:  # unsupported conversation or invalid template: reported by a run that uses it
        return


def checkpoint_activations(model: nn.Module) -> None:
    """Enable gradient checkpointing; transformers 5 renamed the method."""
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, "gradient_checkpointing_enable")  # noqa: B009
    enable({"use_reentrant": False})


def end_token_ids(model: nn.Module, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of the tokens that end a response.

    The tokenizer's end token comes first, then those of the generation config, then the chat template's end of turn.  The
    generation config of a base checkpoint often lacks the end of turn, and a student that has learned to generate it must be
    stopped there.
    """
    listed = getattr(unwrapped(model).generation_config, "eos_token_id", None)
    listed = listed if isinstance(listed, list | tuple) else [listed]
    candidates = [tokenizer.eos_token_id, *listed, _end_of_turn(tokenizer)]
    return tuple(dict.fromkeys(int(i) for i in candidates if i is not None))


def _end_of_turn(tokenizer: Tokenizer) -> int | None:
    """Id of the special token that ends an answer in the chat template; None if there is no such token or template."""
    try:
        text = _two_turns(tokenizer).rstrip()
    except _TEMPLATE_ERRORS:  # unsupported conversation: the end of turn is unknown
        return None
    if not text:
        return None
    last = tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    return int(last) if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None


def _two_turns(tokenizer: Tokenizer) -> str:
    """The chat template's rendering of a user and an assistant message; "" without a template."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def compatibility_warnings(teacher_tokenizer: Tokenizer, student_tokenizer: Tokenizer) -> list[str]:
    """Differences between two tokenizers with one vocabulary, as sentences.

    They do not prevent distillation but may degrade it.  Empty if there is none.
    """
    warnings = []
    if teacher_tokenizer.eos_token_id != student_tokenizer.eos_token_id:
        warnings.append(
            f"the teacher's end token is {teacher_tokenizer.eos_token!r} and the student's {student_tokenizer.eos_token!r}: "
            "the student learns the teacher's; set eos_token in one of the tokenizers if this is not intended"
        )
    if teacher_tokenizer.chat_template != student_tokenizer.chat_template:
        warnings.append(
            "the teacher and the student have different chat templates: both models read the student's; "
            "a teacher trained on its own template may give worse answers"
        )
    return warnings


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(num_weights(parameter) for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters as stored, tied ones counted once.

    This is the size of a file without its header.
    """
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _base_and_adapter(config: ModelConfig) -> tuple[ModelConfig, Adapter | None]:
    """The model whose weights are read, and the adapter that is merged into it.

    A folder with an adapter_config.json must not reach transformers, which would load any model that the file names.
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
        raise ModelError(f"{config.model}: is an adapter itself; set `model` to its base and `adapter` to one of the two")
    if any(find_file(config.model, file, config.revision) for file in ("model.safetensors", "model.safetensors.index.json")):
        raise ModelError(
            f"{config.model}: contains a model and an adapter; move the adapter to a folder of its own, and set `adapter` to it"
        )
    if not own.base:
        raise ModelError(
            f"{config.model}: its adapter_config.json does not name its base; set `model` to the base and `adapter` to this"
        )
    base = ModelConfig(model=own.base, revision=own.revision, dtype=config.dtype)
    if find_adapter(base.model, base.revision) is not None:
        raise ModelError(f"{config.model}: its base {base.model} is an adapter as well; first merge that into its own base")
    return base, own


def _read_weights(config: ModelConfig, source: dict[str, str], options: dict[str, object]) -> CausalModel:
    """Load the weights, quantised by bitsandbytes where `options` say so; a missing weight is an error."""
    with _one_line(config.model):
        if "gguf_file" in source:
            gguf_config = getattr(transformers, "GgufConfig", None)  # releases without it always dequantise
            options = {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}
        else:
            settings = AutoConfig.from_pretrained(**source, trust_remote_code=False)
            # A config.json must not select kernels to be downloaded and run.
            settings._attn_implementation = settings._experts_implementation = None
            options = {"config": settings, **options}
        options |= {"dtype": _DTYPES[config.dtype], "output_loading_info": True}
        model, report = AutoModelForCausalLM.from_pretrained(**source, **options, use_safetensors=True, trust_remote_code=False)
    # transformers initialises missing weights at random and only logs it.
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{config.model}: {len(absent)} weights are missing or have another shape, first {absent[0]}; "
            "download the model again, or choose one whose weights fit its config.json"
        )
    if "gguf_file" in source:
        model.name_or_path = model.config.name_or_path = ""  # the file's folder cannot be loaded as a model
    return cast(CausalModel, model)


def _check_sentencepiece(name: str, revision: str | None) -> None:
    """Name the missing packages of a tokenizer that is only a SentencePiece file (OpenLLaMA): transformers' error misleads."""
    with contextlib.suppress(ModuleNotFoundError):  # google, of which protobuf is a part
        if importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google.protobuf"):
            return
    if name.endswith(".gguf") or find_file(name, "tokenizer.json", revision) is not None:
        return
    if find_file(name, "tokenizer.model", revision) is not None:
        raise ModelError(
            f"{name}: its tokenizer is a SentencePiece file (tokenizer.model), which needs the packages sentencepiece and "
            "protobuf; pip install 'redistill[sentencepiece]'"
        )


def _locate(config: ModelConfig) -> dict[str, str]:
    """Arguments of `from_pretrained` for a model whose name `find_adapter` has checked."""
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
    return {"pretrained_model_name_or_path": str(path)}


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Convert the libraries' exceptions into a `ModelError` of one line that names the model."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = f"cannot be loaded ({first_line(error)[:300]})"
        raise ModelError(f"{name}: {reason}; check the name, the network, and that the folder is complete") from error
