"""The walk with gradients: block by block for the products, tile by tile for the terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from redistill.contracts import TeacherTarget, TopClasses
from redistill.tensors import loss_dtype
from redistill.vocab_pass.core import Core, Tile, visit
from redistill.vocab_pass.head import Head, Products
from redistill.vocab_pass.terms import DivergenceTerm, SpanTerm, Term

LEAST_CHUNK_BYTES = 192 * 2**20
MOST_CHUNK_BYTES = 2**30

# The rows are cut twice: into wide blocks for the matrix products, since each of those passes over the whole head, and these
# into narrow tiles for what autograd keeps of the terms.  Blocks get three quarters of the budget, tiles a quarter of the least
# one (narrow tiles stay near the cache); these count the tensors alive at once.
BLOCK_TENSORS = 2  # logits (later their gradient), and the teacher's
TILE_TENSORS = 10  # log q, p, products of both and their gradients
COMPILED_TENSORS = 7  # what is left of them where loops are fused
ALIGNED_ROWS = 8  # compiled tiles are a multiple of this, so that each starts at a multiple of 16 bytes


def vocab_pass(
    student_hidden_ND: torch.Tensor,
    student_head: Head,
    target: TeacherTarget | None,
    terms: Sequence[Term],
    chunk_bytes: int | None = None,
    *,
    compiled: bool = False,
    into_grad: bool = False,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """All terms of the objective in one visit of the rows, with their gradients.

    The gradients of hidden states, head and the divergence's own parameters are computed in the forward, chunk by chunk,
    already weighted by the terms' coefficients; backward multiplies them by the incoming scalar, once.  Each input that
    requires a gradient gets one, zeros if need be, so that no process of a data-parallel group lacks it.  A pair of rows that a
    cut parts is counted with the left one: the row after the cut (the halo) is computed on both sides, and its two gradients
    are added.

    Args:
        student_hidden_ND: Hidden states of the supervised rows alone.
        student_head: The student's head; a frozen one costs no gradient.
        target: The teacher's word, asked only for rows that a divergence or span needs; None where no term does.
        terms: At most one of each kind.
        chunk_bytes: What the [rows, vocabulary] tensors may take together, about; at least a row at a time is read.  None
            asks `chunk_budget`.
        compiled: Whether the terms and their gradients are compiled; see core.py.
        into_grad: Whether the gradient of a head's weight that is a leaf in the results' dtype is added to its `grad` at once,
            which spares a copy of it.  The objective's backward must then follow, once, from a gradient of 1.

    Returns:
        The objective (sum of coefficient x sum over rows; a scalar), and each term's and diagnostic's own sum by name, detached
        and without coefficient.  Diagnostics are absent where no row has a teacher.

    See also: dense_reference.
    """
    assert student_hidden_ND.ndim == 2, f"hidden states of shape {tuple(student_hidden_ND.shape)}: pick the rows [N, D] first"
    if chunk_bytes is None:
        chunk_bytes = chunk_budget(student_head.num_bytes)
    task = _Task(student_hidden_ND, student_head, target, tuple(terms), _parameters(terms), chunk_bytes, compiled, into_grad)
    inputs = (student_hidden_ND, student_head.weight_VD, student_head.bias_V, *task.parameters)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        sums: dict[str, torch.Tensor] = {}
        return _GradientInForward.apply(task, sums, *inputs), sums
    return _walk(task, None)


def dense_reference(
    student_hidden_ND: torch.Tensor, student_head: Head, target: TeacherTarget | None, terms: Sequence[Term]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`vocab_pass` by plain autograd on whole [N, V] tensors: the law that it is held to, and how to read what it does."""
    raw_NV = student_head.raw(student_hidden_ND, Products.like(student_hidden_ND))
    objective, sums = raw_NV[:0].sum(), {term.name: raw_NV.new_zeros(()) for term in terms}
    num_distilled = _num_distilled(terms)
    with torch.autocast(raw_NV.device.type, enabled=False):
        for rows in _parts(slice(0, len(raw_NV)), num_distilled):
            core, _, tensors = _core(student_head, terms, rows, num_distilled, raw_NV.device)
            word = target(rows) if target is not None and rows.stop <= num_distilled else None
            for name, total in core(raw_NV[rows], word, tensors).items():
                sums[name] = sums[name] + total if name in sums else total
        for term in terms:
            objective = objective + term.coefficient * sums[term.name]
    return objective, {name: total.detach() for name, total in sums.items()}


def chunk_budget(head_bytes: int) -> int:
    """What the [rows, vocabulary] tensors of a walk take together where nobody says: as much as the head, within limits.

    Every block of rows passes over the whole head and its gradient, so the larger these are, the more rows must share a pass.

    Args:
        head_bytes: Of the head's weight in float32.
    """
    return min(max(LEAST_CHUNK_BYTES, head_bytes), MOST_CHUNK_BYTES)


class CutRows(NamedTuple):
    """The most rows of a block and of a tile."""

    block: int
    tile: int


def cut_rows(chunk_bytes: int, row_bytes: int, compiled: bool) -> CutRows:
    """What a budget and the bytes of one [rows, vocabulary] tensor's row make of blocks and tiles; at least one row each."""
    block = 3 * (chunk_bytes // (4 * row_bytes)) // BLOCK_TENSORS
    rows = min(chunk_bytes, LEAST_CHUNK_BYTES) // (4 * row_bytes)
    tile = max(1, rows // COMPILED_TENSORS // ALIGNED_ROWS) * ALIGNED_ROWS if compiled else rows // TILE_TENSORS
    return CutRows(max(1, block), max(1, tile))


def cuts(rows: slice, num_rows: int) -> list[slice]:
    """`rows` in as few pieces of at most `num_rows` (of 1 where that is less) as there can be, all of about one length."""
    total = rows.stop - rows.start
    size = -(-total // max(1, -(-total // max(1, num_rows))))
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, max(1, size))]


@dataclass(frozen=True, eq=False)
class _Task:
    """What one pass has to do."""

    hidden_ND: torch.Tensor
    head: Head
    target: TeacherTarget | None
    terms: tuple[Term, ...]
    parameters: tuple[torch.nn.Parameter, ...]
    chunk_bytes: int
    compiled: bool
    into_grad: bool

    @property
    def num_distilled(self) -> int:
        return _num_distilled(self.terms)

    @property
    def has_pairs(self) -> bool:
        return any(isinstance(term, SpanTerm) for term in self.terms)

    @property
    def cut_rows(self) -> CutRows:
        return cut_rows(self.chunk_bytes, self.head.num_classes * loss_dtype(self.hidden_ND).itemsize, self.compiled)

    def with_halo(self, rows: slice) -> slice:
        """`rows` and, where spans may pair it with the last of them, the row after."""
        return slice(rows.start, rows.stop + int(self.has_pairs and rows.stop < self.num_distilled))

    def word(self, rows: slice) -> torch.Tensor | TopClasses | None:
        """The teacher's word on those of `rows` that have one; None where none has."""
        rows = slice(rows.start, min(rows.stop, self.num_distilled))
        if rows.start >= rows.stop:
            return None
        assert self.target is not None, "vocab_pass: a divergence or span needs a target"
        return self.target(rows)


class _Gradients(NamedTuple):
    """Sums of gradients, in the order of the inputs; None for an input that wants none."""

    hidden_ND: torch.Tensor | None
    weight_VD: torch.Tensor | None
    bias_V: torch.Tensor | None
    parameters: tuple[torch.Tensor, ...]

    def add_block(
        self, rows: slice, gradient_CV: torch.Tensor, hidden_CD: torch.Tensor, head: Head, products: Products
    ) -> None:
        """What the gradient of one block's raw logits means for the body and the head."""
        operand_CV = gradient_CV.to(products.storage)
        if self.hidden_ND is not None:
            self.hidden_ND[rows] = products(operand_CV, head.weight_VD)
        if self.weight_VD is not None:
            products.accumulate(self.weight_VD[: head.num_classes], operand_CV.T, hidden_CD)
        if self.bias_V is not None:
            self.bias_V[: head.num_classes] += gradient_CV.sum(0)


class _GradientInForward(torch.autograd.Function):
    """The walk as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, task: _Task, sums: dict[str, torch.Tensor], *inputs: torch.Tensor | None) -> torch.Tensor:
        in_place = task.into_grad and _holds_gradient(task.head.weight_VD)
        hidden, weight, bias, *parameters = [
            torch.zeros_like(tensor, dtype=loss_dtype(tensor))
            if tensor is not None and tensor.requires_grad and not (in_place and tensor is task.head.weight_VD)
            else None
            for tensor in inputs
        ]
        own = task.head.weight_VD.grad if in_place else weight
        found = _Gradients(hidden, own, bias, tuple(total for total in parameters if total is not None))
        objective, task_sums = _walk(task, found)
        sums.update(task_sums)
        ctx.in_place, ctx.gradients = in_place, found._replace(weight_VD=weight)
        return objective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place, since a copy of a head's gradient is large; so the node has its gradients once.
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "vocab_pass: its graph can be walked backward once"
        if ctx.in_place:
            torch._assert_async(scale == 1, "vocab_pass: the head's gradient was added already, as of a backward from 1")
        hidden, weight, bias, parameters = gradients
        return None, None, *(None if total is None else total.mul_(scale) for total in (hidden, weight, bias, *parameters))


def _holds_gradient(weight_VD: torch.Tensor) -> bool:
    """Whether the weight's `grad` can take sums as they are; it is made where it is missing."""
    if not (weight_VD.requires_grad and weight_VD.is_leaf and weight_VD.dtype == loss_dtype(weight_VD)):
        return False
    if weight_VD.grad is None:
        weight_VD.grad = torch.zeros_like(weight_VD)
    return True


def _walk(task: _Task, gradients: _Gradients | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The objective and the sums; gradients, where wanted, are added to `gradients`."""
    with torch.no_grad():
        products = Products.like(task.hidden_ND)
        head = task.head.prepared(task.hidden_ND)
        hidden_ND = task.hidden_ND.to(products.storage)
        sums = {term.name: hidden_ND.new_zeros((), dtype=products.result) for term in task.terms}
        carry_V: torch.Tensor | None = None
        for block in cuts(slice(0, len(hidden_ND)), task.cut_rows.block):
            carry_V = _walk_block(task, head, products, hidden_ND, block, carry_V, sums, gradients)
        objective = hidden_ND.new_zeros((), dtype=products.result)
        for term in task.terms:
            objective = objective + term.coefficient * sums[term.name]
    return objective, sums


def _walk_block(
    task: _Task,
    head: Head,
    products: Products,
    hidden_ND: torch.Tensor,
    block: slice,
    carry_V: torch.Tensor | None,
    sums: dict[str, torch.Tensor],
    gradients: _Gradients | None,
) -> torch.Tensor | None:
    """Add one block to `sums` and `gradients`; takes and returns the halo row's gradient from the tile before.

    A function of its own, so that no tensor of a block is alive when those of the next are made.
    """
    read = task.with_halo(block)
    logits_CV = head.raw(hidden_ND[read], products)
    word = task.word(read)
    for rows in _tiles(task, block):
        found, gradient_CV = _visit(task, logits_CV, word, rows, block.start, gradients)
        for name, total in found.items():
            sums[name] = sums[name] + total if name in sums else total
        if gradient_CV is not None:
            if carry_V is not None:
                gradient_CV[0] += carry_V
            num_rows = rows.stop - rows.start
            carry_V = gradient_CV[-1].clone() if len(gradient_CV) > num_rows else None
            # The logits of these rows are spent: their place holds their gradient from here on.
            logits_CV[rows.start - block.start : rows.stop - block.start] = gradient_CV[:num_rows]
    if gradients is not None:
        del word
        gradients.add_block(block, logits_CV[: block.stop - block.start], hidden_ND[block], head, products)
    return carry_V


def _visit(
    task: _Task,
    logits_CV: torch.Tensor,
    word: torch.Tensor | TopClasses | None,
    rows: slice,
    start: int,
    gradients: _Gradients | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The terms' sums over one tile of the block that begins at `start`, and the gradient of its raw logits, the halo's too."""
    read = task.with_halo(rows)
    inside = slice(read.start - start, read.stop - start)
    is_distilled = rows.stop <= task.num_distilled
    core, coefficients, tensors = _core(task.head, task.terms, rows, task.num_distilled, logits_CV.device)
    tile = Tile(logits_CV[inside], _rows(word, inside) if is_distilled else None, tensors)
    with torch.autocast(logits_CV.device.type, enabled=False):
        if gradients is None:
            return core(tile.raw_CV, tile.word, tensors), None
        if not core.rules:
            return {}, torch.zeros_like(tile.raw_CV)
        fill = (task.cut_rows.tile, int(is_distilled and task.has_pairs)) if task.compiled else None
        sums, gradient_CV, others = visit(core, tile, coefficients, task.parameters, fill)
    for total, other in zip(gradients.parameters, others, strict=True):
        if other is not None:
            total += other
    return sums, gradient_CV


def _tiles(task: _Task, block: slice) -> list[slice]:
    """The block's tiles; those of rows that have a teacher come first, and none has rows of both kinds."""
    return [tile for part in _parts(block, task.num_distilled) for tile in cuts(part, task.cut_rows.tile)]


def _parts(rows: slice, num_distilled: int) -> list[slice]:
    """`rows` that have a teacher, and those that have none; what is empty is left out."""
    middle = max(rows.start, min(rows.stop, num_distilled))
    return [part for part in (slice(rows.start, middle), slice(middle, rows.stop)) if part.start < part.stop]


def _core(
    head: Head, terms: Sequence[Term], rows: slice, num_distilled: int, device: torch.device
) -> tuple[Core, list[float], tuple[tuple[torch.Tensor, ...], ...]]:
    """The arithmetic of a tile, with the coefficients and tensors of the terms that have a part in it."""
    is_distilled = rows.stop <= num_distilled
    mine = [
        (term, tensors)
        for term in terms
        if len((tensors := term.tensors(rows, device))[0])
        and (is_distilled or not isinstance(term, (DivergenceTerm, SpanTerm)))
    ]
    core = Core(tuple(term.rule for term, _ in mine), head.scale, head.softcap)
    return core, [term.coefficient for term, _ in mine], tuple(tensors for _, tensors in mine)


def _rows(word: torch.Tensor | TopClasses | None, rows: slice) -> torch.Tensor | TopClasses | None:
    if word is None or isinstance(word, torch.Tensor):
        return None if word is None else word[rows]
    return TopClasses(*(tensor[rows] for tensor in word))


def _num_distilled(terms: Sequence[Term]) -> int:
    """How many rows, from the front, have a teacher."""
    divergences = [term.num_rows for term in terms if isinstance(term, DivergenceTerm)]
    spans = [len(term.pair_weight_N) for term in terms if isinstance(term, SpanTerm)]
    return next(iter(divergences + spans), 0)


def _parameters(terms: Sequence[Term]) -> tuple[torch.nn.Parameter, ...]:
    """What the divergences learn."""
    one_of_each = len({type(term) for term in terms}) == len({term.name for term in terms}) == len(terms)
    assert one_of_each, "one term of each kind, each with a name of its own: sums go by name"
    divergences = [term.divergence for term in terms if isinstance(term, DivergenceTerm)]
    modules = [divergence for divergence in divergences if isinstance(divergence, torch.nn.Module)]
    return tuple(parameter for module in modules for parameter in module.parameters() if parameter.requires_grad)
