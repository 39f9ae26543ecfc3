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
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from redistill.errors import ConfigError, ModelError
from redistill.models.families import body, check_split, head, unwrapped

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

_DTYPES: dict[str, Any] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model to load, and how.

    Args:
        model: A hub name ("openai-community/gpt2"), a local folder, or the path of a .gguf file.
        revision: Branch, tag or commit of a hub model; None takes its main branch.
        dtype: Of the weights: "float32", "bfloat16", or "auto" for what the file holds.  Students are trained in float32.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.

    Raises:
        ConfigError: an empty name, or an unknown dtype.
    """

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("model = '': must be a hub name, a local folder, or a .gguf file")
        if self.dtype not in _DTYPES:
            raise ConfigError(f"dtype = {self.dtype!r}: must be one of {', '.join(_DTYPES)}; students are trained in float32")


def load_model(config: ModelConfig) -> tuple[Any, Any]:
    """The causal language model that `config` names, in eval mode on the CPU, and its tokenizer.

    Raises:
        ModelError: it is missing, incomplete, damaged, or of a family that cannot be split into body and head.
    """
    source = _locate(config)
    tokenizer = load_tokenizer(config)
    with _one_line(config):
        if "gguf_file" in source:
            source |= _dequantised()
        else:
            source["config"] = AutoConfig.from_pretrained(**source, trust_remote_code=False)
            source["config"]._attn_implementation = None  # a config.json must not choose which kernels are downloaded
        model, report = AutoModelForCausalLM.from_pretrained(
            **source,
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
    check_split(model, name=config.model)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return model, tokenizer


def load_tokenizer(config: ModelConfig) -> Any:
    """The tokenizer of the model that `config` names; one without a pad token pads with its end token.

    Which tokens are padding is decided by position everywhere, never by this id.

    Raises:
        ModelError: it is missing or damaged, or has neither a pad nor an end token.
    """
    source = _locate(config)
    with _one_line(config):
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"{config.model}: its tokenizer has neither pad_token nor eos_token; set one in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip()
    except jinja2.TemplateError:  # it wants another conversation; what it ends with is not known
        return None
    last = tokenizer(text, add_special_tokens=False)["input_ids"][-1]
    return int(last) if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None


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
    return sum(parameter.numel() for parameter in model.parameters())


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of the parameters as they stand, tied ones counted once: the size on disk but for a header."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


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
    if path.exists() or _looks_like_a_path(config.model):
        raise ModelError(f"{config.model}: no such folder; name a model folder, a .gguf file, or a hub model as owner/name")
    return {"pretrained_model_name_or_path": config.model, "revision": config.revision or "main"}


def _dequantised() -> dict[str, Any]:
    """What makes transformers unpack a GGUF file's weights; releases before GgufConfig always do."""
    config = getattr(transformers, "GgufConfig", None)
    return {} if config is None else {"quantization_config": config(dequantize=True)}


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
def _one_line(config: ModelConfig) -> Iterator[None]:
    """Turn what the libraries raise about a model into one line that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{config.model}: cannot be loaded ({said[:300]}); check the name, the network, and that the folder is complete"
        ) from error
