"""Reverse KL on fixed roll-outs: how far a run's student is from its teacher on text that the untrained student wrote.

    python benchmarks/fixed_rollouts.py runs/minillm [runs/... ]

MiniLLM minimises the KL from student to teacher over the student's own text, so its cross entropy on gold answers need not
fall.  Here one answer to each validation prompt is written by the student before training (temperature 1, seed of the run), and
KL(q || p) is averaged over its tokens, in nats, for the student before training and for the trained one.
"""

import sys
from pathlib import Path

import torch

from redistill.bench import Bench, open_bench
from redistill.config import load_config
from redistill.contracts import GenerationRequest, Sampling, TokenSequence
from redistill.data.collate import collate
from redistill.models.load import ModelConfig, load_model
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


def main(folders: list[Path]) -> None:
    for folder in folders:
        with open_bench(load_config(folder / "run.json")) as bench:
            sequences = rollouts(bench)
            before = reverse_kl(bench, sequences)
            trained, _ = load_model(ModelConfig(model=str(folder / "model")))
            with torch.no_grad():
                for parameter, value in zip(bench.student.model.parameters(), trained.parameters(), strict=True):
                    parameter.copy_(value)
            after = reverse_kl(bench, sequences)
        print(f"{folder}: KL(q || p) on {len(sequences)} fixed roll-outs: {before:.4f} before, {after:.4f} after training")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
