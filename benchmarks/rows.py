"""What MGSR costs a row - cross entropy, DAC-KL, span - over plain forward KL in the same pass, matrix products included.

Hidden states and heads of both models are the same for all.  Every row is a target, distilled, and inside a phrase, as none
of a run is: it is the most that a row can cost.  "as written" is DAC-KL read off the paper: a sort, p, sort(p) and q in one
tensor, and a network on it.
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional

from benchmarks import measuring
from benchmarks.loss import Case, Shape
from redistill.losses.clip_network import ClipNetworkConfig
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.losses.divergences import ForwardKL
from redistill.vocab_pass import CrossEntropyTerm, DivergenceTerm, Head, SpanTerm, vocab_pass
from redistill.vocab_pass.terms import Term

SHAPE, QUICK = Shape(1024, 50257, 768, 1600), Shape(64, 20000, 64, 96)
FORWARD_KL = "forward KL"


class AsWritten(nn.Module):
    """DAC-KL by the letters of Eq. 5-8 and autograd, with the gates and biases that ours has."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * vocabulary, 64), nn.Linear(64, 2)
        with torch.no_grad():
            self.second.weight.mul_(0.01)
            self.second.bias.copy_(torch.tensor([4.0, -7.0]))

    def forward(self, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> torch.Tensor:
        p_NV, q_NV = logp_NV.exp(), logq_NV.detach().exp()
        inputs = torch.cat([p_NV, torch.sort(p_NV, dim=-1, descending=True).values, q_NV], dim=-1)
        upper_N1, lower_N1 = self.second(functional.gelu(self.first(inputs))).sigmoid().split(1, dim=-1)
        hard_NV = ((p_NV >= lower_N1) & (p_NV <= upper_N1)).scatter(-1, p_NV.argmax(-1, keepdim=True), True).float()
        soft_NV = ((logp_NV - lower_N1.log()) / 0.5).sigmoid() * ((upper_N1.log() - logp_NV) / 0.5).sigmoid()
        gate_NV = hard_NV + soft_NV - soft_NV.detach()
        return (gate_NV * p_NV * (logp_NV - logq_NV)).sum(-1)


def terms(case: Case, divergence: nn.Module) -> tuple[Term, ...]:
    """MGSR's three on every row."""
    rows, device = case.shape.rows, case.hidden.device
    return (
        CrossEntropyTerm(
            1 / rows,
            torch.arange(rows, device=device) % case.shape.classes,
            torch.ones(rows, dtype=torch.bool, device=device),
        ),
        DivergenceTerm(1 / rows, divergence, rows),
        SpanTerm(1 / rows, torch.ones(rows, device=device), squared=False),
    )


def visit(case: Case, chosen: tuple[Term, ...], *, compiled: bool) -> None:
    """One pass forward and backward, as training makes it."""

    def target(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            return Head(case.teacher_weight).logits(case.teacher_hidden[rows])

    objective, _ = vocab_pass(case.hidden, Head(case.weight), target, chosen, compiled=compiled, into_grad=True)
    objective.backward()
    case.clear()
    for term in chosen:
        if isinstance(term, DivergenceTerm) and isinstance(term.divergence, nn.Module):
            term.divergence.zero_grad(set_to_none=True)


def divergences(classes: int, device: torch.device) -> dict[str, nn.Module]:
    configs = {f"MGSR, {form}": DacKLConfig(network=ClipNetworkConfig(sorted=form)) for form in ("compact", "exact")}
    ours: dict[str, nn.Module] = {name: DacKL(config, classes) for name, config in configs.items()}
    return {name: module.to(device) for name, module in {**ours, "MGSR, DAC-KL as written": AsWritten(classes)}.items()}


def main() -> None:
    options = measuring.arguments(__doc__ or "")
    case = Case(QUICK if options.quick else SHAPE)
    whole = {name: terms(case, module) for name, module in divergences(case.shape.classes, case.hidden.device).items()}
    plain = {FORWARD_KL: (DivergenceTerm(1 / case.shape.rows, ForwardKL(), case.shape.rows),)}
    results: dict[str, object] = {"shape": str(case.shape)}
    for how, compiled in (("compiled", True), ("eager", False)):
        print(how, flush=True)
        works = {name: partial(visit, case, chosen, compiled=compiled) for name, chosen in (plain | whole).items()}
        found = measuring.interleaved(works, 1 if options.quick else options.repetitions or 5)
        results[how] = {"seconds": found, "over forward KL": measuring.ratios(found, FORWARD_KL)}
    measuring.write("rows", results, quick=options.quick)


if __name__ == "__main__":
    main()
