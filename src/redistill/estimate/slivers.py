"""Models of the real widths and one or three layers, random: what a whole one costs is affine in its layers."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from redistill.config.run import Run
from redistill.config.sections import TeacherConfig
from redistill.errors import ConfigError, ModelError
from redistill.models.families import layer_list
from redistill.models.initialise import cast_weights, fresh_model
from redistill.models.load import ModelConfig, read_config
from redistill.models.lora import LoraConfig, add_lora

SIZES = (1, 3)
"""Layers of the slivers; what both have in common is told from what a layer adds."""

# Bytes of a weight; nf4 has a scale of 8 bits for every 64 weights, and one of 32 for every 256 of those.
_QUANTISED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}

Role = Literal["student", "teacher"]


@dataclass(frozen=True)
class Blueprint:
    """A model before it has any weights.

    Args:
        config: Of transformers.
        layers: How many it will have.
        dtype: Of its weights.
        lora: Adapters that learn in place of them.
    """

    config: Any
    layers: int
    dtype: torch.dtype
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False

    @property
    def num_classes(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    def sliver(self, layers: int, seed: int, device: torch.device) -> Any:
        """The model with so many layers, weights random, on `device`."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        for name, values in list(vars(text).items()):
            if "layer" in name and isinstance(values, list | tuple) and len(values) == text.num_hidden_layers:
                setattr(text, name, list(values)[:layers])
        text.num_hidden_layers = layers
        config._attn_implementation = None
        try:
            model = fresh_model(config, seed)
            layer_list(model)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            raise ModelError(
                f"{config.model_type}: no model of {layers} layers can be made of its config "
                f"({str(error).splitlines()[0][:200]}); use another family"
            ) from error
        cast_weights(model, self.dtype)
        if self.lora is not None:
            model = add_lora(model, self.lora, seed)
        return model.to(device)


def blueprints(run: Run) -> dict[Role, Blueprint]:
    """The models of a run by their configs; a fine-tuned copy has the shape of what is fine-tuned.

    Raises:
        ModelError: a config cannot be had.
        ConfigError: fewer layers than the student is to have.
    """
    found: dict[Role, Blueprint] = {}
    if isinstance(run.teacher, TeacherConfig):
        found["teacher"] = _blueprint(run.teacher)
    source = run.student
    base = found["teacher"] if source.model == "teacher" else _blueprint(source)
    layers = base.layers if source.initialise is None else len(source.initialise.indices(base.layers))
    # As assembly.load_models casts it: a student has float32 weights unless it asks for bfloat16.
    dtype = torch.bfloat16 if source.dtype == "bfloat16" else torch.float32
    found["student"] = Blueprint(base.config, layers, dtype, source.lora, source.gradient_checkpointing)
    return found


def _blueprint(config: ModelConfig) -> Blueprint:
    found = read_config(config)
    own = getattr(found, "dtype", None) or torch.float32
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": own}[config.dtype]
    layers = getattr(found.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise ConfigError(f"{config.model}: its config does not say how many layers it has; use a causal language model")
    return Blueprint(found, layers, dtype)


@dataclass(frozen=True)
class Affine:
    """A cost that grows with the number of layers by the same amount each.

    Example:
        >>> Affine.of({1: 10.0, 3: 14.0}).at(30)
        68.0
    """

    first: float
    each: float

    @classmethod
    def of(cls, found: Mapping[int, float]) -> "Affine":
        """Through the costs of two numbers of layers."""
        (few, low), (many, high) = sorted(found.items())
        each = max(0.0, (high - low) / (many - few))  # noise may make three layers faster than one
        return cls(low - (few - 1) * each, each)

    def at(self, layers: int) -> float:
        return self.first + (layers - 1) * self.each


@dataclass(frozen=True)
class Costs:
    """A model's costs by name, for its number of layers; a cost that it does not have is 0."""

    found: Mapping[str, Affine]
    layers: int

    def __getitem__(self, name: str) -> float:
        return self.found[name].at(self.layers) if name in self.found else 0.0

    def layer(self, name: str) -> float:
        """What one layer has of it."""
        return self.found[name].each if name in self.found else 0.0


def sizes(model: nn.Module, lora: LoraConfig | None, autocast: bool) -> dict[str, float]:
    """What a sliver's weights take.

    Returns:
        parameters and trained (numbers of weights), weights, gradients and packed (bytes; packed is what a copy of all linear
        layers below the head takes while the model writes).
    """
    quantised = _quantised_bytes(model, lora)
    learns = [p for p in model.parameters() if p.requires_grad]
    linear = [m.weight for m in _linear(model)]
    width = 2 if autocast else None
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in learns),
        "weights": sum(p.nbytes for p in model.parameters()) - quantised,
        "gradients": sum(p.nbytes for p in learns),
        "packed": 0 if quantised else sum(w.numel() * (width or w.element_size()) for w in linear),
    }


def parameters(costs: Mapping[Role, Costs]) -> dict[str, int]:
    """Numbers of weights by model, and of those that learn."""
    found = {str(role): round(cost["parameters"]) for role, cost in costs.items()}
    return {**found, "trained": round(costs["student"]["trained"])}


def _linear(model: nn.Module) -> list[Any]:
    return [module for module in layer_list(model)[1].modules() if type(module) in (nn.Linear, Conv1D)]


def _quantised_bytes(model: nn.Module, lora: LoraConfig | None) -> float:
    """Bytes that quantising the base's linear layers saves."""
    if lora is None or lora.quantise == "none":
        return 0.0
    base = [m.weight for m in _linear(model) if not m.weight.requires_grad]
    return sum(w.nbytes - w.numel() * _QUANTISED[lora.quantise] for w in base)


@contextmanager
def autocast_of(run: Run, device: torch.device) -> Iterator[None]:
    """What the accelerator's autocast is in the run."""
    with torch.autocast(device.type, torch.bfloat16, enabled=run.training.precision == "bf16"):
        yield
