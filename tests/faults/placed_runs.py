"""Runs under each placement, for test_placement_matrix.py: gradients, trained weights, memory, and resumed runs.

The test calls it for one process, and torchrun starts it for several.
"""

import shutil
import sys
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from redistill.config.run import encode_run, load_config
from redistill.processes import signals
from redistill.processes.placement import full
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.opened import open_run
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import checkpoint
from redistill.training import loop as training
from redistill.training.parts import Parts
from tests.faults.counts import WHOLE
from tests.processes.updates import MODELS, local_bytes
from tests.worlds import gpt2_tokenizer, rows, tiny_run, write_model

UPDATES, HALF = 10, 5
PLACEMENTS = {"single": 1, "replicated-2": 2, "sharded-2": 2, "sharded-4": 4}
"""Placement -> number of processes."""
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "kd": {},
    "distillm": {"policy": {"kind": "adaptive", "threshold": 0.7, "capacity": 8}},
    "minillm": {"policy": {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 8, "inner_epochs": 2}},
    "mgsr": {},
}
ALL_CASES = [f"{method}-{tied}-{kind}" for kind, method, tied in product(("full", "lora"), METHODS, ("tied", "untied"))]
CASES = ALL_CASES if WHOLE else ["distillm-untied-full"]
RUN_PLACEMENTS = list(PLACEMENTS) if WHOLE else ["single", "sharded-2"]


def resumed() -> Iterator[tuple[str, str, str]]:
    """The runs that change their placement half-way: before, after, case; each case at least once."""
    if not WHOLE:
        yield "sharded-2", "single", CASES[0]
        return
    pairs = list(permutations(RUN_PLACEMENTS, 2))
    for number in range(max(len(pairs), len(CASES))):
        before, after = pairs[number % len(pairs)]
        yield before, after, CASES[(number * 3 + number // len(CASES)) % len(CASES)]


def write_recipe(folder: Path, placement: str, case: str, run: str | None = None) -> Path:
    """Write the recipe of a case, whose run is in the folder `run`, or else in `<folder>/<placement>/<case>`."""
    method, tied, kind = case.split("-")
    world = folder / tied
    world.mkdir(exist_ok=True)
    for name, seed in (("teacher", 1), ("student", 2)):
        if not (world / name).exists():
            write_model(world / name, MODELS[f"llama-{tied}"], seed, vocab_size=len(gpt2_tokenizer()))
    corpus = world / "corpus.txt"
    corpus.write_text("\n\n".join(f"The {row['output']} {row['instruction']}" * 9 for row in rows(24)), encoding="utf-8")
    lora = {"lora": {"rank": 2, "dropout": 0.0}} if kind == "lora" else {}
    sections: dict[str, Any] = {
        "placement": placement.partition("-")[0] if placement.startswith("sharded") else "auto",
        "training": {
            "updates": UPDATES,
            "batch_size": 4,
            "micro_batch_size": 2,
            "save_every": HALF,
            "keep": 9,
            "log_every": 1,
        },
        "data": {"corpus": [str(corpus)], "tokens": {"prompt_tokens": 80, "response_tokens": 6}, "validation_rows": 2},
        "student": {"model": str(world / "student"), **lora},
        **METHODS[method],
    }
    out = run or f"{placement}/{case}"
    config = tiny_run(world, method, out=str(folder / out), **sections)
    path = folder / f"{out}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path


def resumed_name(before: str, after: str, case: str) -> str:
    return f"resumed/{case}-from-{before}-to-{after}"


def prepare_resumed(folder: Path, before: str, after: str, case: str) -> None:
    """A folder as that of the run was when it had gone on a while after the checkpoint half-way."""
    source, name = folder / before / case, resumed_name(before, after, case)
    saved, target = source / "checkpoints", folder / name
    steps = {HALF, checkpoint.load_step(saved, HALF).state["training"]["best_step"]} - {None}
    for step in steps:
        shutil.copytree(saved / f"step-{step}", target / "checkpoints" / f"step-{step}")
    shutil.copy(saved / checkpoint.IDENTITY, target / "checkpoints")
    for path in source.iterdir():
        if path.suffix in {".json", ".jsonl"}:
            shutil.copy(path, target)
    write_recipe(folder, after, case, name)


def first_update(parts: Parts) -> tuple[dict[str, torch.Tensor], int]:
    """The gradient of the first update, and the bytes of this process's trained weights, gradients and optimiser state."""
    learner = parts.learner
    draw = learner.objective.select(training._draw(parts, 0))
    training.gradients(draw, parts, 0)
    found = {name: p.grad for name, p in learner.student.named_parameters() if p.grad is not None}
    whole = {name: gradient.clone() for name, gradient in full(found).items()}
    learner.optimizer.step()
    trained = {id(p): p for group in learner.optimizer.param_groups for p in group["params"]}.values()
    state = [value for held in learner.optimizer.state.values() for value in held.values() if isinstance(value, torch.Tensor)]
    tensors = [*trained, *(p.grad for p in trained if p.grad is not None), *state]
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return whole, sum(tensor.numel() * tensor.element_size() for tensor in local)


def compute(recipe: Path, world: int) -> None:
    """The gradient and the memory of the first update; then the whole run."""
    config = load_config(recipe)
    with open_run(config) as run:
        parts = build_parts(run, build_evaluator(run, run.models.student))
        assert signals.num_processes() == world == parts.accelerator.num_processes
        gradient, num_bytes = first_update(parts)
        most = [max(sizes) for sizes in zip(*signals.gather([(num_bytes, local_bytes(run.models.teacher))]), strict=True)]
        if parts.accelerator.is_main_process:
            at = recipe.with_suffix("")
            save_file({name: value.contiguous() for name, value in gradient.items()}, at.with_suffix(".gradient.safetensors"))
            files.write_json(at.with_suffix(".bytes.json"), most)
    train_student(config)


def main(folder: Path, placement: str, part: str) -> None:
    """Compute all cases of a placement, or all runs that resume with it."""
    world = PLACEMENTS[placement]
    if part == "cases":
        for case in CASES:
            compute(folder / placement / f"{case}.yaml", world)
    else:
        for before, after, case in resumed():
            if after == placement:
                train_student(load_config(folder / f"{resumed_name(before, after, case)}.yaml"))


if __name__ == "__main__":
    torch.cuda.is_available = lambda: False
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
    torch.distributed.destroy_process_group()
