"""Caches for generation: attention, recurrent, convolution and indexer states.

`CachedBody` runs the body of a model (the model without its LM head). It computes hidden states of a left-padded batch, a
few columns at a time. A column contains one token of each sequence. `check_cache` checks that the cache of a model does not
change its logits.
"""

import inspect
from typing import cast

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer

from redistill.errors import ModelError, first_line
from redistill.models.families import body, body_module, eval_mode, head, longrope_limit, text_config
from redistill.models.quantised import is_quantised
from redistill.tensors import pad

PIECE_TOKENS = 128
_CACHE_ARGUMENTS = ("cache", "past_key_values", "cache_params")  # names of several releases of transformers
# Rotary frequencies of these types depend on the length of the text, so that cached keys become invalid as the text grows.
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
# Exceptions of a forward function that does not support the calls of `check_cache`.
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Columns:
    """A tensor [B, ..., T, D] to which columns can be appended along the dimension T.

    A column is the part of the tensor at one index of T. Memory is allocated for `PIECE_TOKENS` columns at once, so that most
    calls of `append` do not copy the tensor. The methods return views that share the memory of the tensor.
    """

    def __init__(self) -> None:
        self._buffer: torch.Tensor | None = None
        self._filled = 0

    def append(self, new: torch.Tensor) -> torch.Tensor:
        """Append the columns `new`; return a view of all columns of the tensor."""
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
        """A view of the tensor with all columns that have been appended."""
        assert self._buffer is not None, "nothing has been appended"
        return self._buffer[..., : self._filled, :]

    def select(self, kept: torch.Tensor) -> torch.Tensor:
        """Keep only the sequences with batch indices `kept`; return a view of the tensor."""
        assert self._buffer is not None, "nothing has been appended"
        self._buffer = self._buffer[kept]
        return self.view()


class LeanLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not annotated
    """Cached keys and values of a layer with full attention, stored in `Columns`.

    This class replaces `DynamicLayer` of transformers, which copies all keys and values for every generated token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_columns, self._value_columns = Columns(), Columns()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values [B, H, T, D], and return all keys and all values.

        This method overrides `DynamicLayer.update`.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = self._key_columns.append(key_states), self._value_columns.append(value_states)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Keep only the sequences with the batch indices `beam_idx`, in this order.

        This method overrides `CacheLayerMixin.reorder_cache`.
        """
        if self.is_initialized:
            self.keys, self.values = self._key_columns.select(beam_idx), self._value_columns.select(beam_idx)


def new_cache(model: nn.Module) -> Cache:
    """Create an empty cache for `model`.

    Layers with full attention use `LeanLayer`; all other layers use the classes of transformers.
    """
    cache = DynamicCache(config=text_config(model))
    cache.layers = [LeanLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def takes_positions(model: nn.Module) -> bool:
    """Return whether the forward function of the body has an argument for positions.

    The body is the model without its LM head. Families with ALiBi compute positions from the attention mask, and recurrent
    families have no positions.
    """
    return "position_ids" in inspect.signature(body_module(model).forward).parameters


def prefixes_can_be_reused(model: nn.Module) -> bool:
    """Return whether cached keys and values of a prefix can be reused for other texts.

    The other texts may have other lengths and other padding. Every layer must have full attention, and the body (the model
    without its LM head) must have an argument for positions. Prefixes cannot be reused with sliding windows, recurrent
    states, or rotary frequencies that depend on the length of the text.
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


class CachedBody:
    """The body of a model (the model without its LM head) with a cache.

    The body processes a few columns at a time. A column contains one token of each sequence.

    Args:
        model: A causal language model. The caller sets eval mode and disables gradients.

    Attributes:
        cache: The cache of the current batch.
        can_reuse: Whether cached keys and values of a prefix can be reused for another text; see `prefixes_can_be_reused`.

    Raises:
        ModelError: the forward function of the body has no argument for a cache.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._body = model, body_module(model)
        self.can_reuse = prefixes_can_be_reused(model)
        self._gives_mask = self.can_reuse and text_config(model)._attn_implementation == "sdpa"
        self._takes_positions = takes_positions(model)
        self._limit = longrope_limit(model)
        parameters = inspect.signature(self._body.forward).parameters
        names = [name for name in _CACHE_ARGUMENTS if name in parameters]
        if not names:
            raise ModelError(
                f"{text_config(model).model_type}: the forward function has no argument for a cache; use another family"
            )
        self._argument = names[0]
        self.start()
        layers = self.cache.layers  # empty if the first forward pass creates them, as attention layers
        self._is_recurrent = bool(layers) and not any(isinstance(layer, CacheLayerMixin) for layer in layers)

    def start(self, rows: int = 1, columns: int = 1) -> None:
        """Start a new batch with an empty cache.

        Args:
            rows: Number of sequences of the batch.  Only `StaticBody` uses this number, to allocate memory.
            columns: Maximum number of columns of the batch.  Only `StaticBody` uses this number, to allocate memory.
        """
        self.cache = new_cache(self._model)

    def load(self, kv_LXBHCD: torch.Tensor) -> None:
        """Fill the first C columns of an empty cache.

        Args:
            kv_LXBHCD: Keys (X = 0) and values (X = 1) of the L layers, for B sequences and H heads of size D.
        """
        for layer, (keys, values) in zip(self.cache.layers, kv_LXBHCD, strict=True):
            layer.update(keys, values)

    def row(self, sequence: int) -> int:
        """Return the cache row of the sequence with the batch index `sequence`."""
        return sequence

    def read(self, ids_LT: torch.Tensor, mask_LC: torch.Tensor, position_LT: torch.Tensor) -> torch.Tensor:
        """Process T new columns, and return their hidden states hidden_LTD.

        The cache contains the columns before the new columns. The new columns are added to the cache.

        Args:
            ids_LT: Token ids of the new columns, for L sequences.
            mask_LC: Attention mask of all C columns so far, including those in the cache.
            position_LT: Positions of the new tokens in their sequences, from 0.
        """
        columns = ids_LT.shape[1]
        if self._is_recurrent:
            mask_LC = mask_LC[:, -columns:]
        elif self._gives_mask and columns == 1:
            # The layers use this 4-D mask.  From a 2-D mask, transformers would compute it at every token, and would
            # synchronise with the GPU to determine whether a mask is needed.  Without a mask, bf16 attention on a CPU is ten
            # times slower.
            mask_LC = mask_LC[:, None, None, :].bool()
        positions = {"position_ids": position_LT} if self._takes_positions else {}
        output = self._body(
            input_ids=ids_LT, attention_mask=mask_LC, use_cache=True, **{self._argument: self.cache}, **positions
        )
        return cast(torch.Tensor, output.last_hidden_state)

    def select(self, kept: torch.Tensor) -> None:
        """Remove all sequences from the cache except those with the batch indices `kept`."""
        self.cache.reorder_cache(kept)

    def is_outdated(self, before: int, after: int) -> bool:
        """Return whether a text has become too long for its cached keys and values.

        The text had `before` tokens when the keys and values were computed, and has `after` tokens now. The result can be
        True only with longrope: this rotary embedding uses other frequencies for texts above a certain length.
        """
        return self._limit is not None and before <= self._limit < after


@torch.no_grad()
def check_cache(model: nn.Module, *, name: str, remedy: str = "use another family") -> None:
    """Check that a cache and padding do not change the logits of a model.

    The model computes the logits of two sequences, of 5 and 3 tokens, in three ways: each sequence alone, both in a padded
    batch, and both with a cache. As in generation, one sequence is removed from the cache before the other one has ended.

    Args:
        model: A causal language model.
        name: Name of the model for error messages.
        remedy: Action for the user, such as "use another family"; it is the end of an error message.

    Raises:
        ModelError: the logits differ by more than rounding errors, or the family does not support these forward passes.
    """
    family = text_config(model).model_type
    classifier = head(model)
    device, num_classes = classifier.weight_VD.device, classifier.weight_VD.shape[0]
    rows = [[token % num_classes for token in tokens] for tokens in (range(1, 6), range(6, 9))]
    right, left = (tuple(part.to(device) for part in pad(rows, 0, side=side)) for side in ("right", "left"))
    ids_LC, mask_LC = left
    position_LC = (mask_LC.cumsum(dim=1) - 1).clamp(min=0)
    with eval_mode(model):
        try:
            alone = [body(model)(ids[None], torch.ones_like(ids[None]))[0] for ids in (right[0][0], right[0][1, :3])]
            padded_LTD = body(model)(*right)
            reader = CachedBody(model)
            start_LTD = reader.read(ids_LC[:, :-1], mask_LC[:, :-1], position_LC[:, :-1])
            reader.select(torch.tensor([1], device=device))
            end_LTD = reader.read(ids_LC[1:, -1:], mask_LC[1:], position_LC[1:, -1:])
        except ModelError:
            raise
        except _FAILURES as error:
            reason = f"{type(error).__name__}: {first_line(error)[:200]}"
            raise ModelError(f"{name}: text cannot be generated with the {family} family ({reason}); {remedy}") from error
    expected_ND = torch.cat(alone)
    found = {
        "for a sequence alone and in a padded batch": torch.cat([padded_LTD[0], padded_LTD[1, :3]]),
        "with and without a cache": torch.cat([start_LTD[0], alone[0][-1:], start_LTD[1, 2:], end_LTD[0]]),
    }
    own_NV = classifier.logits(expected_ND)
    spread = (own_NV - own_NV.mean(dim=1, keepdim=True)).norm()
    is_exact = classifier.weight_VD.dtype == torch.float32 and not is_quantised(model)
    allowed = 0.01 if is_exact else 0.1  # rounding can change which experts are chosen
    for where, hidden_ND in found.items():
        if (classifier.logits(hidden_ND) - own_NV).norm() > allowed * spread:
            raise ModelError(f"{name}: the {family} family computes different logits {where}; {remedy}")
