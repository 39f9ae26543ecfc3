"""What two processes compute, for test_processes.py: started by torchrun, it writes gradients, weights and texts."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file

from redistill import files
from redistill.bench import Bench, open_bench
from redistill.config import load_config
from redistill.contracts import GenerationRequest, Sampling
from redistill.models.load import ModelConfig
from redistill.run import train_student
from redistill.training import accumulate_gradients, cut, global_counts


def gradients(bench: Bench) -> dict[str, torch.Tensor]:
    """The gradient of the first update."""
    parts = bench.parts()
    draw = parts.objective.select(parts.policy.draw(0))
    batches = cut(draw, bench.config.training.micro_batch_size, parts)
    accumulate_gradients(batches, global_counts(batches), parts)
    student = parts.accelerator.unwrap_model(parts.student)
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


def texts(bench: Bench, accelerator: Accelerator) -> list[list[int]]:
    """Continuations of eight training prompts, each process its share."""
    requests = [
        GenerationRequest(prompt_ids=example.prompt_ids, max_new_tokens=16, stream=("test", example.sample))
        for example in bench.data.train[:8]
    ]
    mine = requests[accelerator.process_index :: accelerator.num_processes]
    written = bench.generate(mine, Sampling())
    pairs = gather_object([(request.stream[1], list(g.token_ids)) for request, g in zip(mine, written, strict=True)])
    return [ids for _, ids in sorted(pairs)]


def main(recipe: Path, out: Path, expected_world: int) -> None:
    config = load_config(recipe)
    assert config.teacher is not None
    with open_bench(config, ModelConfig(model=config.teacher.model)) as bench:
        accelerator = bench.accelerator
        assert accelerator.num_processes == expected_world, accelerator.num_processes
        share = [item.example.sample for item in bench.gold().items(0)]
        shares = gather_object([share])
        assert len(shares) == expected_world and len({s for part in shares for s in part}) == config.training.batch_size, shares
        written = texts(bench, accelerator)
        found = gradients(bench)
        if accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in found.items()}, out / "gradients.safetensors")
            files.write_json(out / "texts.json", written)
    train_student(config)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
