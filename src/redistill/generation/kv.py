"""KV cache: layers that append without a full copy, and a check for prefix reuse."""

import inspect

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from redistill.models.families import body_module, text_config

PIECE_TOKENS = 128
# Rotary frequencies of these types depend on the length of the text, so that cached keys become invalid as it grows.
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class Columns:
    """A tensor [..., T, D] to which columns can be appended along T.

    The buffer grows in steps, so that most calls do not copy the stored columns.  Views share its memory.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._filled = 0

    def append(self, new: torch.Tensor) -> torch.Tensor:
        """Append `new` along T and return a view of all columns."""
        filled = self._filled + new.shape[-2]
        if self._buffer is None or filled > self._buffer.shape[-2]:
            capacity = -(-filled // PIECE_TOKENS) * PIECE_TOKENS
            larger = new.new_empty((*new.shape[:-2], capacity, new.shape[-1]))
            if self._buffer is not None:
                larger[..., : self._filled, :] = self.view()
            self._buffer = larger
        self._buffer[..., self._filled : filled, :] = new
        self._filled = filled
        return self.view()

    def view(self) -> torch.Tensor:
        """The stored columns, as a view of the buffer."""
        assert self._buffer is not None, "nothing has been appended"
        return self._buffer[..., : self._filled, :]

    def select(self, kept: torch.Tensor) -> torch.Tensor:
        """Keep only these indices of the first dimension and return a view of the result."""
        assert self._buffer is not None, "nothing has been appended"
        self._buffer = self._buffer[kept]
        return self.view()


class LeanLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not annotated
    """Keys and values of a layer with full attention, stored in `Columns`.

    transformers' own layer copies all of them for every token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_columns, self._value_columns = Columns(), Columns()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, H, T, D] and return all of them; see `DynamicLayer`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._key_columns.append(key_states), self._value_columns.append(value_states)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only these rows of the batch; see `DynamicLayer`."""
        self.keys, self.values = self._key_columns.select(indices), self._value_columns.select(indices)


def new_cache(model: nn.Module) -> Cache:
    """An empty KV cache for `model`.

    Layers with full attention are `LeanLayer`, all others transformers' own.
    """
    cache = DynamicCache(config=text_config(model))
    cache.layers = [LeanLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def takes_positions(model: nn.Module) -> bool:
    """Whether the model's body has an argument for position ids.

    Families with ALiBi derive the positions from the attention mask.
    """
    return "position_ids" in inspect.signature(body_module(model).forward).parameters


def prefixes_can_be_reused(model: nn.Module) -> bool:
    """Whether cached keys and values of a prefix are valid in another batch.

    They are valid in any column and for any text length if every layer has full attention and the body has an argument for
    position ids.  They are not valid with sliding windows, recurrent states, or rotary frequencies that depend on the text
    length: models of such families process a prefix again.
    """
    config = text_config(model)
    layers = DynamicCache(config=config).layers
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
    return (
        bool(layers)
        and all(type(layer) is DynamicLayer for layer in layers)
        and takes_positions(model)
        and not kinds & _LENGTH_DEPENDENT_ROPE
    )
