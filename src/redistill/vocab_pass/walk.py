"""The walk with gradients: block by block for the products, tile by tile for the terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from redistill.contracts import TeacherTarget
from redistill.tensors import loss_dtype
from redistill.vocab_pass.head import Head, Products
from redistill.vocab_pass.terms import DivergenceTerm, SpanTerm, Term

CHUNK_BYTES = 256 * 2**20
"""What the [rows, vocabulary] tensors of a walk may take together."""

# The rows are cut twice: into wide blocks for the matrix products, since each of those passes over the whole head, and these
# into narrow tiles for what autograd keeps of the terms.  Blocks get three quarters of the budget, tiles one (narrow tiles stay
# near the cache); these count the tensors alive at once.
BLOCK_TENSORS = 3  # logits (later their gradient), the teacher's logits, the teacher's log-probabilities
TILE_TENSORS = 10  # log q, p, products of both and their gradients


def vocab_pass(
    student_hidden_ND: torch.Tensor,
    student_head: Head,
    target: TeacherTarget | None,
    terms: Sequence[Term],
    chunk_bytes: int = CHUNK_BYTES,
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
        chunk_bytes: What the [rows, vocabulary] tensors may take together, about; at least a row at a time is read.

    Returns:
        The objective (sum of coefficient x sum over rows; a scalar), and each term's and diagnostic's own sum by name, detached
        and without coefficient.  Diagnostics are absent where no row has a teacher.

    See also: dense_reference.
    """
    assert student_hidden_ND.ndim == 2, f"hidden states of shape {tuple(student_hidden_ND.shape)}: pick the rows [N, D] first"
    task = _Task(student_hidden_ND, student_head, target, tuple(terms), _parameters(terms), chunk_bytes)
    inputs = (student_hidden_ND, student_head.weight_VD, student_head.bias_V, *task.parameters)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs):
        sums: dict[str, torch.Tensor] = {}
        return _GradientInForward.apply(task, sums, *inputs), sums
    return _walk(task, None)


def dense_reference(
    student_hidden_ND: torch.Tensor, student_head: Head, target: TeacherTarget | None, terms: Sequence[Term]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """`vocab_pass` by plain autograd on whole [N, V] tensors: the law that it is held to, and how to read what it does."""
    logits_NV = student_head.logits(student_hidden_ND)
    with torch.autocast(logits_NV.device.type, enabled=False):
        logq_NV = torch.log_softmax(logits_NV, dim=-1)
        num_distilled = _num_distilled(terms)
        logp_NV = logq_NV[:0].detach() if target is None else target(slice(0, num_distilled))
        objective, sums = logq_NV[:0].sum(), {term.name: logq_NV.new_zeros(()) for term in terms}
        for term in terms:
            found = term.sums(logq_NV, logp_NV, slice(0, len(logq_NV)))
            sums |= found
            objective = objective + term.coefficient * sums[term.name]
    return objective, {name: total.detach() for name, total in sums.items()}


def cuts(rows: slice, num_rows: int) -> list[slice]:
    """`rows` in pieces of `num_rows` (of 1 where that is less), the last one shorter."""
    size = max(1, num_rows)
    return [slice(start, min(start + size, rows.stop)) for start in range(rows.start, rows.stop, size)]


@dataclass(frozen=True, eq=False)
class _Task:
    """What one pass has to do."""

    hidden_ND: torch.Tensor
    head: Head
    target: TeacherTarget | None
    terms: tuple[Term, ...]
    parameters: tuple[torch.nn.Parameter, ...]
    chunk_bytes: int

    def with_halo(self, rows: slice) -> slice:
        """`rows` and, where spans may pair it with the last of them, the row after."""
        has_pairs = any(isinstance(term, SpanTerm) for term in self.terms)
        return slice(rows.start, rows.stop + int(has_pairs and rows.stop < _num_distilled(self.terms)))

    def teacher(self, rows: slice, logits_CV: torch.Tensor) -> torch.Tensor:
        """The teacher's log-probabilities of those of `rows` that have one; [0, V] where none has."""
        rows = slice(rows.start, min(rows.stop, _num_distilled(self.terms)))
        if rows.start >= rows.stop:
            return logits_CV[:0]
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
        hidden, weight, bias, *parameters = [
            torch.zeros_like(tensor, dtype=loss_dtype(tensor)) if tensor is not None and tensor.requires_grad else None
            for tensor in inputs
        ]
        ctx.gradients = _Gradients(hidden, weight, bias, tuple(total for total in parameters if total is not None))
        objective, found = _walk(task, ctx.gradients)
        sums.update(found)
        return objective

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place, since a copy of a head's gradient is large; so the node has its gradients once.
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "vocab_pass: its graph can be walked backward once"
        hidden, weight, bias, parameters = gradients
        return None, None, *(None if total is None else total.mul_(scale) for total in (hidden, weight, bias, *parameters))


def _walk(task: _Task, gradients: _Gradients | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The objective and the sums; gradients, where wanted, are added to `gradients`."""
    with torch.no_grad():
        products = Products.like(task.hidden_ND)
        head = task.head.prepared(task.hidden_ND)
        hidden_ND = task.hidden_ND.to(products.storage)
    sums = {term.name: hidden_ND.new_zeros((), dtype=products.result) for term in task.terms}
    quarter = task.chunk_bytes // (4 * head.num_classes * products.result.itemsize)
    carry_V: torch.Tensor | None = None  # the halo row's gradient from the tile before
    with torch.no_grad():
        for block in cuts(slice(0, len(hidden_ND)), 3 * quarter // BLOCK_TENSORS):
            read = task.with_halo(block)
            logits_CV = head.raw(hidden_ND[read], products)
            logp_CV = task.teacher(read, logits_CV)
            for tile in cuts(slice(0, block.stop - block.start), quarter // TILE_TENSORS):
                rows = slice(block.start + tile.start, block.start + tile.stop)
                read = slice(tile.start, task.with_halo(rows).stop - block.start)
                found, gradient_CV = _visit(task, head, logits_CV[read], logp_CV[read], rows, gradients)
                for name, total in found.items():
                    sums[name] = sums[name] + total if name in sums else total
                if gradient_CV is not None:
                    if carry_V is not None:
                        gradient_CV[0] += carry_V
                    carry_V = gradient_CV[-1].clone() if read.stop > tile.stop else None
                    # The logits of these rows are spent: their place holds their gradient from here on.
                    logits_CV[tile] = gradient_CV[: tile.stop - tile.start]
            if gradients is not None:
                gradients.add_block(block, logits_CV[: block.stop - block.start], hidden_ND[block], head, products)
        objective = hidden_ND.new_zeros((), dtype=products.result)
        for term in task.terms:
            objective = objective + term.coefficient * sums[term.name]
    return objective, sums


def _visit(
    task: _Task, head: Head, raw_CV: torch.Tensor, logp_CV: torch.Tensor, rows: slice, gradients: _Gradients | None
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The terms' sums over one tile, and the gradient of its raw logits; the tensors have the halo row, `rows` has not."""
    with torch.set_grad_enabled(gradients is not None), torch.autocast(raw_CV.device.type, enabled=False):
        leaf_CV = raw_CV.detach().requires_grad_(gradients is not None)
        logq_CV = torch.log_softmax(head.finish(leaf_CV), dim=-1)
        sums: dict[str, torch.Tensor] = {}
        objective: torch.Tensor | None = None
        for term in task.terms:
            found = term.sums(logq_CV, logp_CV, rows)
            sums |= found
            if found:
                weighted = term.coefficient * found[term.name]
                objective = weighted if objective is None else objective + weighted
        if gradients is None:
            return sums, None
        if objective is None:
            return sums, torch.zeros_like(leaf_CV)
        gradient_CV, *others = torch.autograd.grad(objective, (leaf_CV, *task.parameters), allow_unused=True)
    for total, other in zip(gradients.parameters, others, strict=True):
        if other is not None:
            total += other
    return {name: value.detach() for name, value in sums.items()}, gradient_CV


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
