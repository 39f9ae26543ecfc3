"""Builds models with the widths of the run's models, but few layers.

Their weights are random.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from redistill.config.run import Run
from redistill.config.sections import StudentConfig, TeacherConfig
from redistill.errors import ConfigError, ModelError, first_line
from redistill.estimate.recorder import Role
from redistill.interfaces import CausalModel, ModelSettings
from redistill.models.attention import use_attention
from redistill.models.families import layer_list
from redistill.models.initialise import cast_weights, fresh_model
from redistill.models.load import ModelConfig, load_tokenizer, read_config
from redistill.models.lora import add_lora
from redistill.models.recompute import checkpoint_activations
from redistill.models.shorten import shortened_config

# Bytes of a weight; nf4 has a scale of 8 bits for every 64 weights, and a scale of 32 bits for every 256 scales.
_QUANTISED = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


class Blueprint(NamedTuple):
    """Configuration of a model of the run, without weights.

    Args:
        config: The transformers config of the model.
        layers: Number of layers that the model has in the run.
        source: Settings with which the run loads the model.
    """

    config: ModelSettings
    layers: int
    source: ModelConfig

    def shallow(self, layers: int, seed: int) -> CausalModel:
        """Build the model with this number of layers and random weights, on the CPU.

        The model has the dtype, the LoRA adapters and the activation checkpointing that `runs.models.load_models` sets.

        Raises:
            ModelError: transformers cannot create a model from the config with this number of layers.
        """
        config, source = shortened_config(self.config, tuple(range(layers))), self.source
        config._attn_implementation = None
        try:
            model: CausalModel = fresh_model(config, seed)
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            fault = f"its config cannot be shortened to {layers} layers ({first_line(error)[:200]})"
            raise ModelError(f"{config.model_type}: {fault}; use a model of another family") from error
        dtype = torch.bfloat16 if source.dtype == "bfloat16" else torch.float32
        if source.dtype == "auto" and not isinstance(source, StudentConfig):
            dtype = getattr(self.config, "dtype", None) or dtype
        cast_weights(model, dtype)
        use_attention(model, source.attention)
        if isinstance(source, StudentConfig) and source.lora is not None:
            model = add_lora(model, source.lora, seed)
        if source.gradient_checkpointing:
            checkpoint_activations(model)
        return model

    def empty(self, seed: int) -> CausalModel:
        """Build the model with all layers and without weights, on the device "meta".

        Raises:
            ModelError: transformers cannot create a model from the config with this number of layers.
        """
        with torch.device("meta"):
            return self.shallow(self.layers, seed)

    def bytes_saved(self, model: nn.Module) -> float:
        """Return the number of bytes that quantisation of the model's weights saves.

        `model` is the model without quantisation.  The result is 0 if the run does not quantise the model.
        """
        lora = self.source.lora if isinstance(self.source, StudentConfig) else None
        quantise = self.source.quantise if isinstance(self.source, TeacherConfig) else None if lora is None else lora.quantise
        if quantise is None or quantise == "none":
            return 0.0
        layers = (layer for layer in layer_list(model)[1].modules() if type(layer) in (nn.Linear, Conv1D))
        weights = (weight for layer in layers for name, weight in layer.named_parameters() if name == "weight")
        return sum(
            base.nbytes - base.numel() * _QUANTISED[quantise] for base in weights if lora is None or not base.requires_grad
        )


def blueprints(run: Run) -> dict[Role, Blueprint]:
    """Return the configuration of the student, and of the teacher if it is loaded.

    Only config and tokenizer are read, no weights.

    If a model is fine-tuned before the run, the config is that of the original model.

    Raises:
        ModelError: a config is missing or damaged.
        ConfigError: a config does not state its number of layers, or the recipe selects layers that the model does not have.
    """
    sources: dict[Role, ModelConfig] = {"student": run.student}
    if isinstance(run.teacher, TeacherConfig) and run.teacher.is_loaded:
        sources["teacher"] = run.teacher
    found: dict[Role, Blueprint] = {}
    for role, source in sources.items():
        base = source
        if source.model == "teacher":
            assert isinstance(run.teacher, TeacherConfig), "checked when the recipe is read"
            base = run.teacher
        config = read_config(base)
        load_tokenizer(base)  # a run would detect a damaged tokenizer only later
        layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if not isinstance(layers, int) or layers < 1:
            raise ConfigError(f"{base.model}: its config does not state its number of layers; use a causal language model")
        if isinstance(source, StudentConfig) and source.initialise is not None:
            layers = len(source.initialise.indices(layers))
        found[role] = Blueprint(config, layers, source)
    return found
