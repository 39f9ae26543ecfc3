"""LoRA (low-rank) adapters of a student: creation, checkpoints, export and merge.

All other parameters of the student are frozen, including the head and the embeddings. The gradient of a frozen head is not
computed.
"""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from redistill import randomness
from redistill.errors import CheckpointError, ConfigError, ModelError, check_field
from redistill.interfaces import CausalModel, Tokenizer
from redistill.models.families import layer_list, text_config, unwrapped
from redistill.models.quantised import Quantise, is_quantised, num_weights, plain_weight
from redistill.processes.placement import placed_like

Export = Literal["merged", "adapter"]

# Names of the query and value projections in different families; fused layers contain the key as well.  Latent attention has
# projections from its latent states, and state-space models one projection of their input.
_SEPARATE = (("q_proj", "v_proj"), ("query", "value"), ("q_b_proj", "kv_b_proj"), ("q_proj", "kv_b_proj"))
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    r"""Train low-rank adapters in a frozen student.

    .. math:: W' = W + \frac{\alpha}{r} B A, \qquad A \in R^{r \times D},\ B \in R^{E \times r}

    W is the frozen weight of a linear layer with D inputs and E outputs.  A is initialised at random and B with 0, so W' = W
    before training.  Source: Hu et al. (arXiv 2106.09685); the defaults are those of DistiLLM's scripts.

    Args:
        rank: The rank r of the adapters, >= 1.
        alpha: Numerator of the scaling factor alpha / r, > 0.
        dropout: Dropout probability of an adapter's inputs in training, in [0, 1).
        targets: Names of the linear layers that get an adapter. If None, the query and value projections get an adapter; in
            a state-space model, the input projections.
        quantise: "nf4" or "int8" stores the frozen base in 4 or 8 bits (QLoRA); "none" does not quantise it.
        export: "merged" saves a model with the adapters merged into its weights; "adapter" saves the adapters without the base.

    Raises:
        ConfigError: a value is out of range.

    Example:
        >>> config = LoraConfig(rank=8)
        >>> config.alpha / config.rank  # the scaling factor
        8.0
        >>> LoraConfig(dropout=1.0)
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: dropout = 1.0: must be in [0, 1); the papers use 0.1
    """

    rank: int = 16
    alpha: float = 64.0
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None
    quantise: Quantise = "none"
    export: Export = "merged"

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("rank", self.rank >= 1, ">= 1; the papers use 16"),
            ("alpha", 0 < self.alpha < float("inf"), "> 0 and finite; the papers use 64"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1); the papers use 0.1"),
            ("quantise", self.quantise in get_args(Quantise), f"one of {', '.join(get_args(Quantise))}"),
            ("export", self.export in get_args(Export), f"one of {', '.join(get_args(Export))}"),
            ("targets", self.targets is None or len(self.targets) > 0, "names of layers, or null for query and value"),
        ):
            check_field(self, name, good, f"must be {allowed}")

    @classmethod
    def examples(cls) -> tuple["LoraConfig", ...]:
        """Return instances of this class with different settings, for tests."""
        return (cls(), cls(rank=2, alpha=4.0, dropout=0.0, export="adapter"))


def add_lora(model: CausalModel, config: LoraConfig, seed: int) -> CausalModel:
    """Freeze `model` and add trainable adapters in float32.

    Args:
        model: A causal language model on the CPU, which may be quantised; its layers are changed in place.
        config: Settings of the adapters.
        seed: Seed of the run, which determines the initial values of the adapters.

    Returns:
        The PEFT model that wraps `model`; its training mode is unchanged.

    Raises:
        ConfigError: a target is not a linear layer of the model.
    """
    import peft  # takes a second

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=_target_modules(model, config.targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in _linear_layers(model).values()),
        task_type="CAUSAL_LM",
        revision=getattr(text_config(model), "_commit_hash", None),
    )
    training = model.training
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT uses a deprecated name of transformers
        torch.default_generator.manual_seed(randomness.torch_seed(seed, "lora"))
        return cast(CausalModel, peft.get_peft_model(model, settings).train(training))


def has_adapters(model: nn.Module) -> bool:
    """Return whether `model` is a PEFT model with adapters."""
    return unwrapped(model) is not model


def lora_notes(model: nn.Module) -> list[str]:
    """Return log lines that describe the adapters of a model returned by `add_lora`."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(num_weights(parameter) for parameter in model.parameters())
    names = sorted({path.rpartition(".")[2] for path in adapted_layers(model)})
    summary = f"LoRA in {', '.join(names)}: {trained:,} of {total:,} weights are trained ({trained / total:.2%})"
    fused = "computes query, key and value with one matrix, so the adapters change the key too"
    return [summary, *(f"{name} {fused}" for name in names if name in _FUSED)]


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have an adapter, by their path in `unwrapped(model)`."""
    return {path: module for path, module in unwrapped(model).named_modules() if hasattr(module, "lora_A")}


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of `model` that a checkpoint contains, by name.

    For a model with adapters, the result contains only the adapters. For any other model, the result is its state dict, with
    the parameters themselves instead of copies, so that tied parameters are the same object. Sharded tensors stay sharded;
    `placement.full` collects the shards.
    """
    if not has_adapters(model):
        return model.state_dict(keep_vars=True)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def load_trainable_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy the tensors of a checkpoint into a model, in place.

    `trainable_state` returned these tensors for a model of the same structure. If the model is sharded, each process loads only
    its own shard of each tensor.

    Args:
        model: The model, which may be sharded.
        tensors: Unsharded tensors by name, the same in every process.

    Raises:
        CheckpointError: `tensors` are adapters of other layers or of another rank.
    """
    if not has_adapters(model):
        here = model.state_dict()
        model.load_state_dict({name: placed_like(tensor, here.get(name, tensor)) for name, tensor in tensors.items()})
        return
    here = trainable_state(model)
    odd = sorted(here.keys() ^ tensors.keys()) or [name for name in here if here[name].shape != tensors[name].shape]
    if odd:
        raise CheckpointError(
            f"checkpoint: its adapters differ from this run's ({len(odd)} names or shapes, first {odd[0]}); "
            "set student.lora as in the checkpoint, or start in a new folder"
        )
    for name, parameter in here.items():
        parameter.copy_(placed_like(tensors[name], parameter))


def save_student(
    model: CausalModel,
    tokenizer: Tokenizer,
    folder: Path,
    export: Export = "merged",
    *,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Save `model` and its tokenizer to a folder.

    The model is not changed, so that training can continue afterwards.

    Args:
        model: The student, with or without adapters.
        tokenizer: The tokenizer, which is saved to the same folder.
        folder: Path of the folder, which must exist.
        export: "merged" saves a model that transformers can load, with merged adapters and dequantised weights; "adapter" saves
            only the adapters, in the format of PEFT. A model without adapters is always saved as a whole.
        state: The result of `trainable_state`, with unsharded tensors. It is required for a sharded model, whose own state
            dict contains shards even inside `Placement.unsharded`. If None, the model's own state dict is saved.

    Raises:
        ModelError: `export` is "adapter", but there is no name by which the base model could be loaded.
    """
    if not has_adapters(model):
        model.save_pretrained(folder, state_dict=state)
    elif export == "merged":
        merged_copy(model).save_pretrained(folder)
    elif unwrapped(model).name_or_path:
        # The embeddings have no adapters; with the default "auto", PEFT would query the hub for the base's vocabulary.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    else:
        raise ModelError(
            "export = 'adapter': the base model has no name that its adapters could refer to, since this run built it from "
            "layers, a GGUF file or another adapter; use export: merged"
        )
    tokenizer.save_pretrained(folder)


def merged_copy(model: nn.Module, *, untied: bool = False) -> CausalModel:
    """Return a copy of `model` with merged adapters; the copy can only be saved.

    Weights of layers without an adapter share memory with `model`. The copy cannot compute a forward pass, because its
    non-persistent buffers are on the device "meta".

    Args:
        model: A model with or without adapters.
        untied: True if the head of the copy must not be tied to its input embedding. If False, the head is tied as in
            `model`.

    Returns:
        A model of the same class as `unwrapped(model)`, with the same dtype and device.
    """
    plain = unwrapped(model)
    config = copy.deepcopy(plain.config)
    if is_quantised(plain):
        del vars(config)["quantization_config"]
    if untied:
        for part in (config, config.get_text_config()):
            setattr(part, "tie_word_embeddings", False)  # noqa: B010 - not every family declares the field
    with torch.device("meta"):
        merged = type(plain)(config)
    adapted = adapted_layers(model)
    weights = {name: _weight(plain, adapted, name) for name in merged.state_dict()}
    if untied:  # `save_pretrained` saves tensors that share memory only once
        head = next(f"{path}.weight" for path, part in merged.named_modules() if part is merged.get_output_embeddings())
        weights[head] = weights[head].clone()
    merged.load_state_dict(weights, assign=True)
    merged.tie_weights()
    merged.generation_config = copy.deepcopy(plain.generation_config)
    return merged


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers in the layer list, by path in `unwrapped(model)`."""
    path, layers = layer_list(model)
    linear = {name: module for name, module in layers.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return {f"{path}.{name}": module for name, module in linear.items()}


def _target_modules(model: nn.Module, wanted: tuple[str, ...] | None) -> list[str]:
    """Choose the layers that get an adapter, and return their names for PEFT.

    `wanted` contains the last parts of the paths of these layers, such as "q_proj". If it is None, the query and value
    projections are chosen. If other modules have one of these names, for example in a vision encoder, the function returns
    full paths.
    """
    linear = _linear_layers(model)
    there = {path.rpartition(".")[2] for path in linear}
    if wanted is None:
        sets = (*_SEPARATE, *((name,) for name in _FUSED))
        wanted = next((names for names in sets if there.issuperset(names)), None)
    absent = sorted(set(wanted or ()) - there)
    if wanted is None or absent:
        what = "the names of query and value are unknown" if wanted is None else f"{absent[0]!r} is not a linear layer"
        raise ConfigError(
            f"lora.targets: {what} in the {text_config(model).model_type} family; choose from {', '.join(sorted(there))}"
        )
    chosen = [path for path in linear if path.rpartition(".")[2] in wanted]
    same_name = [path for path, _ in unwrapped(model).named_modules() if path.rpartition(".")[2] in wanted]
    return sorted(wanted) if len(same_name) == len(chosen) else chosen


@torch.no_grad()
def _weight(plain: CausalModel, adapted: Mapping[str, Any], name: str) -> torch.Tensor:
    """Compute the tensor `name` of the merged model from the base and its adapters."""
    path, _, leaf = name.rpartition(".")
    layer = adapted.get(path)
    base = plain.get_submodule(path) if layer is None else layer.base_layer
    tensor: torch.Tensor = getattr(base, leaf)
    if leaf != "weight":
        return tensor.detach()
    whole = plain_weight(base)
    if layer is not None:
        whole = whole.float() + sum(layer.get_delta_weight(adapter).float() for adapter in layer.active_adapters)
    return whole.to(tensor.dtype if tensor.is_floating_point() else plain.dtype)
