"""Did training bring a student nearer to what its method aims at?  A table over finished runs.

    python benchmarks/held_out.py runs/table1-toy/*-seed10

Cross entropy and KL(p || q) on the gold answers of the validation set, before the first update and after the last, are read
from metrics.jsonl.  MiniLLM minimises the KL from student to teacher over the student's own text, so these two need not fall
for it.  Hence the last columns: one answer to each validation prompt is written by the student before training (temperature
1, the run's seed), and KL(q || p) is averaged over its tokens, in nats, for the student before training and the exported one.
"""

import sys
from pathlib import Path

import torch

from redistill.config.run import load_config
from redistill.contracts import GenerationRequest, Sampling, TokenSequence
from redistill.models.load import ModelConfig, load_model
from redistill.policies import Scorer
from redistill.runs.opened import OpenRun, open_run
from redistill.storage import files


def rollouts(run: OpenRun) -> list[TokenSequence]:
    """The student's answers to the validation prompts."""
    requests = [
        GenerationRequest(
            prompt_ids=example.prompt_ids,
            max_new_tokens=run.config.data.tokens.response_tokens,
            seed=run.config.seed,
            stream=("fixed-rollout", example.sample),
        )
        for example in run.data.validation_examples
    ]
    return [
        TokenSequence(
            sample=number,
            token_ids=request.prompt_ids + generation.token_ids,
            supervised=(False,) * len(request.prompt_ids) + (True,) * len(generation.token_ids),
            origin="student",
        )
        for number, (request, generation) in enumerate(zip(requests, run.engine.generate(requests, Sampling()), strict=True))
    ]


@torch.no_grad()
def reverse_kl(run: OpenRun, sequences: list[TokenSequence], batch_size: int = 16) -> float:
    """KL(q || p) per token of the sequences, for the student as it is."""
    assert run.teacher is not None, "a run without a teacher"
    place = {"pad_id": run.models.pad_id, "device": run.accelerator.device}
    scorer = Scorer(run.student.eval().rows, run.teacher, batch_size=batch_size, **place)
    with run.accelerator.autocast():
        found = scorer.statistics(sequences, ["reverse_kl"])["reverse_kl"]
    return float(torch.cat(found).double().mean())


def fixed_rollouts(folder: Path) -> tuple[float, float, int]:
    """Reverse KL before and after training, and how many roll-outs it was measured on."""
    with open_run(load_config(folder / "run.json")) as run:
        sequences = rollouts(run)
        before = reverse_kl(run, sequences)
        trained, _ = load_model(ModelConfig(model=str(folder / "model")))
        with torch.no_grad():
            for parameter, value in zip(run.student.model.parameters(), trained.parameters(), strict=True):
                parameter.copy_(value)
        return before, reverse_kl(run, sequences), len(sequences)


def main(folders: list[Path]) -> None:
    print("| run | updates | cross entropy | KL(p, q) | KL(q, p) on fixed roll-outs | roll-outs |\n|---|---|---|---|---|---|")
    for folder in folders:
        validations = [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "validation"]
        first, last = validations[0], validations[-1]
        before, after, number = fixed_rollouts(folder)
        print(
            f"| {folder.name} | {last['step']} | {first['cross_entropy']:.3f} → {last['cross_entropy']:.3f} "
            f"| {first['kl']:.3f} → {last['kl']:.3f} | {before:.3f} → {after:.3f} | {number} |",
            flush=True,
        )


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
