"""Two updates of tiny students under a placement, for test_placement.py: gradients, weights, rows and checkpoints.

The test calls it for one process, and torchrun starts it for two.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from redistill.config.run import encode_run, load_config
from redistill.contracts import Draw, DrawItem, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.models.families import body
from redistill.models.load import parameter_bytes
from redistill.processes import signals
from redistill.processes.placement import full
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.opened import OpenRun, open_run
from redistill.runs.run import train_student
from redistill.training import checkpoint, saving
from redistill.training import loop as training
from redistill.training.parts import Parts, TrainingState
from tests.worlds import gpt2_tokenizer, tiny_run, write_model

WIDER = 0.15  # standard deviation of initial weights, larger than usual, so that texts and teacher differ
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 25,  # odd, so that processes have parts of different sizes
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "initializer_range": WIDER,
}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128, "initializer_range": WIDER}
GPT2 |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    f"{family}-{tied}": {**config, "tie_word_embeddings": tied == "tied"}
    for family, config in (("llama", LLAMA), ("gpt2", GPT2))
    for tied in ("tied", "untied")
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sft": {"sft_weight": 1.0},
    "forward-kl": {"sft_weight": 0.0, "divergence": "forward_kl"},
    # Only process 0 has plain text, whose micro-batch does not use the clip network.
    "dac-kl": {"sft_weight": 1.0, "divergence": "dac_kl", "pretraining": {}},
}
CASES = [
    *(f"{model}-{objective}" for model in MODELS for objective in ("sft", "forward-kl")),
    "llama-tied-dac-kl",
    "llama-untied-forward-kl-lora",
]
PAIRS = [  # a placement over two processes, and a case
    ("replicated", "llama-tied-sft"),
    ("replicated", "gpt2-untied-forward-kl"),
    ("replicated", "llama-tied-dac-kl"),
    *(("sharded", case) for case in CASES),
]
WHOLE_RUN = "whole-run"
MAX_GRAD_NORM = 0.5
LENGTHS = (9, 4, 12, 7, 6)


def write_recipe(folder: Path, placement: str, case: str) -> Path:
    """Write the recipe of a case, whose run is in `<folder>/<placement>/<case>`."""
    is_whole = case == WHOLE_RUN
    model_name = "llama-tied" if is_whole else next(name for name in MODELS if case.startswith(f"{name}-"))
    world = folder / model_name
    world.mkdir(exist_ok=True)
    for name, seed in (("teacher", 1), ("student", 2)):
        if not (world / name).exists():
            vocabulary = len(gpt2_tokenizer())
            write_model(world / name, MODELS[model_name], seed, vocab_size=vocabulary + 1 - vocabulary % 2)  # odd, too
    sections: dict[str, Any] = {
        "placement": "sharded" if placement.startswith("sharded") else "auto",
        "optimiser": {"learning_rate": 1e-2, "max_grad_norm": MAX_GRAD_NORM},
        "training": {"updates": 2, "batch_size": 4, "micro_batch_size": 2, "keep": 9, "log_every": 1},
        "student": {"model": str(world / "student")},
    }
    if is_whole:
        sections["policy"] = {"kind": "revised", "source": "student_generated"}
        sections["evaluation"] = {"seeds": [10], "compare": ["before"]}
        del sections["optimiser"]
    else:
        sections["objective"] = OBJECTIVES[case.removeprefix(f"{model_name}-").removesuffix("-lora")]
        sections["policy"] = "fixed"
    if case.endswith("-lora"):
        sections["student"]["lora"] = {"rank": 2, "dropout": 0.0}
    config = tiny_run(world, "mgsr" if is_whole else "kd", out=str(folder / placement / case), **sections)
    path = recipe(folder, placement, case)
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path


def recipe(folder: Path, placement: str, case: str) -> Path:
    return folder / placement / f"{case}.yaml"


@contextmanager
def opened(recipe: Path) -> Iterator[Parts]:
    """The parts of a training loop with a student in its initial state."""
    with opened_run(recipe) as (_, parts):
        yield parts


@contextmanager
def opened_run(recipe: Path) -> Iterator[tuple[OpenRun, Parts]]:
    with open_run(load_config(recipe)) as run:
        yield run, build_parts(run, build_evaluator(run, run.models.student))


def sequences(origin: Any) -> tuple[TokenSequence, ...]:
    """Five texts of different lengths."""
    draws = torch.Generator().manual_seed(5)
    return tuple(
        TokenSequence(
            sample=sample,
            token_ids=tuple(torch.randint(3, 200, (length,), generator=draws).tolist()),
            supervised=(False,) * 2 + (True,) * (length - 2),
            origin=origin,
        )
        for sample, length in enumerate(LENGTHS)
    )


def update(parts: Parts, step: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Perform an update; returns its gradient before clipping, and its sums and norms."""
    learner = parts.learner
    rank, world = parts.accelerator.process_index, parts.accelerator.num_processes
    items: tuple[DrawItem, ...] = items_of(sequences("student")[rank::world], "distillation")
    items += items_of(sequences("dataset")[rank::world], "sft")
    corpus = sequences("corpus")[:1] if rank == 0 else ()
    draw = learner.objective.select(Draw(items=items, corpus=corpus))
    _, _, sums = training.gradients(draw, parts, step)
    gradients = {name: p.grad for name, p in learner.student.named_parameters() if p.grad is not None}
    whole = {name: gradient.clone() for name, gradient in full(gradients).items()}
    norms = training._clip(learner, MAX_GRAD_NORM)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    return whole, {**sums, **norms}


def rows_of(parts: Parts) -> torch.Tensor:
    """Logits of one text, by the module and by its body alone, in which processes may read different lengths."""
    student, placement, text = parts.learner.student, parts.learner.placement, sequences("dataset")[0].token_ids
    (batch,) = training.cut(Draw(items=items_of(sequences("dataset")[:1], "sft")), None, parts)
    if placement.passes_communicate:
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"enter Placement\.unsharded"):
            student.rows(batch)
    with placement.unsharded(student):
        hidden_ND, head = student.rows(batch)
        for _ in range(parts.accelerator.process_index):
            body(student.model)(torch.tensor([text[:5]]), torch.ones(1, 5, dtype=torch.long))
        hidden_BTD = body(student.model)(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.long))
        torch.testing.assert_close(hidden_BTD.flatten(0, 1)[batch.position_N], hidden_ND)
        return head.logits(hidden_ND).clone()


def local_bytes(model: torch.nn.Module | None) -> int:
    """Bytes of the parameters that this process has."""
    parameters = [] if model is None else list(model.parameters())
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in parameters)


def check_passes(recipe: Path) -> None:
    """Process 0 makes one pass of a sharded teacher before a `gather` and two after it, process 1 two before and none after."""
    with open_run(load_config(recipe)) as run:
        teacher, frozen, rank = run.teacher, run.frozen, run.processes.rank
        assert teacher is not None and frozen.world == 2
        batches = [collate(items_of([text], "distillation"), pad_id=0) for text in sequences("dataset")]
        with pytest.raises(RuntimeError, match=r"outside of Frozen\.passes"):
            teacher.rows(batches[0])
        with frozen.gathered():
            expected = [teacher.rows(batch)(slice(0, 2)) for batch in batches]
        with frozen.passes(), frozen.passes():
            found = [teacher.rows(batch)(slice(0, 2)) for batch in batches[: rank + 1]]
            assert run.processes.gather([rank]) == [0, 1]
            found += [teacher.rows(batch)(slice(0, 2)) for batch in batches[rank + 1 : 3 - rank]]
        for one, other in zip(found, expected, strict=False):
            assert torch.equal(one, other)
        with frozen.root(), frozen.passes():  # a process without a pass of its own
            target = None if rank else teacher.rows(batches[0])
        with frozen.root(), frozen.passes():
            target = teacher.rows(batches[0])
        del target
        assert sum(signals.gather([local_bytes(run.models.teacher)])) < 1.2 * parameter_bytes(run.models.teacher)


def save(parts: Parts, recipe: Path, step: int) -> None:
    saving.save_checkpoint(parts, load_config(recipe).training, TrainingState(step=step))


def restore(parts: Parts, folder: Path, step: int) -> None:
    """Restore a checkpoint of the run in `folder`, which may be another run than that of `parts`."""
    state = saving.restore_checkpoint(parts, checkpoint.load_step(folder / "checkpoints", step))
    assert state.step == step


def compute(recipe: Path) -> None:
    """Compute logits, update, save, load into a new student, update and save again."""
    folder = load_config(recipe).folder
    with opened_run(recipe) as (run, parts):
        taught = local_bytes(run.models.teacher)
        before = rows_of(parts)  # before the first forward with gradients, as the first validation is
        gradients, measured = update(parts, 0)
        after = rows_of(parts)
        save(parts, recipe, 1)
    with opened(recipe) as parts:
        restore(parts, folder, 1)
        update(parts, 1)
        save(parts, recipe, 2)
        if parts.accelerator.is_main_process:
            numbers = {f"measured.{name}": torch.tensor(value) for name, value in measured.items()}
            numbers["teacher_bytes"] = torch.tensor(taught)
            found: Mapping[str, torch.Tensor] = {**gradients, **numbers, "rows.before": before, "rows.after": after}
            save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / "found.safetensors")


def main(folder: Path, world: int) -> None:
    """Compute every case for `world` processes, from `<folder>/<placement>/<case>.yaml` to `<folder>/<placement>/<case>`."""
    for placement, case in PAIRS if world > 1 else [("single", case) for case in CASES]:
        compute(recipe(folder, placement, case))
    if world > 1:
        check_passes(recipe(folder, "sharded", "llama-tied-forward-kl"))
    train_student(load_config(recipe(folder, "sharded" if world > 1 else "single", WHOLE_RUN)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    torch.distributed.destroy_process_group()
