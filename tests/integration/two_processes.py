"""The computations of any number of processes, for test_processes.py: gradients, texts, and the weights after training.

Called in the test's own process for one, and started by torchrun for two.
"""

import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import save_file

from redistill.config.run import load_config
from redistill.contracts import GenerationRequest, Sampling
from redistill.runs.build import build_evaluator, build_gold, build_parts
from redistill.runs.opened import OpenRun, open_run
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training.loop import accumulate_gradients, cut, global_counts


def gradients(run: OpenRun) -> dict[str, torch.Tensor]:
    """The gradient of the first update; a parameter without one is left out."""
    parts = build_parts(run, build_evaluator(run, run.models.student))
    draw = parts.learner.objective.select(parts.policy.draw(0))
    batches = cut(draw, run.config.training.micro_batch_size, parts)
    accumulate_gradients(batches, global_counts(batches), parts)
    return {name: p.grad.clone() for name, p in parts.learner.student.named_parameters() if p.grad is not None}


def texts(run: OpenRun) -> list[list[int]]:
    """Continuations of sixteen training prompts, a part on each process."""
    requests = [
        GenerationRequest(
            prompt_ids=example.prompt_ids, max_new_tokens=16, seed=run.config.seed, stream=("test", example.sample)
        )
        for example in run.data.train[:16]
    ]
    mine = requests[run.processes.rank :: run.processes.world]
    written = run.engine.generate(mine, Sampling())
    pairs = gather_object([(request.stream[1], list(g.token_ids)) for request, g in zip(mine, written, strict=True)])
    return [ids for _, ids in sorted(pairs)]


def checked_shares(run: OpenRun, expected_world: int) -> list[list[int]]:
    """Which samples of the first batch each process has: as many processes as expected, and every sample in one of them."""
    assert run.accelerator.num_processes == expected_world == run.processes.world, run.accelerator.num_processes
    shares = gather_object([[item.example.sample for item in build_gold(run).items(0)]])
    everything = [sample for share in shares for sample in share]
    assert len(shares) == expected_world and all(shares), shares
    assert len(everything) == len(set(everything)) == run.config.training.batch_size, shares
    return shares


def compute(recipe: Path, out: Path, expected_world: int) -> None:
    """Write all results of one run into `out`."""
    config = load_config(recipe)
    with open_run(config) as run:
        shares = checked_shares(run, expected_world)
        written = texts(run)
        found = gradients(run)
        if run.processes.is_main:
            out.mkdir(parents=True)
            save_file({name: value.contiguous() for name, value in found.items()}, out / "gradients.safetensors")
            files.write_json(out / "texts.json", written)
            files.write_json(out / "shares.json", shares)
    train_student(config)


def main(folder: Path, name: str, methods: list[str], expected_world: int) -> None:
    """A run of every method, from `<folder>/<name>-<method>.yaml` into `<folder>/<name>-<method>`."""
    for method in methods:
        compute(folder / f"{name}-{method}.yaml", folder / f"{name}-{method}", expected_world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","), int(sys.argv[4]))
