"""How far DAC-KL's compact reading of the sorted teacher is from the exact one, over real text.

    python -m benchmarks.compact --model models/smollm2 --data dolly/validation.jsonl

The student's hidden states are the teacher's with noise.  An exact network, at its start and after updates of f_sub alone,
gets a compact twin: the same weights of the 512 largest, and the mean weight of each bucket's ranks.  The two are compared on
rows that nothing was trained on.  Then a compact network is trained from its own start, to see whether it gets as far.
"""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks import measuring
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.losses.clip_network import ClipNetworkConfig, SortedInput
from redistill.losses.clip_ranks import rank_edges
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.models.families import body, head
from redistill.models.load import ModelConfig, load_model
from redistill.randomness import generator, torch_seed

SEED = 10
NOISE = 0.35  # of the hidden states' own size: a student 0.8 nats from the teacher
RATE = 5e-4  # of f_sub, as in the recipes
BATCH = 64

Rows = tuple[torch.Tensor, torch.Tensor]


@torch.no_grad()
def rows(model: str, data: str, num_records: int) -> Rows:
    """Log-probabilities of student and teacher on the answers of some records."""
    teacher, tokenizer = load_model(ModelConfig(model=model))
    records, _ = read_records(data)
    examples, _ = tokenize_training(records, tokenizer, TokenizeConfig(prompt_tokens=128, response_tokens=96), SEED)
    network, classifier = body(teacher.eval()), head(teacher, len(tokenizer))
    parts = []
    for example in examples[:num_records]:
        token_ids = torch.tensor([example.token_ids])
        hidden_TD = network(token_ids, torch.ones_like(token_ids))[0, :-1]
        parts.append(hidden_TD[torch.tensor(example.supervised[1:])])
    hidden_ND = torch.cat(parts).float()
    noise_ND = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(torch_seed(SEED, "noise")))
    student_ND = hidden_ND + NOISE * hidden_ND.std(dim=-1, keepdim=True) * noise_ND
    logq_NV, logp_NV = (classifier.logits(states).log_softmax(dim=-1) for states in (student_ND, hidden_ND))
    return logq_NV, logp_NV


def dac_kl(form: SortedInput, vocabulary: int) -> DacKL:
    return DacKL(DacKLConfig(network=ClipNetworkConfig(sorted=form)), vocabulary, SEED)


def twin(exact: DacKL, vocabulary: int) -> DacKL:
    """The compact network nearest to an exact one."""
    compact = dac_kl("compact", vocabulary)
    state = exact.state_dict()
    edges = rank_edges(vocabulary)
    top, *buckets = state["network.sorted_weight"].tensor_split(edges[:-1])
    state["network.sorted_weight"] = torch.cat([top, *(bucket.mean(dim=0, keepdim=True) for bucket in buckets)])
    compact.load_state_dict(state)
    return compact


def train(divergence: DacKL, known: Rows, updates: int, rate: float) -> None:
    """Updates of f_sub alone, as a run makes them."""
    optimizer = torch.optim.AdamW(divergence.parameters(), lr=rate, weight_decay=0.01)
    for update in range(updates):
        picked = generator(SEED, "rows", update).choice(len(known[0]), BATCH, replace=False)
        divergence_N, _ = divergence(*(rows_NV[picked] for rows_NV in known))
        divergence_N.mean().backward()
        torch.nn.utils.clip_grad_norm_(divergence.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def read(divergence: DacKL, new: Rows) -> Iterator[dict[str, torch.Tensor]]:
    """What a network says of the rows: interval, kept classes, value, and gradient of the student's logits; batch by batch."""
    for logq_NV, logp_NV in zip(*(rows_NV.split(BATCH) for rows_NV in new), strict=True):
        logits_NV = logq_NV.clone().requires_grad_()
        divergence_N, kept = divergence(logits_NV.log_softmax(dim=-1), logp_NV)
        (gradient_NV,) = torch.autograd.grad(divergence_N.sum(), logits_NV)
        keep_NV = divergence.kept(logq_NV, logp_NV)
        yield {"divergence": divergence_N.detach(), "gradient": gradient_NV, "keep": keep_NV, **kept}


def compare(exact: DacKL, compact: DacKL, new: Rows) -> dict[str, float]:
    """Errors of the compact reading."""
    lower, upper, jaccard, squares = [], [], [], np.zeros(2)
    for one, other in zip(read(exact, new), read(compact, new), strict=True):
        lower.append((other["lower"] / one["lower"] - 1).abs())
        upper.append((other["upper"] / one["upper"] - 1).abs())
        jaccard.append((one["keep"] & other["keep"]).sum(-1) / (one["keep"] | other["keep"]).sum(-1))
        difference = other["gradient"] - one["gradient"]
        squares += [float(tensor.double().square().sum()) for tensor in (difference, one["gradient"])]
    lower_N, upper_N, jaccard_N = (torch.cat(parts).double() for parts in (lower, upper, jaccard))
    return {
        "l, mean relative error": float(lower_N.mean()),
        "l, 99th percentile": float(lower_N.quantile(0.99)),
        "u, mean relative error": float(upper_N.mean()),
        "u, 99th percentile": float(upper_N.quantile(0.99)),
        "kept classes, mean Jaccard": float(jaccard_N.mean()),
        "rows that keep the same classes": float((jaccard_N == 1).double().mean()),
        "gradient, relative error": float((squares[0] / squares[1]) ** 0.5),
    }


def reached(divergence: DacKL, new: Rows) -> dict[str, float]:
    """Means over the rows."""
    found = list(read(divergence, new))
    lower_N = torch.cat([each["lower"] for each in found])
    means = {
        name: float(torch.cat([each[name] for each in found]).mean()) for name in ("divergence", "kept_mass", "kept_classes")
    }
    return {**means, "logit of l, mean": float(lower_N.logit().mean()), "logit of l, s.d.": float(lower_N.logit().std())}


def main() -> None:
    paths = {"model": {"required": True}, "data": {"required": True, "help": "a .jsonl of instructions and outputs"}}
    options = measuring.arguments(__doc__ or "", **paths, updates={"type": int, "default": 300})
    logq_NV, logp_NV = rows(options.model, options.data, 6 if options.quick else 24)
    cut, vocabulary = 3 * len(logp_NV) // 4, logp_NV.shape[1]
    known, new = (logq_NV[:cut], logp_NV[:cut]), (logq_NV[cut:], logp_NV[cut:])
    updates = 3 if options.quick else options.updates
    exact = dac_kl("exact", vocabulary)
    results: dict[str, object] = {
        "rows": {"trained on": cut, "compared": len(logp_NV) - cut, "classes": vocabulary, "updates": updates},
        "forward KL": float((logp_NV.exp() * (logp_NV - logq_NV)).sum(-1).mean()),
        "at the start": compare(exact, twin(exact, vocabulary), new),
    }
    compact = dac_kl("compact", vocabulary)
    train(exact, known, updates, RATE)
    train(compact, known, updates, RATE)
    results["after updates"] = {
        "error": compare(exact, twin(exact, vocabulary), new),
        "reached, exact": reached(exact, new),
        "reached, compact from its own start": reached(compact, new),
    }
    measuring.write("compact", results, quick=options.quick)


if __name__ == "__main__":
    main()
