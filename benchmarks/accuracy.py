"""Errors of loss and gradients in bf16 against float64, with a real head on real text, as the student nears the teacher.

The teacher's hidden states are the model's own on a page of this project, the student's are these with noise; both have its
head.  All are rounded to bf16 first, and float64 computes from the rounded ones, so the figures are errors of the arithmetic.
All rivals have what mixed training has: bf16 hidden states, fp32 heads, bf16 autocast.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks import measuring
from redistill.losses.divergences import ForwardKL, JensenShannon
from redistill.models.families import body, head
from redistill.models.load import ModelConfig, load_model
from redistill.vocab_pass import DivergenceTerm, Head, vocab_pass

NOISE = (0.3, 0.06, 0.0157)  # of a hidden state's own size; the last gives a forward KL of 0.003
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
BETA = {"forward_kl": 0.0, "jsd": 0.5}
DIVERGENCES = {"forward_kl": ForwardKL(), "jsd": JensenShannon(teacher_weight=0.5)}
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # the student's hidden states, the teacher's, the head


def exact(hidden: torch.Tensor, taught: torch.Tensor, weight: torch.Tensor, divergence: str) -> torch.Tensor:
    """The mean by plain autograd, in the inputs' dtype."""
    logq = functional.log_softmax(hidden @ weight.T, -1)
    logp = functional.log_softmax(taught @ weight.detach().T, -1)
    return DIVERGENCES[divergence](logq, logp).mean()


def ours(hidden: torch.Tensor, taught: torch.Tensor, weight: torch.Tensor, divergence: str) -> torch.Tensor:
    def target(rows: slice) -> torch.Tensor:
        with torch.no_grad():
            return Head(weight).logits(taught[rows])

    term = DivergenceTerm(1 / len(hidden), DIVERGENCES[divergence], len(hidden))
    return vocab_pass(hidden, Head(weight), target, [term], compiled=True)[0]


def liger(hidden: torch.Tensor, taught: torch.Tensor, weight: torch.Tensor, divergence: str) -> torch.Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(0.0, 1.0, beta=BETA[divergence], chunk_size=256)
    found = loss(hidden, weight, taught, weight.detach(), torch.zeros(len(hidden), dtype=torch.long, device=hidden.device))
    return found[0] if isinstance(found, tuple) else found


def trl_chunked(hidden: torch.Tensor, taught: torch.Tensor, weight: torch.Tensor, divergence: str) -> torch.Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    both = hidden, weight, None, taught, weight.detach(), None
    return ChunkedDivergenceFunction.apply(*both, BETA[divergence])[0].mean()


def trl_gkd(hidden: torch.Tensor, taught: torch.Tensor, weight: torch.Tensor, divergence: str) -> torch.Tensor:
    from trl.experimental.gkd import GKDTrainer

    logits, teacher_logits = (hidden @ weight.T)[None], (taught @ weight.detach().T)[None]
    labels = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
    return GKDTrainer.generalized_jsd_loss(logits, teacher_logits, labels=labels, beta=BETA[divergence])


def measured(
    work: Callable[..., torch.Tensor], inputs: Inputs, dtypes: tuple[torch.dtype, ...], name: str, *, autocast: bool
) -> list[torch.Tensor]:
    """The loss and both gradients, in float64."""
    hidden, taught, weight = (tensor.detach().to(dtype) for tensor, dtype in zip(inputs, dtypes, strict=True))
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=autocast):
        loss = work(hidden, taught, weight, name)
    loss.backward()
    return [tensor.detach().double() for tensor in (loss, hidden.grad, weight.grad) if tensor is not None]


@torch.no_grad()
def read(model_name: str, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of a page and the head, both rounded to bf16."""
    model, tokenizer = load_model(ModelConfig(model=model_name))
    ids = torch.tensor([tokenizer(PAGE.read_text())["input_ids"][:num_rows]])
    return body(model)(ids, torch.ones_like(ids))[0].bfloat16(), head(model).weight_VD.bfloat16()


def main() -> None:
    options = measuring.arguments(__doc__ or "", model={"default": "HuggingFaceTB/SmolLM2-135M"})
    taught, weight = read(options.model, 32 if options.quick else 512)
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rivals = {"redistill": ours, "liger": liger, "trl chunked": trl_chunked, "trl gkd": trl_gkd}
    results = {}
    for level in NOISE[1:2] if options.quick else NOISE:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(taught.shape, generator=generator) * taught.float().square().mean(-1, keepdim=True).sqrt()
        inputs = (taught.float() + level * noise).bfloat16(), taught, weight
        for name in DIVERGENCES:
            wanted = measured(exact, inputs, (double, double, double), name, autocast=False)
            errors = {}
            for rival, work in rivals.items():
                found = measured(work, inputs, (half, half, single), name, autocast=True)
                errors[rival] = {
                    what: float((ours - theirs).norm() / theirs.norm())
                    for what, ours, theirs in zip(("loss", "hidden", "head"), found, wanted, strict=True)
                }
                print(f"noise {level}, {name} {float(wanted[0]):.4f}, {rival}: {errors[rival]}", flush=True)
            results[f"noise {level}, {name}"] = {"value": float(wanted[0]), "relative errors": errors}
    measuring.write("accuracy", results, quick=options.quick)


if __name__ == "__main__":
    main()
