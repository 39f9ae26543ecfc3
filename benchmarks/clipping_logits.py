"""The rules of benchmarks/clipping_rules.py with distributions of a real teacher, and a student that cannot match them.

    python -m benchmarks.clipping_logits --model models/smollm2 --data dolly.jsonl [--only min_p_20] [--quick]

The teacher's distributions are those of 256 tokens of gold answers.  Their classes are the 64 most probable ones of each
token, all together, and one class for the rest.  The student has logits of rank 8 (free factors and a bias, no network), so it
must choose what to match.  It minimises the divergence of a rule with 400 updates of Adam.  Columns, as means over the tokens:

`KL`             KL(p, q), nats
`H(q)`           entropy of the student, nats
`log p`          the teacher's log-probability of a token that is sampled from the student: at temperature 1, with top-p 0.9,
                 of the arg max, and at the temperature with which H(q) is 0.75 H(p)
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clipping_rules import RULES, SEEDS, cell, own_rule, spread
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.models.load import ModelConfig, load_model
from redistill.randomness import torch_seed

ROWS, TOP_CLASSES, RANK, UPDATES = 256, 64, 8, 400
LEARNING_RATE, CLIP_LEARNING_RATE = 0.05, 1e-2
ENTROPY_SHARE = 0.75


def teacher_rows(model_folder: str, data: Path, count: int) -> Tensor:
    """Return logp_NV of `count` random tokens of gold answers, with the classes of the module's description."""
    model, tokenizer = load_model(ModelConfig(model=model_folder))
    model.eval()
    random = torch.Generator().manual_seed(torch_seed(SEEDS[0], "rows"))
    records = list(read_records(data)[0][:64])
    tokens = TokenizeConfig(prompt_tokens=160, response_tokens=64, template="alpaca")
    examples, _ = tokenize_training(records, tokenizer, tokens, SEEDS[0])
    rows = []
    for example in examples:
        with torch.no_grad():
            logits_TV = model(torch.tensor([example.token_ids])).logits[0, :-1].float()
        answer_T = torch.tensor(example.supervised[1:])
        rows.append(logits_TV[answer_T].log_softmax(-1))
    logp_NV = torch.cat(rows)
    logp_NV = logp_NV[torch.randperm(len(logp_NV), generator=random)[:count]]
    classes = logp_NV.topk(TOP_CLASSES).indices.unique()
    kept_NV = logp_NV[:, classes]
    rest_N1 = torch.log1p(-kept_NV.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    return torch.cat([kept_NV, rest_N1], dim=-1).log_softmax(-1)


class LowRank(nn.Module):
    """Log-probabilities of rank `RANK`, with free factors."""

    def __init__(self, rows: int, classes: int, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(torch_seed(seed, "low rank"))
        self.rows = nn.Parameter(torch.randn(rows, RANK, generator=random))
        self.classes = nn.Parameter(0.1 * torch.randn(RANK, classes, generator=random))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self) -> Tensor:
        return torch.log_softmax(self.rows @ self.classes + self.bias, dim=-1)


def fitted(rule: str, logp_NV: Tensor, seed: int, updates: int) -> Tensor:
    """Return logq_NV of a student that has minimised the divergence of a rule."""
    with own_rule(rule):
        loss = cell(rule, seed, Path("runs")).objective.build_divergence(logp_NV.shape[-1], seed)
    student = LowRank(*logp_NV.shape, seed)
    groups: list[dict[str, Any]] = [{"params": list(student.parameters()), "lr": LEARNING_RATE}]
    if isinstance(loss, nn.Module) and (network := list(loss.parameters())):
        groups.append({"params": network, "lr": CLIP_LEARNING_RATE})
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=updates)
    for _ in range(updates):
        found = loss(student(), logp_NV)  # type: ignore[misc]  # every rule has a divergence
        (found[0] if isinstance(found, tuple) else found).mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return student().detach()


def measured(logq_NV: Tensor, logp_NV: Tensor) -> dict[str, float]:
    """Return the columns of the table."""
    q_NV, p_NV = logq_NV.exp(), logp_NV.exp()
    sorted_NV, order_NV = q_NV.sort(dim=-1, descending=True)
    inside_NV = sorted_NV.cumsum(-1) - sorted_NV < 0.9
    nucleus_NV = torch.zeros_like(q_NV).scatter(-1, order_NV, sorted_NV * inside_NV)
    nucleus_NV = nucleus_NV / nucleus_NV.sum(-1, keepdim=True)
    temperature = _temperature(logq_NV, ENTROPY_SHARE * _entropy(logp_NV))
    return {
        "KL": float((p_NV * (logp_NV - logq_NV)).sum(-1).mean()),
        "H(q)": _entropy(logq_NV),
        "log p, T 1": float((q_NV * logp_NV).sum(-1).mean()),
        "log p, top-p 0.9": float((nucleus_NV * logp_NV).sum(-1).mean()),
        "log p, greedy": float(logp_NV.gather(-1, order_NV[:, :1]).mean()),
        "log p, equal H": float(((logq_NV / temperature).softmax(-1) * logp_NV).sum(-1).mean()),
    }


def _entropy(logq_NV: Tensor) -> float:
    return float(torch.special.entr(logq_NV.exp()).sum(-1).mean())


def _temperature(logq_NV: Tensor, entropy: float) -> float:
    """Return the temperature with which the mean entropy of the student is `entropy`."""
    low, high = 0.05, 4.0
    for _ in range(40):
        middle = math.sqrt(low * high)
        if _entropy((logq_NV / middle).log_softmax(-1)) < entropy:
            low = middle
        else:
            high = middle
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--quick", action="store_true", help="32 tokens and 20 updates")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    logp_NV = teacher_rows(chosen.model, chosen.data, 32 if chosen.quick else ROWS)
    print(f"{logp_NV.shape[0]} tokens, {logp_NV.shape[1]} classes, H(p) {_entropy(logp_NV):.3f}\n")
    for rule in chosen.only:
        found = [measured(fitted(rule, logp_NV, seed, 20 if chosen.quick else UPDATES), logp_NV) for seed in SEEDS]
        if rule == chosen.only[0]:
            print(f"| rule | {' | '.join(found[0])} |\n{'|---' * (1 + len(found[0]))}|")
        print(f"| {rule} | {' | '.join(spread([one[name] for one in found], 3) for name in found[0])} |", flush=True)


if __name__ == "__main__":
    main()
