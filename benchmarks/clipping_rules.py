"""Which rule of clipping the teacher serves MGSR best?  A table over rules, five training seeds each, in the toy world.

    python -m benchmarks.clipping_rules --out runs/clipping [--only min_p_20 literal] [--table]

All students are MGSR (SCRG, SFT, span loss) with another divergence, 100 updates, and the last student counts.  A rule with a
network has a learning rate of its own for it.  Cells that are finished, or measured, are not computed again; `--table` prints
what is there.  On the 120 test prompts each student is measured at the same decodings, three answers a prompt:

`KL`        held-out KL(p, q) on the gold answers, nats a token
`ROUGE-L`   of the answers at temperature 1, at 0.8, with top-p 0.9, and greedily
`H(q)`      entropy of the student at the tokens of its answers
`log p`     what the teacher thinks of these tokens

Two rules of the comparison are defined here, since a rule becomes a part of the package only if it wins: `allocated_90`
(class Allocated) and `bandit` (class Bandit).
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from redistill.config.run import Run, decode_run
from redistill.contracts import Sampling, TokenSequence
from redistill.evaluation.answers import Answerer
from redistill.evaluation.gold import gold_examples
from redistill.evaluation.metrics import METRICS
from redistill.losses.dac_kl import DacKL, DacKLConfig
from redistill.models.load import ModelConfig, load_model
from redistill.policies import Scorer
from redistill.randomness import torch_seed
from redistill.runs.demo import SEED, TEST_PROMPTS, student_tree, toy_world, world_folder
from redistill.runs.opened import OpenRun, open_run
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.toy.world import toy_records

SEEDS, ANSWER_SEEDS = (10, 20, 30, 40, 50), (1, 2, 3)
DECODINGS = {
    "T 1": Sampling(),
    "T 0.8": Sampling(temperature=0.8),
    "top-p 0.9": Sampling(top_p=0.9),
    "greedy": Sampling(temperature=0.0),
}
MEAN_MASS, LEAST_MASS, DAMPING = 0.9, 0.5, 10.0
TRUNCATED = {"kind": "dac_kl", "normalise": "teacher"}  # KL from the truncated teacher, renormalised, to the whole student
RULES: dict[str, dict[str, Any]] = {
    "forward_kl": {"kind": "forward_kl"},
    "literal": {"kind": "dac_kl"},
    "min_p_05": {**TRUNCATED, "mode": "relative", "fixed_interval": [0.05, 1]},
    "min_p_20": {**TRUNCATED, "mode": "relative", "fixed_interval": [0.2, 1]},
    "nucleus_90": {**TRUNCATED, "mode": "mass", "fixed_interval": [0, 0.9]},
    "sharpened_80": {"kind": "forward_kl", "teacher_temperature": 0.8},
    "sharpened_65": {"kind": "forward_kl", "teacher_temperature": 0.65},
    "allocated_90": {**TRUNCATED, "mode": "mass", "network": {"hidden": 1}},
    "bandit": {**TRUNCATED, "mode": "mass", "fixed_interval": [0, 0.9]},
}


# --- rules that the package does not have -------------------------------------------------------------------------------


class Allocation(nn.Module):
    """A nucleus for each row: rho from H(p), the largest p, H(q) and KL(p, q), with the dual variable of its mean mass."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(torch_seed(seed, "allocation"))
        self.first, self.second = nn.Linear(4, 32), nn.Linear(32, 1)
        with torch.no_grad():
            self.first.weight.normal_(std=0.5, generator=random)
            self.first.bias.zero_()
            self.second.weight.normal_(std=0.01, generator=random)
            start = (MEAN_MASS - LEAST_MASS) / (1 - LEAST_MASS)
            self.second.bias.fill_(math.log(start / (1 - start)))
        self.dual = nn.Parameter(torch.zeros(()))

    def forward(self, p_NV: Tensor, q_NV: Tensor, sorted_NV: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p_NV, q_NV = p_NV.detach().float(), q_NV.detach().float()
        entropy_N, student_N = torch.special.entr(p_NV).sum(-1), torch.special.entr(q_NV).sum(-1)
        tiny = torch.finfo(torch.float32).tiny
        kl_N = (p_NV * (p_NV.clamp(min=tiny).log() - q_NV.clamp(min=tiny).log())).sum(-1)
        features_N4 = torch.stack([entropy_N, p_NV.amax(-1), student_N, kl_N], dim=-1)
        rho_N = self.second(torch.nn.functional.gelu(self.first(features_N4))).squeeze(-1).sigmoid()
        rho_N = LEAST_MASS + (1 - LEAST_MASS) * rho_N
        return 0 * rho_N, rho_N  # both with a gradient, without which DAC-KL has no straight-through gate


class Allocated(DacKL):
    """The student minimises KL(p_S, q); the network minimises it too, with nu d + (DAMPING / 2) d^2 added.

    d is MEAN_MASS - mean mass.  nu ascends where everything else descends, so that the mean mass tends to MEAN_MASS and the
    network can only allocate it.  Without the square, nu integrates d alone, and the mean mass oscillates.
    """

    def __init__(self, config: DacKLConfig, vocabulary: int, seed: int = 0) -> None:
        super().__init__(config, vocabulary, seed)
        self.network = Allocation(seed)  # type: ignore[assignment]  # the same call as f_sub

    def _gate(self, *arguments: Any) -> Tensor:
        self._last = super()._gate(*arguments)
        return self._last

    def forward(self, logq_NV: Tensor, logp_NV: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        divergence_N, rows = super().forward(logq_NV, logp_NV)
        mass_N, nu = (self._last * logp_NV.detach().exp()).sum(-1), self.network.dual  # type: ignore[union-attr]
        if not len(mass_N):
            return divergence_N, rows
        gap = MEAN_MASS - mass_N.mean()
        ascending = 2 * nu.detach() - nu  # the value of nu, and the negative of its gradient
        return divergence_N + ascending * gap + DAMPING / 2 * gap**2, rows


class Bandit(DacKL):
    """Chooses one of five nuclei for each call; the reward is how much KL(p, q) fell since the call before (epsilon 0.2)."""

    ARMS = (0.8, 0.9, 0.95, 0.99, 1.0)

    def __init__(self, config: DacKLConfig, vocabulary: int, seed: int = 0) -> None:
        super().__init__(config, vocabulary, seed)
        self._random = torch.Generator().manual_seed(torch_seed(seed, "bandit"))
        self._reward, self._arm, self._before = [0.0] * len(self.ARMS), 0, math.nan

    def _interval(self, logq_NV: Tensor, logp_NV: Tensor, p_NV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        score_NV, lower_N, upper_N = super()._interval(logq_NV, logp_NV, p_NV)
        if len(logp_NV):
            kl = float((p_NV * (logp_NV - logq_NV.detach())).sum(-1).mean())
            if not math.isnan(self._before):
                self._reward[self._arm] += 0.2 * (self._before - kl - self._reward[self._arm])
            best = max(range(len(self.ARMS)), key=self._reward.__getitem__)
            explore, arm = torch.rand((), generator=self._random), torch.randint(len(self.ARMS), (), generator=self._random)
            self._before, self._arm = kl, int(arm) if explore < 0.2 else best
        return score_NV, lower_N, torch.full_like(upper_N, self.ARMS[self._arm])


OWN = {"allocated_90": Allocated, "bandit": Bandit}


@contextmanager
def own_rule(rule: str) -> Iterator[None]:
    """Context in which runs use the class of a rule that the package does not have."""
    if rule not in OWN:
        yield
        return
    with mock.patch("redistill.training.objective.DacKL", OWN[rule]):
        yield


# --- cells --------------------------------------------------------------------------------------------------------------


def cell(rule: str, seed: int, out: Path) -> Run:
    """The run of one rule and seed."""
    tree = student_tree(world_folder())
    objective = {"divergence": RULES[rule], "span_weight": 1.0}
    own = {
        "name": f"{rule}-seed{seed}",
        "method": "mgsr",
        "seed": seed,
        "out": str(out / f"{rule}-seed{seed}"),
        "objective": objective,
        "training": {"updates": 100, "batch_size": 16, "evaluate_every": 100, "log_every": 50},
        "optimiser": {"learning_rate": 1e-3, "clip_network_learning_rate": 1e-2},
        "evaluation": {"batch_size": 128, "limit": 1, "seeds": [10], "compare": []},
    }
    return decode_run({**tree, **own}, rule)


def measured(config: Run) -> dict[str, Any]:
    """Held-out KL, and for each decoding ROUGE-L, the student's entropy and the teacher's log-probability."""
    records = toy_records(TEST_PROMPTS, SEED, "test")
    rouge = METRICS["rouge_l"]
    with open_run(config) as run, torch.no_grad():
        trained, _ = load_model(ModelConfig(model=str(config.folder / "model")))
        for parameter, value in zip(run.student.model.parameters(), trained.parameters(), strict=True):
            parameter.copy_(value)
        run.student.eval()
        assert run.teacher is not None
        scorer = Scorer(run.student.rows, run.teacher, pad_id=run.models.pad_id, batch_size=64)
        tokens = config.data.tokens
        gold = gold_examples(records, run.models.tokenizer, tokens)
        sequences = [
            TokenSequence(sample=e.sample, token_ids=e.token_ids, supervised=e.supervised, origin="dataset") for e in gold
        ]
        found: dict[str, Any] = {"KL": mean_of(scorer, sequences, "forward_kl")}
        rows = [(record, example.prompt_ids) for record, example in zip(records, gold, strict=True)]
        for name, sampling in DECODINGS.items():
            answerer = Keeping(run, sampling, tokens.response_tokens)
            seeds = ANSWER_SEEDS[:1] if sampling.temperature == 0 else ANSWER_SEEDS
            lines = [line for seed in seeds for line in answerer.lines(rows, seed, rouge)]
            found[name] = {
                "ROUGE-L": statistics.mean(line["rouge_l"] for line in lines),
                "H(q)": mean_of(scorer, answerer.kept, "student_entropy"),
                "log p": mean_of(scorer, answerer.kept, "teacher_logprob"),
            }
    return found


class Keeping:
    """Answers prompts, scores the answers, and keeps their tokens."""

    def __init__(self, run: OpenRun, sampling: Sampling, limit: int) -> None:
        self.kept: list[TokenSequence] = []
        self._engine, self.capabilities = run.engine, run.engine.capabilities
        self._answerer = Answerer(self, run.models.tokenizer, sampling, limit, run.models.end_ids)

    def lines(self, rows: Any, seed: int, metric: Any) -> list[dict[str, Any]]:
        return self._answerer.lines("toy", rows, seed, [metric])

    def sync(self, student: nn.Module, step: int) -> None:
        """The engine uses the student itself."""

    def generate(self, requests: Any, sampling: Sampling) -> Any:
        generations = self._engine.generate(requests, sampling)
        for number, (request, generation) in enumerate(zip(requests, generations, strict=True)):
            supervised = (False,) * len(request.prompt_ids) + (True,) * len(generation.token_ids)
            ids = request.prompt_ids + generation.token_ids
            self.kept.append(TokenSequence(sample=number, token_ids=ids, supervised=supervised, origin="student"))
        return generations


def mean_of(scorer: Scorer, sequences: list[TokenSequence], name: Any) -> float:
    """The mean of a statistic over all targets."""
    return float(torch.cat(scorer.statistics(sequences, [name])[name]).double().mean())


# --- table --------------------------------------------------------------------------------------------------------------


def table(out: Path) -> None:
    """Print mean and standard deviation over the seeds of each rule that has all of them, and how many there are."""
    print("| rule | seeds | KL | " + " | ".join(f"{name}: ROUGE-L, H(q), log p" for name in DECODINGS) + " |")
    print("|---" * (3 + len(DECODINGS)) + "|")
    for rule in RULES:
        paths = [out / f"{rule}-seed{seed}" / "measured.json" for seed in SEEDS]
        found = [files.read_json(path) for path in paths if path.is_file()]
        if found:
            columns = [spread([one["KL"] for one in found], 3)]
            for name in DECODINGS:
                parts = (
                    spread([one[name][key] for one in found], digits)
                    for key, digits in (("ROUGE-L", 1), ("H(q)", 2), ("log p", 2))
                )
                columns.append(", ".join(parts))
            print(f"| {rule} | {len(found)} | {' | '.join(columns)} |")


def spread(values: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).strip().splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/clipping"))
    parser.add_argument("--only", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--table", action="store_true", help="print the table of what is there")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.table:
        toy_world()
        for seed in SEEDS:
            for rule in chosen.only:
                config = cell(rule, seed, chosen.out)
                if not (config.folder / "measured.json").is_file():
                    with own_rule(rule):
                        train_student(config)
                        files.write_json(config.folder / "measured.json", json.loads(json.dumps(measured(config))))
    table(chosen.out)


if __name__ == "__main__":
    main()
