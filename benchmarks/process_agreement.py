"""Does the number of processes change what a method learns?  Every method in the toy world, with one process and with two.

    python benchmarks/process_agreement.py OUT [MODEL_RECIPE] [section.field=value ...]

Ten updates of 16 sequences each: one process in one micro-batch, and two processes (gloo, started by torchrun) with
micro-batches of four.  Printed are the largest difference of a weight tensor, relative to its norm, and whether the same
sequences were drawn.
With a recipe, its models and data are taken instead of the toy world's.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from redistill import checkpoint, files
from redistill.config import Run, encode_run, load_config, override_run
from redistill.demo import student_tree, toy_world
from redistill.methods import METHODS

UPDATES, BATCH = 10, 16
SECTIONS: dict[str, list[str]] = {  # so that all parts of a method take part in ten updates
    "minillm": ["policy.num_rollouts=32", "policy.inner_epochs=2", "optimiser.warmup_updates=0"],
    "distillm": ["policy.threshold=0.7", "policy.capacity=32"],
}


def config_of(method: str, out: Path, base: dict[str, Any], micro_batch: int, changes: list[str]) -> Run:
    training = {"updates": UPDATES, "batch_size": BATCH, "micro_batch_size": micro_batch, "evaluate_every": 0, "log_every": 5}
    tree = {**base, "name": method, "method": method, "out": str(out), "training": {**base.get("training", {}), **training}}
    return override_run(tree, [*SECTIONS.get(method, []), *changes], method)


def trained(config: Run, world: int) -> Path:
    """Train in processes of their own; returns the run folder."""
    recipe = config.folder.with_suffix(".yaml")
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, "-m", "redistill", "train", str(recipe)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return config.folder


def worst_difference(one: Path, two: Path) -> float:
    found = [checkpoint.load_step(folder / "checkpoints", UPDATES).tensors["model"] for folder in (one, two)]
    differences = [(found[0][name] - value).norm() / value.norm() for name, value in found[1].items() if value.norm() > 0]
    return float(max(differences))


def drawn(folder: Path) -> list[Any]:
    lines = [line for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    return [(line.get("origin"), line.get("response_length"), line.get("policy")) for line in lines]


def main(out: Path, arguments: list[str]) -> None:
    recipe = arguments[0] if arguments and "=" not in arguments[0] else None
    changes = arguments[recipe is not None :]
    base = student_tree(toy_world()) if recipe is None else encode_run(load_config(Path(recipe)))
    base = {key: value for key, value in base.items() if key not in {"policy", "objective"}}
    print("| method | largest difference of a weight | same sequences |\n|---|---|---|")
    for method in METHODS:
        one = trained(config_of(method, out / f"{method}-1", base, BATCH, changes), world=1)
        two = trained(config_of(method, out / f"{method}-2", base, 4, changes), world=2)
        print(f"| {method} | {worst_difference(one, two):.1e} | {'yes' if drawn(one) == drawn(two) else 'no'} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
