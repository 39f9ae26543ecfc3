"""A divergence's cost, forward and backward to hidden states and head, over the matrix products that no method can spare.

The floor is the student's three products (logits, dH, dW) and the teacher's one.  All rivals get the same hidden states and
heads in fp32.  Ours is what training uses: compiled terms, the default budget, the head's gradient added to its `grad`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn import functional

from benchmarks import measuring
from redistill.losses.divergences import ForwardKL, JensenShannon
from redistill.vocab_pass import DivergenceTerm, Head, vocab_pass


@dataclass(frozen=True)
class Shape:
    """Rows, classes, and the widths of student and teacher."""

    rows: int
    classes: int
    student: int
    teacher: int

    def __str__(self) -> str:
        return f"T={self.rows} V={self.classes} {self.student}/{self.teacher}"


SHAPES = (Shape(1024, 50257, 768, 1600), Shape(512, 151936, 576, 1024))
QUICK = (Shape(64, 20000, 64, 96),)
BETA = {"forward_kl": 0.0, "jsd": 0.5}  # the teacher's share, as TRL and Liger name it
DIVERGENCES = {"forward_kl": ForwardKL(), "jsd": JensenShannon(teacher_weight=0.5)}


class Case:
    """Hidden states and heads of both models; the student's ask for gradients, which `clear` drops."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator, device=device).to(dtype)

        self.shape = shape
        self.hidden, self.teacher_hidden = normal(shape.rows, shape.student), normal(shape.rows, shape.teacher)
        self.weight = normal(shape.classes, shape.student).mul_(shape.student**-0.5)
        self.teacher_weight = normal(shape.classes, shape.teacher).mul_(shape.teacher**-0.5)
        self.hidden.requires_grad_()
        self.weight.requires_grad_()

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def floor(case: Case, divergence: str) -> None:
    """The products alone, on whole tensors; they do not depend on the divergence."""
    with torch.no_grad():
        logits = case.hidden @ case.weight.T
        case.teacher_hidden @ case.teacher_weight.T
        logits @ case.weight
        logits.T @ case.hidden


def ours(case: Case, divergence: str, *, compiled: bool = True) -> None:
    def target(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            return Head(case.teacher_weight).logits(case.teacher_hidden[rows])

    term = DivergenceTerm(1 / case.shape.rows, DIVERGENCES[divergence], case.shape.rows)
    objective, _ = vocab_pass(case.hidden, Head(case.weight), target, [term], compiled=compiled, into_grad=True)
    objective.backward()
    case.clear()


def dense(case: Case, divergence: str) -> None:
    """PyTorch's own functions on full logits."""
    logq = functional.log_softmax((case.hidden @ case.weight.T).float(), -1)
    with torch.no_grad():
        logp = functional.log_softmax((case.teacher_hidden @ case.teacher_weight.T).float(), -1)
    if divergence == "forward_kl":
        loss = functional.kl_div(logq, logp, reduction="batchmean", log_target=True)
    else:
        logm = torch.logaddexp(logq, logp) - torch.tensor(2.0).log()
        loss = 0.5 * (
            functional.kl_div(logm, logp, reduction="batchmean", log_target=True)
            + functional.kl_div(logm, logq, reduction="batchmean", log_target=True)
        )
    loss.backward()
    case.clear()


def liger(case: Case, divergence: str, *, chunk_size: int = 1024) -> None:
    """Its chunked loss; chunks of 1024 are its default, 256 cost it less."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=BETA[divergence], chunk_size=chunk_size)
    labels = torch.zeros(case.shape.rows, dtype=torch.long, device=case.hidden.device)
    found = loss(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight, labels)
    (found[0] if isinstance(found, tuple) else found).backward()
    case.clear()


def trl_chunked(case: Case, divergence: str) -> None:
    """What DistillationTrainer minimises."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    both = case.hidden, case.weight, None, case.teacher_hidden, case.teacher_weight, None
    ChunkedDivergenceFunction.apply(*both, BETA[divergence])[0].mean().backward()
    case.clear()


def trl_gkd(case: Case, divergence: str) -> None:
    """What GKDTrainer minimises, from full logits."""
    from trl.experimental.gkd import GKDTrainer

    logits = (case.hidden @ case.weight.T)[None]
    with torch.no_grad():
        teacher_logits = (case.teacher_hidden @ case.teacher_weight.T)[None]
    GKDTrainer.generalized_jsd_loss(logits, teacher_logits, beta=BETA[divergence]).backward()
    case.clear()


RIVALS: dict[str, Callable[[Case, str], None]] = {
    "floor": floor,
    "redistill": ours,
    "redistill, eager": partial(ours, compiled=False),
    "torch": dense,
    "liger": liger,
    "liger, chunks of 256": partial(liger, chunk_size=256),
    "trl chunked": trl_chunked,
    "trl gkd": trl_gkd,
}


def main() -> None:
    options = measuring.arguments(
        __doc__ or "",
        only={"nargs": "*", "help": "rivals; all where left out"},
        classes={"nargs": "*", "type": int, "help": "sizes of the vocabulary; all where left out"},
    )
    results = {}
    for shape in QUICK if options.quick else SHAPES:
        if options.classes and shape.classes not in options.classes:
            continue
        case = Case(shape)
        for divergence in DIVERGENCES:
            print(f"{shape}, {divergence}", flush=True)
            chosen = {name: work for name, work in RIVALS.items() if not options.only or name in ("floor", *options.only)}
            rivals = {name: partial(work, case, divergence) for name, work in chosen.items()}
            found = measuring.interleaved(rivals, 1 if options.quick else options.repetitions or 5)
            results[f"{shape}, {divergence}"] = {"seconds": found, "over the floor": measuring.ratios(found, "floor")}
    measuring.write("loss", results, quick=options.quick)


if __name__ == "__main__":
    main()
