"""The vocabulary pass: LM head, loss terms and gradients, in chunks of rows.

A row is the prediction of one token.  The rows are divided into blocks.  The logits of a block are one matrix product of its
hidden states with the LM head.  Each block is divided into tiles, on which the loss terms are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from redistill.contracts import TeacherTarget
from redistill.tensors import loss_dtype
from redistill.vocab_pass.core import Core, Sums, Tensors, Tile, of_rows, visit
from redistill.vocab_pass.cutting import CutRows, chunk_budget, cut_rows, cuts, padded_rows
from redistill.vocab_pass.head import Head, Products
from redistill.vocab_pass.rules import TargetRows
from redistill.vocab_pass.terms import DivergenceTerm, SpanTerm, Term


def vocab_pass(
    student_hidden_ND: Tensor,
    student_head: Head,
    target: TeacherTarget | None,
    terms: Sequence[Term],
    chunk_bytes: int | None = None,
    *,
    compiled: bool = False,
    into_grad: bool = False,
) -> tuple[Tensor, Sums]:
    r"""Return the objective and the sums of its terms, in one pass over the rows.

    .. math:: L = \sum_k c_k \sum_n l_k(n) \quad \text{over terms } k \text{ with coefficients } c_k \text{ and rows } n

    The forward pass also computes the gradients of the hidden states, the head and the divergence's parameters, in chunks
    of rows. The backward pass multiplies these gradients by the incoming scalar.  An input that requires a gradient gets a
    gradient of 0 if it has no effect: in data-parallel training, all processes must have gradients of the same tensors.  The
    span loss compares neighbouring rows. If the rows of a pair are in different chunks, the second row (the halo row) is
    computed in both chunks, and its two gradients are added.

    Args:
        student_hidden_ND: Hidden states of the rows.  Only positions that predict a target token have a row.
        student_head: The student's head; no gradient is computed for frozen weights.
        target: Function that returns the teacher's logits of a slice of rows; None without divergence and span terms.
        terms: The terms of the objective; at most one of each class, each with its own name.
        chunk_bytes: Approximate memory limit of all [rows, vocabulary] tensors together; a chunk has at least one row.  If
            None, `chunk_budget` computes it from the head and the device.
        compiled: Whether the loss terms and their gradients are compiled with torch.compile.
        into_grad: Whether the forward pass adds the gradient of the head's weight directly to `weight.grad`, to save
            memory. This is done only if the weight is an autograd leaf of dtype float32 or float64.  The backward pass must
            then be called once, with a gradient of 1.

    Returns:
        The objective (sum of coefficient x sum over rows; a scalar), and the sums of terms and diagnostics by name, detached
        and without coefficients, in float64.  The diagnostics of a term are absent if no row belongs to the term.

    Raises:
        ConfigError: a divergence does not return one value for each row.

    Example:
        >>> from redistill.vocab_pass import CrossEntropyTerm
        >>> hidden_ND, weight_VD = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> term = CrossEntropyTerm(0.5, torch.tensor([0, 1]), torch.tensor([True, True]))  # the mean of two rows
        >>> loss, sums = vocab_pass(hidden_ND.requires_grad_(), Head(weight_VD), None, [term])
        >>> loss.backward()
        >>> loss.detach(), sums["sft"], hidden_ND.grad.shape
        (tensor(0.5514), tensor(1.1029, dtype=torch.float64), torch.Size([2, 2]))

    See also: dense_reference.
    """
    assert student_hidden_ND.ndim == 2, f"hidden states of shape {tuple(student_hidden_ND.shape)}: pick the rows [N, D] first"
    one_of_each = len({type(term) for term in terms}) == len({term.name for term in terms}) == len(terms)
    assert one_of_each, "vocab_pass: at most one term of each kind, each with its own name"
    budget = chunk_budget(student_head.num_bytes, student_hidden_ND.device) if chunk_bytes is None else chunk_bytes
    task = _Task(student_hidden_ND, student_head, target, terms, Products.like(student_hidden_ND), budget, compiled)
    inputs = (student_hidden_ND, student_head.weight_VD, student_head.bias_V, *task.parameters)
    sums: Sums = {}
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        return _GradientInForward.apply(task, into_grad, sums, *inputs), sums  # type: ignore[no-untyped-call]  # not annotated in torch
    return _walk(task, sums, None), sums


def dense_reference(
    student_hidden_ND: Tensor, student_head: Head, target: TeacherTarget | None, terms: Sequence[Term]
) -> tuple[Tensor, Sums]:
    """Return the results of `vocab_pass`, computed with autograd on [N, V] tensors.

    Tests compare `vocab_pass` with this function.

    Args:
        student_hidden_ND, student_head, target, terms: Hidden states, head, teacher and terms, as in `vocab_pass`.

    Returns:
        The objective, a scalar, and the sums of terms and diagnostics by name, without coefficients.

    Example:
        >>> from redistill.vocab_pass import CrossEntropyTerm
        >>> hidden_ND, weight_VD = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> term = CrossEntropyTerm(0.5, torch.tensor([0, 1]), torch.tensor([True, True]))
        >>> loss, _ = dense_reference(hidden_ND, Head(weight_VD), None, [term])
        >>> torch.allclose(loss, vocab_pass(hidden_ND, Head(weight_VD), None, [term])[0])
        True
    """
    task = _Task(student_hidden_ND, student_head, target, terms, Products.like(student_hidden_ND))
    raw_NV = student_head.raw(student_hidden_ND, task.products)
    sums = {term.name: raw_NV.new_zeros((), dtype=torch.float64) for term in terms}
    with torch.autocast(raw_NV.device.type, enabled=False):
        for rows in _parts(slice(0, len(raw_NV)), task.num_distilled):
            core, _, tensors = task.core(rows)
            for name, total in core(raw_NV[rows], task.target_rows(rows), tensors).items():
                sums[name] = sums[name] + total if name in sums else total
        objective = sum((term.coefficient * sums[term.name] for term in terms), start=raw_NV[:0].sum(dtype=torch.float64))
    return objective.to(raw_NV.dtype), {name: total.detach() for name, total in sums.items()}


@dataclass(frozen=True, eq=False)
class _Task:
    """The arguments of one call of `vocab_pass`, and values derived from them."""

    hidden_ND: Tensor
    head: Head
    target: TeacherTarget | None
    terms: Sequence[Term]
    products: Products
    chunk_bytes: int = 0
    compiled: bool = False

    @property
    def num_distilled(self) -> int:
        """Number of rows that are compared with the teacher: the first rows of the batch."""
        divergences = [term.num_rows for term in self.terms if isinstance(term, DivergenceTerm)]
        spans = [len(term.pair_weight_N) for term in self.terms if isinstance(term, SpanTerm)]
        return next(iter(divergences + spans), 0)

    @property
    def has_pairs(self) -> bool:
        return any(isinstance(term, SpanTerm) for term in self.terms)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Trainable parameters of the divergence."""
        divergences = [term.divergence for term in self.terms if isinstance(term, DivergenceTerm)]
        modules = [divergence for divergence in divergences if isinstance(divergence, torch.nn.Module)]
        return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]

    @property
    def cut_rows(self) -> CutRows:
        row_bytes = self.head.num_classes * loss_dtype(self.hidden_ND).itemsize
        return cut_rows(self.chunk_bytes, row_bytes, self.compiled, self.hidden_ND.device)

    def with_halo(self, rows: slice) -> slice:
        """Return `rows`, extended by the next row (the halo row) if a span term needs it.

        The span loss compares the last of `rows` with the next row, if the next row is one of the first `num_distilled` rows.
        """
        return slice(rows.start, rows.stop + int(self.has_pairs and rows.stop < self.num_distilled))

    def target_rows(self, rows: slice) -> TargetRows | None:
        """Return the teacher's logits, `TopClasses` or `SampledClasses` of `rows`.

        Only the first `num_distilled` rows of the batch are included; if `rows` contains none of them, the result is None.
        """
        rows = slice(rows.start, min(rows.stop, self.num_distilled))
        if rows.start >= rows.stop:
            return None
        assert self.target is not None, "vocab_pass: a divergence or span needs a target"
        return self.target(rows)

    def core(self, rows: slice) -> tuple[Core, list[float], Tensors]:
        """Return the function that computes the terms of a tile, and values for its call.

        The values are the coefficients of the terms and the tensor arguments.  Terms without rows in the tile are left out.
        """
        is_distilled = rows.stop <= self.num_distilled
        own = [term for term in self.terms if is_distilled or not isinstance(term, DivergenceTerm | SpanTerm)]
        found = [(term, term.tensors(rows, self.hidden_ND.device)) for term in own]
        found = [(term, tensors) for term, tensors in found if len(tensors[0])]
        core = Core(tuple(term.rule for term, _ in found), self.head.scale, self.head.softcap)
        return core, [term.coefficient for term, _ in found], tuple(tensors for _, tensors in found)


class _Gradients(NamedTuple):
    """Gradients of the inputs of `vocab_pass`; None for an input without gradient."""

    hidden_ND: Tensor | None
    weight_VD: Tensor | None
    bias_V: Tensor | None
    parameters: tuple[Tensor, ...]

    def add_block(self, task: _Task, rows: slice, gradient_CV: Tensor) -> None:
        """Backpropagate the gradient of one block's raw logits through the head.

        The gradient of the block's hidden states is stored in the rows `rows` of `self.hidden_ND`.  The gradients of weight and
        bias are added to `self.weight_VD` and `self.bias_V`.
        """
        operand_CV = gradient_CV.to(task.products.storage)
        if self.hidden_ND is not None:
            self.hidden_ND[rows] = task.products(operand_CV, task.head.weight_VD)
        if self.weight_VD is not None:
            task.products.accumulate(self.weight_VD[: task.head.num_classes], operand_CV.T, task.hidden_ND[rows])
        if self.bias_V is not None:
            self.bias_V[: task.head.num_classes] += gradient_CV.sum(0)


class _GradientInForward(torch.autograd.Function):
    """An autograd function whose forward pass already computes all gradients."""

    @staticmethod
    def forward(ctx: Any, task: _Task, into_grad: bool, sums: Sums, *inputs: Tensor | None) -> Tensor:
        in_place = into_grad and _holds_gradient(task.head.weight_VD)
        hidden, weight, bias, *parameters = [
            torch.zeros_like(tensor, dtype=loss_dtype(tensor))
            if tensor is not None and tensor.requires_grad and not (in_place and tensor is task.head.weight_VD)
            else None
            for tensor in inputs
        ]
        own = task.head.weight_VD.grad if in_place else weight
        found = _Gradients(hidden, own, bias, tuple(total for total in parameters if total is not None))
        objective = _walk(task, sums, found)
        ctx.in_place, ctx.gradients = in_place, found._replace(weight_VD=weight)
        return objective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # Gradients are scaled in place, since a copy of a head's gradient is large.  So backward can be called only once.
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "vocab_pass: backward can be called only once"
        if ctx.in_place:
            torch._assert_async(scale == 1, "vocab_pass: with into_grad, backward needs a gradient of 1")
        hidden, weight, bias, parameters = gradients
        return (
            None,
            None,
            None,
            *(None if total is None else total.mul_(scale) for total in (hidden, weight, bias, *parameters)),
        )


def _holds_gradient(weight_VD: Tensor) -> bool:
    """Return whether gradients can be added to `weight_VD.grad`.

    If so, a missing `weight_VD.grad` is created.
    """
    if not (weight_VD.requires_grad and weight_VD.is_leaf and weight_VD.dtype == loss_dtype(weight_VD)):
        return False
    if weight_VD.grad is None:
        weight_VD.grad = torch.zeros_like(weight_VD)
    return True


@torch.no_grad()
def _walk(task: _Task, sums: Sums, gradients: _Gradients | None) -> Tensor:
    """Return the objective; add to `sums` and `gradients` in place.

    If `gradients` is None, no gradients are computed.
    """
    storage, zero = task.products.storage, task.hidden_ND.new_zeros((), dtype=torch.float64)
    task = replace(task, hidden_ND=task.hidden_ND.to(storage), head=task.head.prepared(task.hidden_ND))
    sums |= {term.name: torch.zeros_like(zero) for term in task.terms}
    carry_V: Tensor | None = None
    for block in cuts(slice(0, len(task.hidden_ND)), task.cut_rows.block):
        carry_V = _walk_block(task, block, carry_V, sums, gradients)
    return sum((term.coefficient * sums[term.name] for term in task.terms), start=zero).to(task.products.result)


def _walk_block(task: _Task, block: slice, carry_V: Tensor | None, sums: Sums, gradients: _Gradients | None) -> Tensor | None:
    """Compute the terms on one block of rows; add to `sums` and `gradients`.

    The halo row of a block is the first row of the next block, if the span loss compares it with the block's last row.

    Args:
        carry_V: The result for the previous block.  It is a gradient if the halo row of the previous block is the first row of
            this block; otherwise None.

    Returns:
        The gradient of the raw logits of this block's halo row; None without a halo row or without gradients.
    """
    read = task.with_halo(block)
    logits_CV = task.head.raw(task.hidden_ND[read], task.products)
    target_rows = task.target_rows(read)
    # Tiles of rows with a teacher come first, then tiles of rows without a teacher; no tile has both.
    for rows in (tile for part in _parts(block, task.num_distilled) for tile in cuts(part, task.cut_rows.tile)):
        found, gradient_CV = _visit(task, logits_CV, target_rows, rows, block.start, gradients)
        for name, total in found.items():
            sums[name] = sums[name] + total if name in sums else total
        if gradient_CV is not None:
            if carry_V is not None:
                gradient_CV[0] += carry_V
            num_rows = rows.stop - rows.start
            carry_V = gradient_CV[-1].clone() if len(gradient_CV) > num_rows else None
            # The logits of these rows are not needed any more: their memory is reused for their gradient.
            logits_CV[rows.start - block.start : rows.stop - block.start] = gradient_CV[:num_rows]
    if gradients is not None:
        del target_rows
        gradients.add_block(task, block, logits_CV[: block.stop - block.start])
    return carry_V


def _visit(
    task: _Task, logits_CV: Tensor, target_rows: TargetRows | None, rows: slice, start: int, gradients: _Gradients | None
) -> tuple[Sums, Tensor | None]:
    """Return the sums of the terms over one tile, and the gradient of its raw logits.

    If the span loss needs the halo row (the row after the tile), the gradient includes it.  If `gradients` is None, no
    gradient is computed.  The gradients of the divergence's parameters are added to `gradients` in place.

    Args:
        logits_CV, target_rows: Raw student logits and teacher distributions of the block that contains the tile.
        rows: Rows of the tile.
        start: First row of the block.
    """
    read = task.with_halo(rows)
    inside = slice(read.start - start, read.stop - start)
    is_distilled = rows.stop <= task.num_distilled
    core, coefficients, tensors = task.core(rows)
    tile = Tile(logits_CV[inside], of_rows(target_rows, lambda tensor: tensor[inside]) if is_distilled else None, tensors)
    with torch.autocast(logits_CV.device.type, enabled=False):
        if gradients is None:
            return core(tile.raw_CV, tile.target_rows, tensors), None
        if not core.rules:
            return {}, torch.zeros_like(tile.raw_CV)
        fill = None
        if task.compiled:
            num_rows = padded_rows(rows.stop - rows.start, task.cut_rows.tile, logits_CV.device)
            fill = num_rows, int(is_distilled and task.has_pairs)
        sums, gradient_CV, others = visit(core, tile, coefficients, task.parameters, fill)
    for total, other in zip(gradients.parameters, others, strict=True):
        if other is not None:
            total += other
    return sums, gradient_CV


def _parts(rows: slice, num_distilled: int) -> list[slice]:
    """Split the slice `rows` at the row `num_distilled`; return non-empty parts."""
    middle = max(rows.start, min(rows.stop, num_distilled))
    return [part for part in (slice(rows.start, middle), slice(middle, rows.stop)) if part.start < part.stop]
