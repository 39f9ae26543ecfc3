"""Models and tokenizers by name, folder or GGUF file, through transformers; safetensors only, and no code from a model runs.

Whatever goes wrong comes out as one line: the libraries below answer a mistyped path with a page about the hub.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
import transformers
from jinja2.sandbox import SecurityError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from redistill.errors import ConfigError, ModelError
from redistill.models.adapters import Adapter, find_adapter, find_file, merge_adapter
from redistill.models.families import body, check_split, head, unwrapped
from redistill.models.quantised import Quantise, keep_trainable, loading_options, num_weights
from redistill.storage import files

__all__ = [
    "ModelConfig",
    "body",
    "compatibility_warnings",
    "end_token_ids",
    "head",
    "load_model",
    "load_tokenizer",
    "parameter_bytes",
    "parameter_count",
]

# What a template that is wrong, or not meant for the conversation at hand, ends with: it computes as Python does.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_DTYPES: dict[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to load, and how.

    Args:
        model: A hub name ("openai-community/gpt2"), a local folder, or the path of a .gguf file.  A LoRA adapter is loaded
            with the base it names, and merged.
        revision: Branch, tag or commit of a hub model; None takes its main branch.
        adapter: A LoRA adapter, a folder or a hub name, to be merged into `model`; None merges none.
        dtype: Of the weights: "float32", "bfloat16", or "auto" for what the file holds.  Students are trained in float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.

    Raises:
        ConfigError: an empty name, or an unknown dtype.
    """

    model: str
    revision: str | None = None
    adapter: str | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("model = '': must be a hub name, a local folder, or a .gguf file")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype = {self.dtype!r}: must be one of {', '.join(_DTYPES)}; students are trained in float32")


def load_model(config: ModelConfig, quantise: Quantise = "none") -> tuple[Any, Any]:
    """The causal language model that `config` names, in eval mode on the CPU, and its tokenizer.

    Args:
        config: Which model, and the adapter that is merged into it.
        quantise: How the base of a QLoRA student is kept; "none" for every other model.

    Raises:
        ConfigError: bitsandbytes is asked for and not installed, or asked to quantise what it cannot.
        ModelError: it is missing, incomplete, damaged, or of a family that cannot be split into body and head.
    """
    base, adapter = _base_and_adapter(config)
    source = _locate(base)
    if quantise != "none" and (adapter is not None or "gguf_file" in source):
        raise ConfigError(
            f"quantise = {quantise!r}: {config.model} is a GGUF file or has an adapter to be merged; save it as an ordinary "
            "model first, or set it to none"
        )
    tokenizer = load_tokenizer(config)
    model = _read_weights(base, source, loading_options(quantise, _compute_dtype(base)))
    keep_trainable(model)
    check_split(model, name=config.model)
    if adapter is not None:
        model = merge_adapter(model, adapter)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return model, tokenizer


def read_config(config: ModelConfig) -> Any:
    """The configuration of the model that `config` names, its adapter's base for one that has an adapter; no weights are read.

    Raises:
        ModelError: it is missing or damaged.
    """
    base, _ = _base_and_adapter(config)
    source = _locate(base)
    with _one_line(base.model):
        return AutoConfig.from_pretrained(**source, trust_remote_code=False)


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of the model that `config` names; one without a pad token pads with its end token.

    Which tokens are padding is decided by position everywhere, never by this id.

    Raises:
        ModelError: it is missing or damaged, has neither a pad nor an end token, or has a chat template that reaches out.
    """
    base, adapter = _base_and_adapter(config)
    if adapter is not None and adapter.name == config.model and adapter.has_tokenizer:
        name, source = config.model, {"pretrained_model_name_or_path": str(adapter.weights.parent)}
    else:
        name, source = base.model, _locate(base)
    _check_sentencepiece(name, base.revision)
    with _one_line(name):
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"{name}: its tokenizer has neither pad_token nor eos_token; set one in tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    _check_chat_templates(name, tokenizer)
    return tokenizer


def _check_chat_templates(name: str, tokenizer: Any) -> None:
    """Refuse templates whose names would lead out of the folder they are saved to, or that reach for Python's insides.

    They run in Jinja's sandbox, which ends such a one wherever it is met; here it is named before a run has begun.
    """
    if isinstance(tokenizer.chat_template, dict):
        for key in tokenizer.chat_template:
            if files.slug(str(key)) != key:
                raise ModelError(
                    f"{name}: a chat template is called {str(key)[:60]!r}, which is no plain name; do not use this model"
                )
    try:
        _two_turns(tokenizer)
    except SecurityError as error:
        raise ModelError(f"{name}: its chat template is no template ({error}); do not use this model") from error
    except _TEMPLATE_FAULTS:  # it wants another conversation, or is broken; only a run that uses it needs to know
        return


def checkpoint_activations(model: Any) -> None:
    """Recompute activations in the backward pass instead of keeping them; the method's name changed in transformers 5."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def end_token_ids(model: nn.Module, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end a response: the tokenizer's end token first, then those of the generation config and the chat template.

    A base checkpoint often comes with a chat template whose end of turn neither of the first two names; a student that has
    learnt to write it must be stopped there.
    """
    listed = getattr(unwrapped(model), "generation_config", None)
    listed = getattr(listed, "eos_token_id", None)
    candidates = [
        tokenizer.eos_token_id,
        *(listed if isinstance(listed, list | tuple) else [listed]),
        _end_of_turn(tokenizer),
    ]
    return tuple(dict.fromkeys(int(i) for i in candidates if i is not None))


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token with which the chat template ends an answer, if there is a template and it does."""
    try:
        text = _two_turns(tokenizer).rstrip()
    except _TEMPLATE_FAULTS:  # it wants another conversation; what it ends with is not known
        return None
    if not text:
        return None
    last = tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    return int(last) if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None


def _two_turns(tokenizer: Any) -> str:
    """A question and an answer as the chat template renders them; "" where there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def compatibility_warnings(teacher_tokenizer: Any, student_tokenizer: Any) -> list[str]:
    """What may go wrong between two tokenizers of one vocabulary, a sentence each; empty where nothing does."""
    warnings = []
    if teacher_tokenizer.eos_token_id != student_tokenizer.eos_token_id:
        warnings.append(
            f"the teacher ends with {teacher_tokenizer.eos_token!r} and the student with {student_tokenizer.eos_token!r}: "
            "the student learns the teacher's; set eos_token in one of the two tokenizers if that is not meant"
        )
    if teacher_tokenizer.chat_template != student_tokenizer.chat_template:
        warnings.append(
            "the teacher and the student have different chat templates: both will read the student's; "
            "a teacher tuned on its own template may answer worse"
        )
    return warnings


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, tied ones counted once."""
    return sum(num_weights(parameter) for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters as they stand, tied ones counted once: the size on disk but for a header."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _base_and_adapter(config: ModelConfig) -> tuple[ModelConfig, Adapter | None]:
    """The model whose weights are read, and what is merged into it.

    What holds an adapter_config.json must not get as far as transformers, which follows it to whatever model it names.
    """
    if config.model.endswith(".gguf"):
        own = None
    else:
        _check_place(config.model)
        own = find_adapter(config.model, config.revision)
    if own is None:
        return config, None if config.adapter is None else _named_adapter(config.adapter)
    if config.adapter is not None:
        raise ModelError(f"{config.model}: is an adapter itself; name its base as `model` and one of the two as `adapter`")
    if any(find_file(config.model, file, config.revision) for file in ("model.safetensors", "model.safetensors.index.json")):
        raise ModelError(f"{config.model}: holds a model and an adapter; move the adapter to a folder of its own, as `adapter`")
    if not own.base:
        raise ModelError(f"{config.model}: does not say which model it adapts; name that as `model` and this as `adapter`")
    base = ModelConfig(model=own.base, revision=own.revision, dtype=config.dtype)
    _check_place(base.model)
    if find_adapter(base.model, base.revision) is not None:
        raise ModelError(f"{config.model}: its base {base.model} is an adapter as well; merge that into its own base first")
    return base, own


def _named_adapter(name: str) -> Adapter:
    _check_place(name)
    adapter = find_adapter(name, None)
    if adapter is None:
        raise ModelError(f"{name}: holds no adapter_config.json; `adapter` names a LoRA adapter saved by PEFT")
    return adapter


def _read_weights(config: ModelConfig, source: dict[str, Any], options: dict[str, Any]) -> Any:
    """The model as its files have it, or as bitsandbytes reads them; every weight of it has been found."""
    with _one_line(config.model):
        if "gguf_file" in source:
            source |= _dequantised()
        else:
            source["config"] = AutoConfig.from_pretrained(**source, trust_remote_code=False)
            # A config.json must not choose which kernels are downloaded and run.
            source["config"]._attn_implementation = source["config"]._experts_implementation = None
        model, report = AutoModelForCausalLM.from_pretrained(
            **source,
            **options,
            dtype=_DTYPES[config.dtype],
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # transformers fills absent weights with random ones and only logs it.
    absent = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{config.model}: {len(absent)} weights are missing or of another shape, first {absent[0]}; "
            "fetch the model again, or name one whose weights fit its config.json"
        )
    if "gguf_file" in source:
        model.name_or_path = model.config.name_or_path = ""  # the file's folder is no model that anyone could load
    return model


def _compute_dtype(config: ModelConfig) -> torch.dtype:
    """What products with quantised weights are computed in."""
    return torch.float32 if config.dtype == "float32" else torch.bfloat16


def _check_sentencepiece(name: str, revision: str | None) -> None:
    """Name what is missing for a tokenizer that is a SentencePiece file alone, as OpenLLaMA's is; transformers misnames it."""
    with contextlib.suppress(ModuleNotFoundError):  # google, of which protobuf is a part
        if importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google.protobuf"):
            return
    if name.endswith(".gguf") or find_file(name, "tokenizer.json", revision) is not None:
        return
    if find_file(name, "tokenizer.model", revision) is not None:
        raise ModelError(
            f"{name}: its tokenizer is a SentencePiece file (tokenizer.model), which needs two more packages; "
            "pip install 'redistill[sentencepiece]'"
        )


def _locate(config: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`; a path never falls through to the hub, where anyone may own its name."""
    path = Path(config.model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"{config.model}: no such file; name a .gguf file, a folder, or a hub model")
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(f"{config.model}: reading GGUF needs the gguf package; pip install 'redistill[gguf]'")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir():
        _check_folder(config.model, path)
        return {"pretrained_model_name_or_path": str(path)}
    _check_place(config.model)
    return {"pretrained_model_name_or_path": config.model, "revision": config.revision or "main"}


def _dequantised() -> dict[str, Any]:
    """What makes transformers unpack a GGUF file's weights; releases before GgufConfig always do."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


def _check_place(name: str) -> None:
    """Refuse a path that is no folder."""
    path = Path(name).expanduser()
    if not path.is_dir() and (path.exists() or _looks_like_a_path(name)):
        raise ModelError(f"{name}: no such folder; name a model folder, a .gguf file, or a hub model as owner/name")


def _looks_like_a_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or "\\" in name
        or Path(name).is_absolute()
    )


def _check_folder(name: str, folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{name}: holds no config.json; name a folder written by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{name}: holds no .safetensors file; pickled weights are not read, convert them with save_pretrained")


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what the libraries raise about a model into one line that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{name}: cannot be loaded ({said[:300]}); check the name, the network, and that the folder is complete"
        ) from error
