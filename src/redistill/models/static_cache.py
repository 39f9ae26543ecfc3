"""Decoding with a KV cache of fixed size, for torch.compile and CUDA graphs.

A growing cache has another shape at every token.  A compiled function is compiled for one shape, and a CUDA graph is recorded
for one shape.  Therefore the cache of this module has a fixed number of rows and columns.  A row has the tokens of one
sequence, and a column has one token of each sequence.
"""

import warnings
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import nn
from transformers.cache_utils import StaticCache

from redistill.errors import first_line
from redistill.models.caches import CachedBody, prefixes_can_be_reused
from redistill.models.families import text_config
from redistill.storage.user_cache import check_compiler_cache

DecoderKind = Literal["static", "compiled"]
MIN_COLUMNS = 128
"""A cache has this number of columns or a larger power of two, so that few different shapes are compiled."""


class StaticBody(CachedBody):
    """A `CachedBody` whose cache has a fixed size.

    The cache stays allocated after a batch.  The next batch uses it again if it needs a cache of the same shape.  Sequences
    that `select` removes stay in the cache, so that its shape does not change.  Their hidden states are not returned.

    Args:
        model: A causal language model that `static_fault` accepts. The caller sets eval mode and disables gradients.
        compiled: Whether the computation of one column is compiled with torch.compile. On a GPU it is also recorded as a CUDA
            graph, so that all its kernels are launched at once. If compilation fails, a warning is issued once, and
            uncompiled code is used.

    Raises:
        ConfigError: `compiled` is True, and the folder of torch's compiler cache cannot be created, or other users could change
            its files.
    """

    def __init__(self, model: nn.Module, *, compiled: bool) -> None:
        self._rows = self._columns = 0
        if compiled:
            check_compiler_cache()
        self._step = torch.compile(self._column, dynamic=False, mode="reduce-overhead") if compiled else None
        super().__init__(model)

    def start(self, rows: int = 1, columns: int = 1) -> None:
        """Start a new batch with an empty cache, as in `CachedBody.start`."""
        shape = _power_of_two(rows), max(MIN_COLUMNS, _power_of_two(columns))
        if shape != (self._rows, self._columns):
            self._rows, self._columns = shape
            self.cache = StaticCache(text_config(self._model), max_cache_len=self._columns)
            self._mask_RC: torch.Tensor | None = None
        self._filled = 0
        self._set_lengths()
        self._live_L: torch.Tensor | None = None  # the cache row of each sequence that was not removed

    def read(self, ids_LT: torch.Tensor, mask_LC: torch.Tensor, position_LT: torch.Tensor) -> torch.Tensor:
        """Process new columns, and return their hidden states, as in `CachedBody.read`."""
        columns, device = ids_LT.shape[1], ids_LT.device
        if self._mask_RC is None:
            self._mask_RC = torch.zeros((self._rows, self._columns), dtype=torch.bool, device=device)
            self._ids_R1, self._position_R1 = (ids_LT.new_zeros((self._rows, 1)) for _ in range(2))
        if self._live_L is None:
            self._live_L = torch.arange(len(ids_LT), device=device)
            self._mask_RC.zero_()
            self._mask_RC[:, :1] = True  # attention over no column at all is not a number
        self._mask_RC[self._live_L, : mask_LC.shape[1]] = mask_LC.bool()
        if columns == 1:
            self._ids_R1[self._live_L], self._position_R1[self._live_L] = ids_LT, position_LT
            hidden_RTD = self._one_column(self._ids_R1, self._mask_RC[:, None, None], self._position_R1)
        else:
            ids_RT, position_RT = (each.new_zeros((self._rows, columns)) for each in (ids_LT, position_LT))
            ids_RT[self._live_L], position_RT[self._live_L] = ids_LT, position_LT
            hidden_RTD = self._column(ids_RT, self._mask_of_columns(columns), position_RT)
        self._filled += columns
        return hidden_RTD[self._live_L]

    def select(self, kept: torch.Tensor) -> None:
        """Ignore from now on all sequences except those with the batch indices `kept`.

        The cache keeps its shape.
        """
        assert self._live_L is not None, "a batch has been read"
        self._live_L = self._live_L[kept]

    def row(self, sequence: int) -> int:
        """Return the cache row of the sequence with the batch index `sequence`."""
        return sequence if self._live_L is None else int(self._live_L[sequence])

    def load(self, kv_LXBHCD: torch.Tensor) -> None:
        """Fill the first C columns of an empty cache, as in `CachedBody.load`."""
        layers, two, sequences, heads, columns, size = kv_LXBHCD.shape
        kv_LXRHCD = kv_LXBHCD.new_zeros((layers, two, self._rows, heads, columns, size))
        kv_LXRHCD[:, :, :sequences] = kv_LXBHCD
        super().load(kv_LXRHCD)
        self._filled = columns

    def _one_column(self, ids_R1: torch.Tensor, mask_R11C: torch.Tensor, position_R1: torch.Tensor) -> torch.Tensor:
        if self._step is not None:
            from torch._dynamo.exc import TorchDynamoException  # here, since it takes a second to import

            try:
                return self._step(ids_R1, mask_R11C, position_R1)
            except TorchDynamoException as error:
                self._step = None
                self._set_lengths()
                fault = f"engine.decoder: decoding cannot be compiled, and runs uncompiled: {first_line(error)}"
                warnings.warn(fault, stacklevel=2)
        return self._column(ids_R1, mask_R11C, position_R1)

    def _column(self, ids_RT: torch.Tensor, mask_R1TC: torch.Tensor, position_RT: torch.Tensor) -> torch.Tensor:
        given = {"input_ids": ids_RT, "attention_mask": mask_R1TC, "position_ids": position_RT, self._argument: self.cache}
        return cast(torch.Tensor, self._body(**given, use_cache=True).last_hidden_state)

    def _mask_of_columns(self, columns: int) -> torch.Tensor:
        """Return the causal mask of T new columns: [R, 1, T, C] for R rows and C columns.

        The mask is True where a token attends to a column.
        """
        assert self._mask_RC is not None
        column_C = torch.arange(self._columns, device=self._mask_RC.device)
        causal_TC = column_C <= self._filled + torch.arange(columns, device=column_C.device)[:, None]
        mask_RTC = self._mask_RC[:, None] & causal_TC
        mask_RTC[..., 0] |= ~mask_RTC.any(-1)  # padding before the first token attends to something
        return mask_RTC[:, None]

    def _set_lengths(self) -> None:
        """Set the number of columns in the cache, which a failed call may have changed."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self._filled)


class StaticBodies:
    """The `StaticBody` of each model of one engine.

    The caches stay allocated between calls.

    Args:
        kind: "static" or "compiled".
        note: Function that prints one line to the user; None if nothing is printed.
    """

    def __init__(self, kind: DecoderKind, note: Callable[[str], None] | None = None) -> None:
        self._kind, self._note = kind, note
        self._bodies: dict[nn.Module, CachedBody] = {}

    def of(self, model: nn.Module) -> CachedBody:
        """Return the `StaticBody` of a model.

        If the model cannot have a cache of fixed size, the function returns a `CachedBody`.  The first call with this model
        then prints a note.
        """
        if model not in self._bodies:
            fault, effect, compiled = static_fault(model), "the KV cache grows with the text", self._kind == "compiled"
            is_static = fault is None
            if is_static and compiled and next(model.parameters()).device.type == "cpu":
                # Packed weights (generation/packed.py) cannot be compiled, and are faster than compiled code.
                fault, effect, compiled = "on a CPU, nothing is compiled", "the KV cache has a fixed size", False
            if fault is not None and self._note is not None:
                self._note(f"engine.decoder = {self._kind!r}: {fault}; {effect}")
            self._bodies[model] = StaticBody(model, compiled=compiled) if is_static else CachedBody(model)
        return self._bodies[model]


def static_fault(model: nn.Module) -> str | None:
    """Return why a model cannot decode with a cache of fixed size; None if it can.

    Example:
        >>> from redistill.models.initialise import fresh_model
        >>> sizes = dict(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8)
        >>> static_fault(fresh_model(dict(model_type="gpt2", **sizes), seed=1)) is None
        True
    """
    config = text_config(model)
    if not prefixes_can_be_reused(model):
        return f"the {config.model_type} family has layers without full attention, or positions that depend on the length"
    if config._attn_implementation != "sdpa":
        return f"needs the attention implementation sdpa, not {config._attn_implementation}"
    return None


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
