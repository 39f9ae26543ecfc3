"""Rows of recipes in the toy world train for one update, with tiny models in place of the demo's."""

import dataclasses
import math
from pathlib import Path

import pytest

from redistill.runs.run import train_student
from redistill.runs.sweep import plan_sweep
from redistill.storage import files
from tests.worlds import tiny_run

LABELS = {
    "methods-2026-toy": "kd gkd opd distillm2 skd taid eopd todi iwopd mgsr-robust",
    "drafts-toy": "fkl rkl jsd tvd nla lk-hybrid",
}
ROWS = [(name, label) for name, labels in LABELS.items() for label in labels.split()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("toy-recipes")


@pytest.mark.parametrize("name", LABELS)
def test_every_row_has_three_training_seeds(name: str) -> None:
    runs = [(entry.label, entry.run.seed) for entry in plan_sweep(Path(name)).entries]
    assert sorted(runs) == sorted((label, seed) for label in LABELS[name].split() for seed in (10, 20, 30))


@pytest.mark.parametrize(("name", "label"), ROWS)
def test_a_row_trains_for_one_update(name: str, label: str, world: Path) -> None:
    run = next(entry.run for entry in plan_sweep(Path(name)).entries if entry.label == label)
    tiny = tiny_run(world, out=f"{name}-{label}", data={"tokens": {"prompt_tokens": 80, "response_tokens": 6}})
    training = dataclasses.replace(run.training, updates=1, evaluate_every=1, batch_size=4, log_every=1)
    models = {"teacher": tiny.teacher, "student": tiny.student, "data": tiny.data, "out": tiny.out}
    train_student(dataclasses.replace(run, training=training, **models))
    lines = files.read_lines(tiny.folder / "metrics.jsonl")
    (update,) = [line for line in lines if line["kind"] == "train"]
    assert math.isfinite(update["loss"]) and update["grad_norm"] > 0
    if name == "drafts-toy":
        assert all(0 < line["acceptance"] < 1 for line in lines if line["kind"] == "validation")
