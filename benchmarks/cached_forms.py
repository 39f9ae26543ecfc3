"""Held-out KL after 100 updates in the toy world, for each form of a cached teacher, against bytes per target.

    python -m benchmarks.cached_forms [--quick]

The student is the first layer of the toy world's teacher and minimises forward KL alone on 120 rows.  KL(p || q) is the mean
over the targets of 64 validation rows, p being the whole teacher.  "renormalised" is top-k as other programs use it: the listed
probabilities are divided by their sum, and the rest is ignored.
"""

import statistics
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measuring
from redistill.config.run import Run, decode_run
from redistill.contracts import TopClasses, items_of
from redistill.data.collate import collate
from redistill.models.families import body, head
from redistill.models.load import ModelConfig, load_model
from redistill.policies.order import gold_sequence
from redistill.runs.cache_teacher import cache_teacher
from redistill.runs.demo import student_tree, toy_world
from redistill.runs.load import load_data
from redistill.runs.run import train_student
from redistill.teachers.forms import Tensors, TopK
from redistill.vocab_pass import row_statistics

UPDATES, SEEDS = 100, (10, 20, 30)
FORMS: dict[str, dict[str, Any]] = {
    "full, float32": {"cache_dtype": "float32"},
    "full, bfloat16": {"cache_dtype": "bfloat16"},
    **{f"top-k with rest, k = {k}": {"cache_form": {"kind": "top_k", "k": k}} for k in (4, 12, 50)},
    **{f"top-k renormalised, k = {k}": {"cache_form": {"kind": "top_k", "k": k}} for k in (4, 12, 50)},
    **{f"sampled, {n} draws": {"cache_form": {"kind": "sampled", "draws": n}} for n in (4, 12, 50)},
}


def renormalised(form: TopK, tensors: Tensors) -> TopClasses:
    """The listed classes alone, with the sum 1."""
    logp_NK = tensors["logp_NK"].float().log_softmax(dim=-1)
    return TopClasses(tensors["class_NK"].long(), logp_NK, torch.full_like(logp_NK[:, 0], -torch.inf))


def recipe(world: Path, folder: Path, seed: int, teacher: Mapping[str, Any], updates: int) -> Run:
    """The recipe of forward KL with this teacher."""
    tree: dict[str, Any] = student_tree(world)
    return decode_run(
        {
            **tree,
            "name": "cached-forms",
            "method": "kd",
            "seed": seed,
            "out": str(folder),
            "teacher": tree["teacher"] | dict(teacher),
            "objective": {"sft_weight": 0.0, "divergence": "forward_kl"},
            "data": tree["data"] | {"tests": {}},
            "training": tree["training"] | {"updates": updates, "evaluate_every": 0},
        },
        "cached-forms",
    )


@torch.no_grad()
def held_out_kl(config: Run, student: Path) -> float:
    """Mean KL(p || q) in nats over the targets of the validation rows."""
    assert hasattr(config.teacher, "model")
    taught, tokenizer = load_model(ModelConfig(model=config.teacher.model))
    trained, _ = load_model(ModelConfig(model=str(student)))
    data = load_data(config.data, tokenizer, config.seed, rejected=None)
    batch = collate(items_of(map(gold_sequence, data.validation_examples), "distillation"), pad_id=0)
    p, q = (
        body(model.eval())(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]
        for model in (taught, trained)
    )
    logits_NV = head(taught).logits(p)
    return float(row_statistics(q, head(trained), lambda rows: logits_NV[rows], ["forward_kl"])["forward_kl"].double().mean())


def measured(world: Path, folder: Path, name: str, seeds: tuple[int, ...], updates: int) -> dict[str, Any]:
    """Bytes per target of one form, and the held-out KL of each seed."""
    store = folder / name.replace(" ", "-")
    made = cache_teacher(recipe(world, folder / "unused", seeds[0], FORMS[name], updates), store)
    size = sum(path.stat().st_size for path in store.glob("states-*"))
    found = []
    for seed in seeds:
        config = recipe(world, folder / f"{store.name}-{seed}", seed, FORMS[name] | {"cache": str(store)}, updates)
        with mock.patch.object(TopK, "classes", renormalised) if "renormalised" in name else nullcontext():
            found.append(held_out_kl(config, train_student(config)))
    print(name, size / made.layout.targets, found, flush=True)
    return {"bytes_per_target": size / made.layout.targets, "kl": statistics.mean(found), "kl_of_seeds": found}


def main() -> None:
    chosen = measuring.arguments(__doc__ or "")
    seeds, updates = (SEEDS[:1], 3) if chosen.quick else (SEEDS, UPDATES)
    world = toy_world()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: measured(world, Path(folder), name, seeds, updates) for name in FORMS}
        start = recipe(world, Path(folder) / "start", SEEDS[0], {}, updates)
        untrained = recipe(world, Path(folder) / "untrained", SEEDS[0], {}, 1)
        results["live teacher"] = {"kl": held_out_kl(start, train_student(start))}
        results["one update"] = {"kl": held_out_kl(untrained, train_student(untrained))}
    measuring.write("cached_forms", results, quick=chosen.quick)


if __name__ == "__main__":
    main()
