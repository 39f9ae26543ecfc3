"""New students, built from layers of the teacher or with random weights."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from redistill import randomness
from redistill.errors import ConfigError, check_field, first_line
from redistill.interfaces import CausalModel, ModelSettings
from redistill.models.caches import check_cache
from redistill.models.families import layer_list, text_config, unwrapped
from redistill.models.quantised import is_quantised
from redistill.models.shorten import check_layers, layer_parts, one_kind_of_error, shortened_config


@dataclass(frozen=True, kw_only=True)
class InitialiseConfig:
    r"""Build the student from layers of the teacher.

    .. math:: i_k = \Bigl\lfloor \frac{k (L - 1)}{n - 1} + \frac{1}{2} \Bigr\rfloor, \qquad k = 0 \dots n - 1

    If `layers` is a number n > 1, this formula gives the indices i_k of the n layers that are chosen from the teacher's L
    layers. For n = 1, layer 0 is chosen.

    Args:
        layers: Number of layers, >= 1, which are evenly spaced from the first layer to the last; or a list of layer indices in
            ascending order, counted from 0.

    Raises:
        ConfigError: the number is below 1; or the list is empty, has a negative index, or is not in ascending order.

    Example:
        >>> InitialiseConfig(layers=4).indices(12), InitialiseConfig(layers=(0, 11)).indices(12)
        ((0, 4, 7, 11), (0, 11))
        >>> InitialiseConfig(layers=(3, 1))
        Traceback (most recent call last):
            ...
        redistill.errors.ConfigError: layers = [3, 1]: must be ascending layer indices >= 0, each once; sort them
    """

    layers: int | tuple[int, ...]

    def __post_init__(self) -> None:
        if isinstance(self.layers, int):
            check_field(self, "layers", self.layers >= 1, "must be at least 1")
        elif not self.layers or self.layers[0] < 0 or any(a >= b for a, b in zip(self.layers, self.layers[1:])):
            raise ConfigError(f"layers = {list(self.layers)}: must be ascending layer indices >= 0, each once; sort them")

    def indices(self, num_layers: int) -> tuple[int, ...]:
        """Return the indices of the layers chosen from a teacher with `num_layers` layers.

        Raises:
            ConfigError: the teacher has too few layers.

        Example:
            >>> InitialiseConfig(layers=4).indices(12)
            (0, 4, 7, 11)
        """
        if isinstance(self.layers, tuple):
            if self.layers[-1] >= num_layers:
                limit = f"must be at most {num_layers - 1}, the teacher's last layer; leave out the larger indices"
                raise ConfigError(f"layers = {list(self.layers)}: {limit}")
            return self.layers
        limit = f"must be at most {num_layers}, the teacher's number of layers; set fewer"
        check_field(self, "layers", self.layers <= num_layers, limit)
        gaps = max(1, self.layers - 1)
        return tuple((2 * i * (num_layers - 1) + gaps) // (2 * gaps) for i in range(self.layers))  # halves round up


def student_from_layers(teacher_model: nn.Module, layers: tuple[int, ...] | int) -> CausalModel:
    """Build a student that consists of copies of some of the teacher's layers.

    The student's embeddings, norms and head are also copies of the teacher's.

    The student is first built from the teacher's config with fewer layers. This sets its attention patterns, its tied
    embeddings, and the layer indices that the KV cache uses. Then the teacher's weights are copied, so that the two models
    share no memory.

    Args:
        teacher_model: A causal language model without adapters.
        layers: Number or indices of the layers; see `InitialiseConfig`.

    Returns:
        The student, in eval mode, with the teacher's dtype and device.

    Raises:
        ConfigError: a layer in `layers` does not exist in the teacher, or the teacher is quantised.
        ModelError: the teacher's family does not allow a model of only these layers, or the structure of a layer differs
            between student and teacher.
    """
    teacher = unwrapped(teacher_model)
    if is_quantised(teacher):
        raise ConfigError("initialise.layers: layers of a quantised model cannot be copied; set lora.quantise to none")
    count = text_config(teacher).num_hidden_layers
    chosen = InitialiseConfig(layers=layers).indices(count)
    path, _ = layer_list(teacher)
    config = shortened_config(teacher.config, chosen)
    # The constructor samples weights that are overwritten below.
    with one_kind_of_error(teacher.config, chosen), torch.random.fork_rng(devices=[]):
        student = type(teacher)(config)
    cast_weights(student.to(device=teacher.device), teacher.dtype)
    check_layers(student, teacher, chosen)
    weights = teacher.state_dict()
    for name, value in student.state_dict().items():
        value.copy_(layer_parts(weights[_teacher_name(name, path, chosen)], value, chosen, count))
    student.generation_config = copy.deepcopy(teacher.generation_config)
    check_cache(student, name=f"initialise.layers = {list(chosen)}", remedy="choose other layers")
    return student.eval()


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast every parameter in place, except adapters and quantised weights.

    Adapters stay in float32. Quantised weights are integer codes, which must not be cast.

    Buffers keep their dtype, unlike with `model.to(dtype)`. An example of a buffer is the tensor of rotary frequencies.
    Checkpoints do not contain it, and a loaded model computes it in float32. If training used rounded frequencies, the loaded
    model would differ from the trained model.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and ".lora_" not in name:
            parameter.data = parameter.data.to(dtype)


def fresh_model(config: ModelSettings | Mapping[str, object], seed: int) -> CausalModel:
    """Build a causal language model with random weights.

    The weights depend only on `config` and `seed`.

    Args:
        config: A transformers config, or a dict of its fields including `model_type`.
        seed: Seed of the run.

    Returns:
        The model, in eval mode.

    Raises:
        ConfigError: `model_type` of the dict is missing or unknown, or a field is invalid.

    Example:
        >>> tiny = dict(model_type="gpt2", vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8)
        >>> fresh_model(tiny, seed=1).num_parameters() > 0
        True
    """
    if isinstance(config, Mapping):
        try:
            config = AutoConfig.for_model(**{"model_type": "", **config})
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model config: {first_line(error)[:200]}; set model_type and that family's fields") from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(randomness.torch_seed(seed, "initialise"))
        return cast(CausalModel, AutoModelForCausalLM.from_config(config).eval())


def _teacher_name(name: str, path: str, chosen: tuple[int, ...]) -> str:
    """Convert the name of a student's weight to the name of the teacher's weight.

    If the weight is in the layer list at `path`, the index of the student's layer is replaced by the index of the teacher's
    layer. Other names are returned unchanged.
    """
    if not name.startswith(f"{path}."):
        return name
    number, _, rest = name[len(path) + 1 :].partition(".")
    return f"{path}.{chosen[int(number)]}.{rest}"
