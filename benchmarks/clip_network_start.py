"""Does f_sub's first layer start with unit normal weights, or with those of a layer of 3V inputs?

    python benchmarks/clip_network_start.py models/smollm2 dolly/validation.jsonl

The rows of a few gold answers are read once by the teacher and by a student of every third of its layers.  Then f_sub alone is
trained on them, from either start, and what matters of it is printed: how far its hidden units are from 0, how large its
gradient is, and how differently it treats two rows after 30 updates.
"""

import math
import sys

import torch

from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.losses.clip_network import ClipNetwork, ClipNetworkConfig
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.models.initialise import student_from_layers
from redistill.models.load import ModelConfig, load_model

LAYERS = (0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 29)
UPDATES = 30


def main(model: str, data: str) -> None:
    logq_NV, logp_NV = rows(model, data)
    inputs_N = (2 * logp_NV.exp().square().sum(-1) + logq_NV.exp().square().sum(-1)).sqrt()
    print(f"{len(logp_NV)} rows of {logp_NV.shape[1]} classes; mean norm of f_sub's input {inputs_N.mean():.2f}")
    for name, rescale in (("unit normal", False), ("uniform in ±1/sqrt(3V)", True)):
        dac_kl = DacKL(DacKLConfig(network=ClipNetworkConfig(sorted="exact")), logp_NV.shape[1], seed=10)
        assert dac_kl.network is not None
        if rescale:
            usual_scale(dac_kl.network)
        print(f"{name}: {measure(dac_kl, logq_NV, logp_NV)}")


@torch.no_grad()
def rows(model: str, data: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of student and teacher on the answers of five records."""
    teacher, tokenizer = load_model(ModelConfig(model=model))
    student = student_from_layers(teacher, LAYERS)
    records, _ = read_records(data)
    examples, _ = tokenize_training(records, tokenizer, TokenizeConfig(prompt_tokens=96, response_tokens=32), 0)

    def read(network: torch.nn.Module) -> torch.Tensor:
        parts = [
            network(torch.tensor([example.token_ids])).logits[0, :-1][torch.tensor(example.supervised[1:])]
            for example in examples[:5]
        ]
        return torch.cat(parts).float().log_softmax(dim=-1)

    return read(student), read(teacher)


def usual_scale(network: ClipNetwork) -> None:
    """The start that torch gives a linear layer of 3V inputs."""
    generator = torch.Generator().manual_seed(0)
    bound = 1 / math.sqrt(3 * network.teacher_weight.shape[0])
    with torch.no_grad():
        for weight in (network.teacher_weight, network.sorted_weight, network.student_weight):
            weight.uniform_(-bound, bound, generator=generator)


def measure(dac_kl: DacKL, logq_NV: torch.Tensor, logp_NV: torch.Tensor) -> str:
    network = dac_kl.network
    assert network is not None
    p_NV = logp_NV.exp()
    hidden_NH = p_NV @ network.teacher_weight + logq_NV.exp() @ network.student_weight
    hidden_NH = hidden_NH + p_NV.sort(-1, descending=True).values @ network.sorted_weight
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-4, weight_decay=0.01)
    found = [f"hidden units {hidden_NH.std():.4f}"]
    for update in range(UPDATES + 1):
        divergence_N, kept = dac_kl(logq_NV, logp_NV)
        if update == UPDATES:
            lower_N = kept["lower"]
            found += [f"logit of l {lower_N.logit().mean():.3f} ± {lower_N.logit().std():.5f} over rows"]
            found += [f"divergence {divergence_N.mean():.3f}"]
            break
        divergence_N.mean().backward()
        if update == 0:
            found += [
                f"divergence {divergence_N.mean():.3f}",
                f"gradient of the output weights {network.output_weight.grad.norm():.4f}",
            ]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return ", ".join(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
