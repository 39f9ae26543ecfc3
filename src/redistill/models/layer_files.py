"""A student of some layers of a teacher, read from the files of the teacher.

Only the weights of the chosen layers, and those outside of the layers, are read.  The memory of the other layers is not needed,
as it is for `initialise.student_from_layers`, which copies from a loaded teacher.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GenerationConfig

from redistill.interfaces import CausalModel, ModelSettings
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


def student_from_files(source: ModelConfig, layers: int | tuple[int, ...]) -> CausalModel | None:
    """Read a student from the files of a teacher, without its other layers.

    Args:
        source: The teacher.
        layers: Number or indices of the layers; see `InitialiseConfig`.

    Returns:
        A student with the weights of `student_from_layers`, in eval mode on the CPU.  None if the files of this teacher cannot
        be read in parts: a GGUF file, an adapter, the dtype "auto", a multimodal model, or a family whose weights have other
        names in files.

    Raises:
        ConfigError: the teacher does not have all of `layers`.
        ModelError: a file is damaged, the family's config cannot be shortened, or a weight is not finite.
    """
    base, adapter = base_and_adapter(source)
    if adapter is not None or base.model.endswith(".gguf") or source.dtype == "auto":
        return None
    settings = read_config(source)
    # A config.json must not select kernels to be downloaded and run.
    settings._attn_implementation = settings._experts_implementation = None
    if settings.get_text_config() is not settings:
        return None
    chosen = InitialiseConfig(layers=layers).indices(settings.num_hidden_layers)
    short = shortened_config(settings, chosen)
    with one_kind_of_error(settings, chosen), torch.device("meta"):
        student, teacher = (AutoModelForCausalLM.from_config(config) for config in (short, settings))
    check_layers(student, teacher, chosen)
    name, _ = layer_list(student)
    with checked_model(base.model, base.revision, downloads=True) as checked:
        paths = sorted(checked.folder.glob("*.safetensors"))  # the checked folder has no other weights than the model's
        with reading(f"{source.model}: its weights", "the files may be cut or damaged: download them again"):
            weights = dict(_weights(paths, name.rpartition(".")[2], chosen))
            model = _filled(type(student), short, weights, _DTYPES[source.dtype])
        if model is None:
            return None
        if (checked.folder / GENERATION_CONFIG).is_file():
            what = f"{source.model}: {GENERATION_CONFIG}"
            fields = json_object(what, checked.folder / GENERATION_CONFIG, "restore or remove it")
            model.generation_config = GenerationConfig.from_dict(fields)
    keep_trainable(model)
    check_values(source.model, model)
    check_split(model, name=source.model)
    check_cache(model, name=f"initialise.layers = {list(chosen)}", remedy="choose other layers")
    return model.eval()


def _weights(paths: list[Path], name: str, chosen: tuple[int, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the memory-mapped weights of the chosen layers with the student's names, and those outside of the layers.

    `name` is the name of the layer list, such as "layers".
    """
    pattern = re.compile(rf"((?:^|.*?\.){re.escape(name)}\.)(\d+)(\..*)")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                match = pattern.fullmatch(key)
                if match is None:
                    yield key, file.get_tensor(key)
                elif int(match[2]) in chosen:
                    yield f"{match[1]}{chosen.index(int(match[2]))}{match[3]}", file.get_tensor(key)


def _filled(
    family: type[CausalModel], settings: ModelSettings, weights: dict[str, torch.Tensor], dtype: torch.dtype
) -> CausalModel | None:
    """Return a model of a family with these weights; None if a weight is missing or has another shape."""
    model, report = family.from_pretrained(
        None,
        config=settings,
        state_dict=weights,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return None if report["missing_keys"] or report["mismatched_keys"] else model
