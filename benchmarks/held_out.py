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
from redistill.runs.bench import Bench, open_bench

from redistill.config.run import load_config
from redistill.contracts import GenerationRequest, Sampling, TokenSequence
from redistill.data.collate import collate
from redistill.models.load import ModelConfig, load_model
from redistill.storage import files
from redistill.vocab_pass import row_statistics


def rollouts(bench: Bench) -> list[TokenSequence]:
    """The student's answers to the validation prompts."""
    requests = [
        GenerationRequest(
            prompt_ids=example.prompt_ids,
            max_new_tokens=bench.config.data.tokens.response_tokens,
            stream=("fixed-rollout", example.sample),
        )
        for example in bench.data.validation_examples
    ]
    return [
        TokenSequence(
            sample=number,
            token_ids=request.prompt_ids + generation.token_ids,
            supervised=(False,) * len(request.prompt_ids) + (True,) * len(generation.token_ids),
            origin="student",
        )
        for number, (request, generation) in enumerate(zip(requests, bench.generate(requests, Sampling()), strict=True))
    ]


def reverse_kl(bench: Bench, sequences: list[TokenSequence], batch_size: int = 16) -> float:
    """KL(q || p) per token of the sequences, for the student as it is."""
    assert bench.teacher is not None, "a run without a teacher"
    total, count = 0.0, 0
    for start in range(0, len(sequences), batch_size):
        batch = collate((), sequences[start : start + batch_size], pad_id=bench.models.pad_id, device=bench.accelerator.device)
        hidden_ND, head = bench.student_rows(batch)
        found = row_statistics(hidden_ND, head, bench.teacher.rows(batch), ["reverse_kl"])["reverse_kl"]
        total, count = total + float(found.double().sum()), count + len(found)
    return total / count


def fixed_rollouts(folder: Path) -> tuple[float, float, int]:
    """Reverse KL before and after training, and how many roll-outs it was measured on."""
    with open_bench(load_config(folder / "run.json")) as bench:
        sequences = rollouts(bench)
        before = reverse_kl(bench, sequences)
        trained, _ = load_model(ModelConfig(model=str(folder / "model")))
        with torch.no_grad():
            for parameter, value in zip(bench.student.model.parameters(), trained.parameters(), strict=True):
                parameter.copy_(value)
        return before, reverse_kl(bench, sequences), len(sequences)


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
