"""The config of a student that consists of some layers of a teacher.

Configs describe layers in different ways: by lists with one entry per layer, lists of layer indices, the number of dense
layers at the start, or the period of a repeated pattern. `shortened_config` converts these fields, so that each layer of
the student is described like the teacher's layer that it is copied from. `check_layers` raises an error if a layer of the
student differs from that layer of the teacher.  This happens if the config has a field for layers that this module does not
convert.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from redistill.errors import ModelError, first_line
from redistill.interfaces import ModelSettings
from redistill.models.families import layer_list, unwrapped

_LISTS = ("layer", "pattern", "intermediate_size")  # a list that describes layers has one of these in its name
_LEADING = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")
_TRAILING = ("num_kv_shared_layers",)
_DESCRIBES_LAYERS = ("layer", "dense", "sparse", "period", "offset", "interval", "pattern", "shared", "block")
# Attributes of a layer that depend on its index, or on the layers that follow.
_OWN = ("idx", "index", "layer_id", "training", "store_full_length_kv")


def shortened_config(settings: ModelSettings, chosen: tuple[int, ...]) -> ModelSettings:
    """Return the config of a student that consists of some layers of a teacher.

    Args:
        settings: The config of the teacher; it is not changed.
        chosen: Indices of these layers in the teacher.

    Raises:
        ModelError: transformers rejects the config that has only the chosen layers.
    """
    config = copy.deepcopy(settings)
    text = config.get_text_config()
    remapped = dict(_remapped(text, chosen))
    text.num_hidden_layers = len(chosen)
    config.name_or_path = ""  # adapters of this student must not name the teacher as their base
    for name, value in remapped.items():
        setattr(text, name, value)
    with one_kind_of_error(config, chosen):
        type(config).from_dict(config.to_dict())
    return config


@contextmanager
def one_kind_of_error(config: ModelSettings, chosen: tuple[int, ...]) -> Iterator[None]:
    """Context that replaces exceptions of transformers by a ModelError.

    transformers raises exceptions of several types if a model of the family cannot consist of the chosen layers. `chosen`
    contains the indices of these layers in the teacher, which the message lists.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"initialise.layers = {list(chosen)}: the {config.get_text_config().model_type} family does not support these "
            f"layers ({first_line(error)[:200]}); its config describes layers by {_fields(config)}; choose other layers"
        ) from error


def _fields(config: ModelSettings) -> str:
    """List the config fields that describe individual layers, for error messages."""
    values = vars(config.get_text_config())
    other = ("norm", "num_hidden_layers", "per_layer_input")
    kinds = [
        name for name in values if any(part in name for part in _DESCRIBES_LAYERS) and not any(part in name for part in other)
    ]
    return ", ".join(name for name in kinds if isinstance(values[name], int | list | tuple | str))


def _remapped(text: ModelSettings, chosen: tuple[int, ...]) -> Iterator[tuple[str, object]]:
    """Yield the name and the new value of each config field that describes layers.

    The new value describes only the chosen layers.
    """
    count, fields = text.num_hidden_layers, vars(text)
    step = fields.get("decoder_sparse_step") or 1
    for name, value in fields.items():
        if name == "mlp_only_layers" and step > 1:
            yield name, [j for j, i in enumerate(chosen) if i in (value or ()) or (i + 1) % step]
        elif isinstance(value, list | tuple) and any(part in name for part in _LISTS):
            if _are_indices(value, count):
                yield name, [j for j, i in enumerate(chosen) if i in value]
            elif len(value) == count:
                yield name, [value[i] for i in chosen]
        elif name in _LEADING and isinstance(value, int):
            yield name, sum(i < value for i in chosen)
        elif name in _TRAILING and isinstance(value, int):
            yield name, sum(i >= count - value for i in chosen)
        elif name == "decoder_sparse_step" and "mlp_only_layers" in fields:
            yield name, 1
        elif name == "scale_depth":  # MiniCPM divides scale_depth by the square root of the number of layers
            yield name, value * math.sqrt(len(chosen) / count)
    own = text.to_dict().get("per_layer_config")
    if isinstance(own, dict):  # fields of single layers, by index
        yield "per_layer_config", {str(j): own[str(i)] for j, i in enumerate(chosen) if str(i) in own}


def _are_indices(values: Sequence[object], count: int) -> bool:
    """Return whether a list in a config contains indices of layers.

    The alternative is a list with one value for each layer. Indices are integers below `count`, the number of layers, in
    ascending order. If `count` is at most 2, a list of `count` integers has one value for each layer.
    """
    numbers = [value for value in values if type(value) is int and 0 <= value < count]
    return len(numbers) == len(values) and numbers == sorted(set(numbers)) and not (len(values) == count <= 2)


def check_layers(student: nn.Module, teacher: nn.Module, chosen: tuple[int, ...]) -> None:
    """Check that each layer of a student has the structure of its teacher layer.

    The teacher layer of a student's layer is the layer that it was copied from.

    Args:
        student: The student.
        teacher: The teacher.
        chosen: Index of the teacher's layer for each layer of the student.

    Raises:
        ModelError: two layers differ in the shapes of their weights, the classes of their modules or their settings. The
            message names the fields of the config that describe layers.
    """
    for own, (layer, index) in enumerate(zip(layer_list(student)[1], chosen, strict=True)):
        made, wanted = _traits(layer), _traits(layer_list(teacher)[1][index])
        different = sorted(name for name in made.keys() | wanted.keys() if not _equal(made.get(name), wanted.get(name)))
        if different:
            settings = unwrapped(teacher).config
            raise ModelError(
                f"initialise.layers = {list(chosen)}: layer {own} of the student and layer {index} of the teacher "
                f"differ in {different[0]}; the config of the {settings.get_text_config().model_type} family "
                f"describes layers by {_fields(settings)}; choose other layers"
            )


def _equal(one: object, other: object) -> bool:
    """Return whether two values are equal, apart from rounding of floats."""
    return one == other or (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other))


def layer_parts(weight: torch.Tensor, like: torch.Tensor, chosen: tuple[int, ...], count: int) -> torch.Tensor:
    """Return the part of a weight that belongs to the chosen layers.

    Some families (Gemma 3n and 4) have an embedding for each layer. All of these embeddings are stacked in one weight
    outside the layers. Only the embeddings of the chosen layers are kept.

    Args:
        weight: The teacher's weight.
        like: The student's weight, whose shape the result must have.
        chosen: Indices of the chosen layers.
        count: Number of layers of the teacher.

    Returns:
        The part of the weight, or `weight` itself if the shapes are equal.
    """
    for dim, (whole, part) in enumerate(zip(weight.shape, like.shape)):
        if whole != part and whole * len(chosen) == part * count:
            weight = weight.unflatten(dim, (count, -1)).index_select(dim, torch.tensor(chosen, device=weight.device))
            weight = weight.flatten(dim, dim + 1)
    return weight


def _traits(layer: nn.Module) -> dict[str, object]:
    """Describe the structure of a layer, for comparison with another layer.

    The dict contains the class and the plain attributes of each module, and the shape of each weight, by name.
    """
    found: dict[str, object] = {name: tuple(weight.shape) for name, weight in layer.state_dict().items()}
    for path, module in layer.named_modules():
        found[path or "its class"] = type(module)
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | None)}
        own = [name for name in plain if name.startswith("_") or any(part in name for part in _OWN)]
        found |= {f"{path}.{name}": value for name, value in plain.items() if name not in own}
    return found
