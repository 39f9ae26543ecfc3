"""Builds a model from some layers of a source model, read from its files.

Only the weights of the chosen layers, and the weights outside of all layers (such as embeddings and head), are read.  The other
layers need no memory.  In contrast, `initialise.student_from_layers` copies layers from a teacher that is loaded as a whole.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from redistill.interfaces import CausalModel, ModelSettings
from redistill.models.attention import Attention, use_attention
from redistill.models.caches import check_cache
from redistill.models.checked_model import checked_model
from redistill.models.families import check_split, layer_list
from redistill.models.initialise import InitialiseConfig
from redistill.models.load import ModelConfig, base_and_adapter, read_config
from redistill.models.quantised import keep_trainable
from redistill.models.reading import json_object, reading
from redistill.models.shorten import check_layers, one_kind_of_error, shortened_config
from redistill.models.snapshots import GENERATION_CONFIG
from redistill.models.values import check_values

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class LayerFiles:
    """The weight files of a model, from which single layers are read.

    Create an instance with `layer_files`.

    Args:
        name: Name of the model, for messages.
        folder: The checked folder of the files.
        settings: The config of the model.
        whole: The model without weights, on the device "meta".
        dtype: dtype of the weights in memory.
        attention: Attention implementation of the models that are read; None for the default of the family.
    """

    name: str
    folder: Path
    settings: ModelSettings
    whole: CausalModel
    dtype: torch.dtype
    attention: Attention | None = None

    @property
    def num_layers(self) -> int:
        """Number of layers of the model."""
        return self.settings.num_hidden_layers

    def read(self, chosen: tuple[int, ...], outside: Mapping[str, torch.Tensor] | None = None) -> CausalModel | None:
        """Read a model that consists of some of the layers.

        Args:
            chosen: Indices of the layers.
            outside: The weights outside of all layers, from a model that an earlier call returned; both models then share
                these weights.  If None, these weights are read from the files.

        Returns:
            The model in eval mode on the CPU.  None if the family's weights have other names in files than in memory.

        Raises:
            ModelError: a file is damaged, or the family does not allow a model of these layers.
        """
        layers = layer_list(self.whole)[0].rpartition(".")[2]
        paths = sorted(self.folder.glob("*.safetensors"))  # the checked folder has no other weights than the model's
        with reading(f"{self.name}: its weights", "the files may be cut or damaged: download them again"):
            weights = dict(_weights(paths, layers, chosen, skips_others=outside is not None))
            return self.with_weights(chosen, weights | dict(outside or {}))

    def with_weights(self, chosen: tuple[int, ...], weights: Mapping[str, torch.Tensor]) -> CausalModel | None:
        """Create a model of some of the layers from given weights.

        `read` describes the arguments, the result and the errors.
        """
        short = shortened_config(self.settings, chosen)
        with one_kind_of_error(self.settings, chosen), torch.device("meta"):
            student = AutoModelForCausalLM.from_config(short)
        check_layers(student, self.whole, chosen)
        model = _filled(type(student), short, weights, self.dtype)
        if model is None:
            return None
        if (self.folder / GENERATION_CONFIG).is_file():
            fields = json_object(f"{self.name}: {GENERATION_CONFIG}", self.folder / GENERATION_CONFIG, "restore or remove it")
            model.generation_config = GenerationConfig.from_dict(fields)
        use_attention(model, self.attention)
        return model.eval()


@contextmanager
def layer_files(source: ModelConfig) -> Iterator[LayerFiles | None]:
    """Open the files of a model whose layers are read one by one.

    Yields:
        The files, which can be read while the context is active.  None for a GGUF file, an adapter, the dtype "auto" and a
        multimodal model, because their layers cannot be read one by one.

    Raises:
        ModelError: the model is missing or incomplete, or its config is invalid.
    """
    base, adapter = base_and_adapter(source)
    settings = None if adapter is not None or base.model.endswith(".gguf") or source.dtype == "auto" else read_config(source)
    if settings is None or settings.get_text_config() is not settings:
        yield None
        return
    # A config.json must not select kernels to be downloaded and run.
    settings._attn_implementation = settings._experts_implementation = None
    with one_kind_of_error(settings, tuple(range(settings.num_hidden_layers))), torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(settings)
    with checked_model(base.model, base.revision, downloads=True) as checked:
        yield LayerFiles(
            name=source.model,
            folder=checked.folder,
            settings=settings,
            whole=whole,
            dtype=_DTYPES[source.dtype],
            attention=source.attention,
        )


def student_from_files(source: ModelConfig, layers: int | tuple[int, ...]) -> CausalModel | None:
    """Build a student from layers of a teacher, and read only these layers.

    Args:
        source: The teacher.
        layers: Number or indices of the layers; see `InitialiseConfig`.

    Returns:
        The student, in eval mode on the CPU.  Its weights equal those of the result of `student_from_layers`.  None if
        `layer_files` yields None, or if the family's weights have other names in files than in memory.

    Raises:
        ConfigError: a layer in `layers` does not exist in the teacher.
        ModelError: a file is damaged, the family does not allow a model of these layers, or a weight is not finite.
    """
    with layer_files(source) as files:
        if files is None:
            return None
        chosen = InitialiseConfig(layers=layers).indices(files.num_layers)
        model = files.read(chosen)
        if model is None:
            return None
    keep_trainable(model)
    check_values(source.model, model)
    check_split(model, name=source.model)
    check_cache(model, name=f"initialise.layers = {list(chosen)}", remedy="choose other layers")
    return model


def _weights(
    paths: list[Path], name: str, chosen: tuple[int, ...], *, skips_others: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of the chosen layers, and the weights that belong to no layer.

    The function yields each weight with its name in the student. The weights are memory-mapped. `name` is the name of the
    layer list, such as "layers". With `skips_others`, only weights of the chosen layers are yielded.
    """
    pattern = layer_name(name)
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                match = pattern.fullmatch(key)
                if match is None and not skips_others:
                    yield key, file.get_tensor(key)
                elif match is not None and int(match[2]) in chosen:
                    yield f"{match[1]}{chosen.index(int(match[2]))}{match[3]}", file.get_tensor(key)


def layer_name(name: str) -> re.Pattern[str]:
    """Return a pattern that matches the names of the weights of layers.

    The pattern has three groups: the part before the index of the layer, the index, and the part after the index.  `name`
    is the name of the layer list, such as "layers".
    """
    return re.compile(rf"((?:^|.*?\.){re.escape(name)}\.)(\d+)(\..*)")


def _filled(
    family: type[CausalModel], settings: ModelSettings, weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> CausalModel | None:
    """Return a model of a family with the given weights.

    The result is None if a weight is missing, or if its shape does not match the model.
    """
    model, report = family.from_pretrained(
        None,
        config=settings,
        state_dict=dict(weights),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return None if report["missing_keys"] or report["mismatched_keys"] else model
