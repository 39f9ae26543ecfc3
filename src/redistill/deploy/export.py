"""Export of a student to a folder that other programs read.

The folder is written atomically, with a model card. The folder contains weights, settings and tokenizers, but no code. Models
that need code of their own cannot be loaded.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from redistill.deploy.adapter import write_adapter
from redistill.deploy.families import UnsupportedError, context_length
from redistill.deploy.gguf_file import Dtype, check_float16, write_gguf
from redistill.deploy.hub import HubApi, check_push, push
from redistill.deploy.licences import licences_of
from redistill.deploy.modelfile import modelfile, pieces_of
from redistill.deploy.source import Source, find_source, tokens_for
from redistill.errors import ConfigError, ModelError, OutputError
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.initialise import cast_weights
from redistill.models.load import end_token_ids, load_model
from redistill.models.lora import merged_copy
from redistill.reports.card import model_card
from redistill.runs.templates import tokens_of, write_tokens
from redistill.storage import files, folders
from redistill.storage.paths import check_path

Target = Literal["transformers", "vllm", "adapter", "gguf", "ollama"]
TARGETS: tuple[Target, ...] = get_args(Target)
GGUF_NAME, CARD = "model.gguf", "README.md"
_DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model.

    Args:
        folder: The folder.
        files: Names of the files in the folder, in alphabetical order.
        notes: Notes for the user, such as settings that other programs treat differently.
        command: Command line that uses the folder.
        url: Address of the repository on the hub; None if nothing was uploaded.
    """

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]
    command: str
    url: str | None = None


def export(
    name: str,
    target: Target,
    out: Path | None = None,
    *,
    dtype: Dtype | None = None,
    repository: str | None = None,
    api: HubApi | None = None,
    allow_code: Sequence[str] = (),
) -> Exported:
    """Export the student of a run, or another model, to a folder.

    Args:
        name: A run folder, or the name of a model, as in `find_source`.
        target: "transformers" writes safetensors, also for vLLM. "vllm" writes safetensors for servers that receive new weights
            during a run (the engine vllm); the output head is stored separately from the input embedding. "adapter" writes LoRA
            adapters in the format of PEFT. "gguf" writes a GGUF file for llama.cpp. "ollama" also writes a Modelfile.
        out: The folder to write, which must be new or empty.  If None, the folder is `export/TARGET` in the run folder, or
            `exports/NAME-TARGET` for a model without a run. An earlier export in this folder is then replaced.
        dtype: dtype of the weights. If None, "transformers" and "vllm" keep the dtype of the model's files, and GGUF files have
            float16.
        repository: Repository of the hub to upload the folder to, as owner/name; None uploads nothing.
        api: The client of the hub; if None, it is created with the token of this user.
        allow_code: Modules that may be imported for external components of the run's recipe. Only the target "adapter" needs
            them.

    Returns:
        The folder, its files, notes for the user, and a command line that uses the folder.

    Raises:
        ConfigError: `repository` is not a valid name, nothing can be uploaded, or `dtype` is given for "adapter".
        CheckpointError: the run has no trained student, or its files are damaged.
        ModelError: the model cannot be loaded, it has no adapters, or its family or tokenizer cannot be written as GGUF.  In
            the last case, the message contains command lines that convert the model with llama.cpp.
        OutputError: the folder is not empty, or it cannot be written or uploaded.
    """
    if target == "adapter" and dtype is not None:
        raise ConfigError(f"--dtype {dtype}: adapters are exported in float32; omit --dtype")
    if repository is not None:
        check_push(repository)
    source = find_source(name)
    folder = _default_folder(source, target) if out is None else out
    check_path(folder)
    if out is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: exists; must be a new or an empty folder; choose another --out, or remove this one")
    with folders.new_folder(folder.absolute()) as made:
        if target == "adapter":
            notes = write_adapter(source, made, allow_code)
        elif target in ("transformers", "vllm"):
            notes = _write_transformers(source, made, dtype, untied=target == "vllm")
        else:
            notes = _write_gguf(source, made, target, dtype or "f16")
        card = model_card(source.run, source.label, target=target, licences=licences_of(source))
        files.write_text(made / CARD, card)
    written = tuple(sorted(path.name for path in folder.iterdir()))
    exported = Exported(folder=folder, files=written, notes=tuple(notes), command=_command(folder, target, source))
    return exported if repository is None else replace(exported, url=push(folder, repository, api))


def _write_transformers(source: Source, folder: Path, dtype: Dtype | None, *, untied: bool) -> list[str]:
    model, tokenizer = load_model(source.config)
    if dtype is not None:
        _cast(source, model, dtype)
    (merged_copy(model, untied=True) if untied else model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if source.run is not None:
        write_tokens(folder, tokens_of(str(source.run)))
    return []


def _write_gguf(source: Source, folder: Path, target: Target, dtype: Dtype) -> list[str]:
    """Write a GGUF file, and for Ollama a Modelfile; return notes for the user."""
    model, tokenizer = load_model(source.config)
    try:
        write_gguf(folder / GGUF_NAME, model, tokenizer, label=source.label, dtype=dtype)
    except UnsupportedError as error:
        raise ModelError(f"{source.name}: {error}; convert the model with llama.cpp: {_converter(source, dtype)}") from error
    notes = []
    if (length := context_length(model.config)) < model.config.max_position_embeddings:
        notes.append(f"llama.cpp has no sliding window for this family, so the file limits texts to {length} tokens")
    if target == "ollama":
        notes += _write_modelfile(source, folder, model, tokenizer)
    elif not tokenizer.chat_template:
        notes.append("the tokenizer has no chat template; send complete prompts: the chat of llama.cpp uses another template")
    return notes


def _write_modelfile(source: Source, folder: Path, model: CausalModel, tokenizer: Tokenizer) -> list[str]:
    tokens = tokens_for(source, tokenizer)
    pieces = pieces_of(tokenizer, tokens.template, tokens.chat)
    stops = [tokenizer.decode([number]) for number in end_token_ids(model, tokenizer)]
    files.write_text(folder / "Modelfile", modelfile(GGUF_NAME, pieces, stops))
    if pieces is None:
        return ["Ollama cannot use the chat template and selects another one; see `ollama show --modelfile`"]
    if pieces.before_system is None:
        return ["the chat template does not render system messages; Ollama ignores them for this model"]
    return []


def _cast(source: Source, model: CausalModel, dtype: Dtype) -> None:
    if dtype == "f16":
        for name, weight in model.named_parameters():
            check_float16(source.name, name, weight)
    cast_weights(model, _DTYPES[dtype])


def _default_folder(source: Source, target: Target) -> Path:
    if source.run is not None:
        return source.run / "export" / target
    return Path("exports") / files.slug(f"{source.label}-{target}")


def _converter(source: Source, dtype: Dtype) -> str:
    """Return the command lines that convert a model with llama.cpp."""
    folder = shlex.quote(str(_default_folder(source, "transformers")))
    first = f"redistill export {shlex.quote(source.name)} --to transformers"
    return f"{first} && python convert_hf_to_gguf.py {folder} --outfile {GGUF_NAME} --outtype {dtype}"


def _command(folder: Path, target: Target, source: Source) -> str:
    """Return a command line that uses an exported folder."""
    name, label = shlex.quote(str(folder)), files.slug(source.label).lower()
    commands: dict[Target, str] = {
        "transformers": f"vllm serve {name}",
        "vllm": f"VLLM_SERVER_DEV_MODE=1 vllm serve {name} --served-model-name student --host 127.0.0.1",
        "adapter": f"redistill chat {name}",
        "gguf": f"llama-cli -m {shlex.quote(str(folder / GGUF_NAME))}",
        "ollama": f"ollama create {label} -f {shlex.quote(str(folder / 'Modelfile'))} && ollama run {label}",
    }
    return commands[target]
