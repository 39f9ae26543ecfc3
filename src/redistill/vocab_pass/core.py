"""The elementwise core: from one tile's raw logits to the terms' sums and the gradient of these logits.

`Core` is written once, in plain PyTorch.  Run as it is, each operation passes over the tile; compiled, log-softmax, all terms
and their gradient are a few fused loops.  Compiled tiles all have the same number of rows - the last one is filled up with rows
that count nothing - so that there is one compilation for a set of terms, and its code does not depend on which tile came first.
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

from redistill.contracts import TopClasses
from redistill.vocab_pass.head import finished
from redistill.vocab_pass.rules import Compared, Rule, compared

Compile = Literal["auto", "none", "rows", "all"]

LEAST_CLASSES = 16384
"""From so many classes on, compiling pays: it takes some seconds, and saves some hundred microseconds a row."""

KEPT = 16  # cores that stay compiled; a run has about three

Tensors = tuple[tuple[torch.Tensor, ...], ...]
Sums = dict[str, torch.Tensor]


def compiles(setting: Compile, num_classes: int, device: torch.device | str) -> bool:
    """Whether the core is compiled; a function of the setting, the models and the machine, so the same after a resume."""
    if setting != "auto":
        return setting != "none"
    if torch.device(device).type == "cuda":
        has_compiler = importlib.util.find_spec("triton") is not None
    else:
        has_compiler = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))
    return has_compiler and num_classes >= LEAST_CLASSES


@dataclass(frozen=True)
class Core:
    """The arithmetic of a tile; equal cores share one compilation.

    Args:
        rules: Of the terms that have a part in such tiles.
        scale, softcap: Of the student's head.
    """

    rules: tuple[Rule, ...]
    scale: float
    softcap: float | None

    def __call__(self, raw_CV: torch.Tensor, word: torch.Tensor | TopClasses | None, tensors: Tensors) -> Sums:
        """The rules' sums.

        Args:
            raw_CV: Raw products of the student's head.
            word: The teacher's word on these rows; None where they have none.
            tensors: What each rule reads.
        """
        logq_CV = torch.log_softmax(finished(raw_CV, self.scale, self.softcap), dim=-1)
        both: Compared | None = None if word is None else compared(logq_CV, word)
        sums: Sums = {}
        for rule, own in zip(self.rules, tensors, strict=True):
            sums |= rule(logq_CV, both, *own)
        return sums


@dataclass(frozen=True, eq=False)
class Tile:
    """Rows of one block, with the halo row behind them where spans need it."""

    raw_CV: torch.Tensor
    word: torch.Tensor | TopClasses | None
    tensors: Tensors

    def filled(self, num_rows: int, halo: int) -> "Tile":
        """With rows of zeros behind it, which count nothing."""
        word = self.word
        if isinstance(word, torch.Tensor):
            word = _filled(word, num_rows + halo)
        elif word is not None:
            word = TopClasses(*(_filled(tensor, num_rows + halo) for tensor in word))
        tensors = tuple(tuple(_filled(tensor, num_rows) for tensor in own) for own in self.tensors)
        return Tile(_filled(self.raw_CV, num_rows + halo), word, tensors)


def visit(
    core: Core, tile: Tile, coefficients: Sequence[float], parameters: Sequence[torch.Tensor], fill: tuple[int, int] | None
) -> tuple[Sums, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    """The sums, and the gradients of the raw logits and of `parameters`, weighted by the coefficients.

    Args:
        coefficients: Of the rules; they change from step to step and so are no part of what is compiled.
        fill: Rows and halo rows of a compiled tile; None does not compile.
    """
    if fill is not None and core not in _UNFIT:
        from torch._dynamo.exc import TorchDynamoException  # here, since it takes a second to import

        try:
            sums, gradient_CV, others = _differentiate(_compiled(core), core, tile.filled(*fill), coefficients, parameters)
            return sums, gradient_CV[: len(tile.raw_CV)], others
        except TorchDynamoException as error:
            _UNFIT.add(core)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"training.compile: these terms cannot be compiled and run without: {reason}", stacklevel=2)
    return _differentiate(core, core, tile, coefficients, parameters)


def _differentiate(
    function: Callable[..., Sums],
    core: Core,
    tile: Tile,
    coefficients: Sequence[float],
    parameters: Sequence[torch.Tensor],
) -> tuple[Sums, torch.Tensor, tuple[torch.Tensor | None, ...]]:
    with torch.enable_grad():
        leaf_CV = tile.raw_CV.detach().requires_grad_()
        sums = function(leaf_CV, tile.word, tile.tensors)
        totals = [sums[rule.name] for rule in core.rules]
        weights = [torch.full_like(total, coefficient) for total, coefficient in zip(totals, coefficients, strict=True)]
        gradient_CV, *others = torch.autograd.grad(totals, (leaf_CV, *parameters), weights, allow_unused=True)
    return {name: value.detach() for name, value in sums.items()}, gradient_CV, tuple(others)


_UNFIT: set[Core] = set()
_numbers = count()


@lru_cache(maxsize=KEPT)
def _compiled(core: Core) -> Callable[..., Sums]:
    def tile_sums(raw_CV: torch.Tensor, word: torch.Tensor | TopClasses | None, tensors: Tensors) -> Sums:
        return core(raw_CV, word, tensors)

    # With code of its own: dynamo counts compilations by code, and refuses more than eight of one.
    code = tile_sums.__code__.replace(co_name=f"tile_sums_{next(_numbers)}")
    own = FunctionType(code, tile_sums.__globals__, closure=tile_sums.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def _filled(tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    if len(tensor) == num_rows:
        return tensor
    whole = tensor.new_zeros((num_rows, *tensor.shape[1:]))
    whole[: len(tensor)] = tensor
    return whole
