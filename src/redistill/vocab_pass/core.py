"""The loss terms of one tile of rows, and their gradient.

A tile is a slice of rows that is processed at once.  The gradient is taken with respect to the raw logits: the logits of the
LM head before they are scaled and bounded (softcap).  `Core` is plain PyTorch.  Without compilation, each operation reads the
whole tile.  With compilation, log-softmax, all terms and the gradient are a few fused loops.  All compiled tiles have the same
number of rows, so each combination of terms is compiled once.  Shorter tiles are padded with rows that do not contribute to the
sums.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor

from redistill.errors import first_line
from redistill.storage.user_cache import check_compiler_cache
from redistill.vocab_pass.head import finished
from redistill.vocab_pass.rules import Rule, TargetRows, both_models

Compile = Literal["auto", "none", "rows", "all"]

MIN_COMPILED_CLASSES = 16384
"""Smallest vocabulary for which the setting `training.compile: auto` compiles.

Compilation takes a few seconds, and saves a few hundred microseconds per row.
"""

MAX_COMPILED_CORES = 16  # compiled functions that are cached; a run has about three

Tensors = tuple[tuple[Tensor, ...], ...]
Sums = dict[str, Tensor]
Visited = tuple[Sums, Tensor, tuple[Tensor | None, ...]]


def compiles(setting: Compile, num_classes: int, device: torch.device | str) -> bool:
    """Return whether the functions that compute the loss terms are compiled.

    The result depends only on the arguments and on the installed compilers, so it is the same in a resumed run.

    Args:
        setting: The setting `training.compile`.  The result is False for "none", and True for "rows" and "all".  For "auto"
            it is True if a compiler is installed and the vocabulary has at least 16,384 classes.
        num_classes: Vocabulary size.
        device: Device of the hidden states.

    Returns:
        True if these functions are compiled.

    Example:
        >>> compiles("rows", 8, "cpu"), compiles("none", 50257, "cpu"), compiles("auto", 8, "cpu")
        (True, False, False)
    """
    if setting != "auto":
        return setting != "none"
    if torch.device(device).type == "cuda":
        has_compiler = importlib.util.find_spec("triton") is not None
    else:
        has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
    return has_compiler and num_classes >= MIN_COMPILED_CLASSES


@dataclass(frozen=True)
class Core:
    """The function that computes all terms of the objective on one tile.

    A tile is a slice of rows.  `Core` objects with equal fields share one compiled function.

    Args:
        rules: For each term that is computed in the tile, a function that returns the term's sum over the tile (rules.py).
        scale, softcap: Factor and bound of the student's logits; see `Head`.
    """

    rules: tuple[Rule, ...]
    scale: float
    softcap: float | None

    def __call__(self, raw_CV: Tensor, target_rows: TargetRows | None, tensors: Tensors) -> Sums:
        """Return the sum of each term and of each diagnostic over one tile, by name.

        A tile is C rows (token positions) of the batch with the logits of all V classes.

        Args:
            raw_CV: Raw logits of the student, before scale and softcap.
            target_rows: The teacher's logits, `TopClasses` or `SampledClasses` of the rows.  None if no term compares the
                tile with the teacher.
            tensors: For each of `self.rules`, its tensor arguments, such as targets and weights.
        """
        logq_CV = torch.log_softmax(finished(raw_CV, self.scale, self.softcap), dim=-1)
        both = None if target_rows is None else both_models(logq_CV, target_rows)
        sums: Sums = {}
        for rule, own in zip(self.rules, tensors, strict=True):
            sums |= rule(logq_CV, both, *own)
        return sums


def of_rows(target_rows: TargetRows | None, change: Callable[[Tensor], Tensor]) -> TargetRows | None:
    """Return a copy of `target_rows` with `change` applied to each of its tensors.

    If `target_rows` is None, the result is None.
    """
    if target_rows is None or isinstance(target_rows, Tensor):
        return None if target_rows is None else change(target_rows)
    return type(target_rows)(*map(change, target_rows))


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile: rows that are processed at once, and possibly the halo row.

    The span loss compares student and teacher at each pair of neighbouring rows.  Therefore it also needs the halo row: the
    row after the tile.

    Args:
        raw_CV: Raw logits of the student, including the halo row.
        target_rows: The teacher's logits, `TopClasses` or `SampledClasses` of these rows, including the halo row.  None if no
            term compares these rows with the teacher.
        tensors: For each term, its tensor arguments, such as targets and weights, without the halo row.
    """

    raw_CV: Tensor
    target_rows: TargetRows | None
    tensors: Tensors

    def padded(self, num_rows: int, halo: int) -> "Tile":
        """Return a copy that is padded to `num_rows` rows, plus `halo` (0 or 1) halo rows.

        The halo row is the row after the tile, which the span loss needs.  All tensors are padded with zeros, so the added rows
        have weight 0 and do not contribute to the sums.
        """
        target_rows = of_rows(self.target_rows, lambda tensor: _padded(tensor, num_rows + halo))
        tensors = tuple(tuple(_padded(tensor, num_rows) for tensor in own) for own in self.tensors)
        return Tile(_padded(self.raw_CV, num_rows + halo), target_rows, tensors)


def visit(
    core: Core, tile: Tile, coefficients: Sequence[float], parameters: Sequence[Tensor], fill: tuple[int, int] | None
) -> Visited:
    """Return the sums of terms over a tile, and the gradients of their weighted sum.

    A tile is a slice of rows.  The span loss compares each row with the next one, and therefore also needs the halo row: the
    row after the tile.

    Args:
        core: The function that computes the terms of the tile.
        tile: The rows, with a halo row if the span loss needs one.
        coefficients: Weights of the sums.  They change between updates, and so are not part of the compiled code.
        parameters: Trainable parameters of the divergence.
        fill: Numbers of rows and halo rows to which a compiled tile is padded.  If None, the core is not compiled.

    Returns:
        The sum of each term and of each diagnostic by name, without coefficients; the gradient of the raw logits, including the
        halo row; and the gradient of each parameter, None for an unused parameter.
    """
    if fill is not None and core not in _NOT_COMPILABLE:
        from torch._dynamo.exc import TorchDynamoException  # here, since it takes a second to import

        try:
            sums, gradient_CV, others = _differentiate(_compiled(core), core, tile.padded(*fill), coefficients, parameters)
            return sums, gradient_CV[: len(tile.raw_CV)], others
        except TorchDynamoException as error:
            _NOT_COMPILABLE.add(core)
            fault = f"training.compile: the loss terms cannot be compiled, and run uncompiled: {first_line(error)}"
            warnings.warn(fault, stacklevel=2)
    return _differentiate(core, core, tile, coefficients, parameters)


def _differentiate(
    function: Callable[..., Sums], core: Core, tile: Tile, coefficients: Sequence[float], parameters: Sequence[Tensor]
) -> Visited:
    with torch.enable_grad():
        leaf_CV = tile.raw_CV.detach().requires_grad_()
        sums = function(leaf_CV, tile.target_rows, tile.tensors)
        totals = [sums[rule.name] for rule in core.rules]
        weights = [torch.full_like(total, coefficient) for total, coefficient in zip(totals, coefficients, strict=True)]
        gradient_CV, *others = torch.autograd.grad(totals, (leaf_CV, *parameters), weights, allow_unused=True)
    return {name: value.detach() for name, value in sums.items()}, gradient_CV, tuple(others)


_NOT_COMPILABLE: set[Core] = set()
_numbers = count()


@lru_cache(maxsize=MAX_COMPILED_CORES)
def _compiled(core: Core) -> Callable[..., Sums]:
    def tile_sums(raw_CV: Tensor, target_rows: TargetRows | None, tensors: Tensors) -> Sums:
        return core(raw_CV, target_rows, tensors)

    check_compiler_cache()
    # Each core gets its own code object: dynamo compiles one code object at most eight times.
    code = tile_sums.__code__.replace(co_name=f"tile_sums_{next(_numbers)}")
    own = FunctionType(code, tile_sums.__globals__, closure=tile_sums.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def _padded(tensor: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - len(tensor)
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor
