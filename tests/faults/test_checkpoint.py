"""A run that goes on with another number of processes draws the same sequences; one whose data has changed does not go on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import redistill
from redistill.config.run import Run, encode_run
from redistill.errors import CheckpointError
from redistill.runs.run import train_student
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults import part_of_a_run
from tests.faults.part_of_a_run import train_until
from tests.worlds import GPT2, rows, tiny_run, write_rows

# Wider weights than a fresh model's, so that texts and teacher differ; no dropout, whose masks belong to a process.
STILL = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
UPDATES = 6
POLICY = {"kind": "adaptive", "threshold": 0.7, "decay": "constant", "capacity": 6, "source": {"kind": "revised"}}
TRAINING = {"updates": UPDATES, "batch_size": 4, "save_every": 1, "log_every": 1}


def run(folder: Path, out: str) -> tuple[Run, Path]:
    config = tiny_run(folder, config=STILL, out=out, policy=POLICY, training=TRAINING)
    recipe = folder / f"{out}.yaml"
    recipe.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return config, recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """One process straight through; and one process, then two, then one."""
    folder = tmp_path_factory.mktemp("processes")
    (straight, _), (parts, recipe) = run(folder, "straight"), run(folder, "parts")
    train_student(straight)
    train_until(recipe, 2, world=1)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    package, root = Path(redistill.__file__).parents[1], Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{package}:{root}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, part_of_a_run.__file__, str(recipe), "4", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert checkpoint.steps(parts.folder / "checkpoints")[-1] == 4
    train_student(parts)
    return straight, parts


@pytest.mark.distributed
def test_the_same_sequences_are_drawn_by_one_process_two_and_one(runs: tuple[Run, Run]) -> None:
    drawn = []
    for config in runs:
        lines = [line for line in files.read_lines(config.folder / "metrics.jsonl") if line["kind"] == "train"]
        assert [line["step"] for line in lines] == list(range(1, UPDATES + 1))
        drawn.append([(line["origin"], line["response_length"], line["policy"]) for line in lines])
    assert drawn[0] == drawn[1]
    assert {"dataset", "revised", "replay"} <= {origin for origins, _, _ in drawn[0] for origin in origins}


@pytest.mark.distributed
def test_the_same_corrections_are_made_while_there_is_one(runs: tuple[Run, Run]) -> None:
    """Two processes log those of the first alone."""
    made: list[list[dict[str, Any]]] = []
    for config in runs:
        lines = files.read_lines(config.folder / "revisions.jsonl")
        made.append([{**line, "kl": round(line["kl"], 4)} for line in lines if line["step"] not in (3, 4)])
    assert made[0] == made[1] and {line["step"] for line in made[0]} & {5, 6}


@pytest.mark.distributed
def test_the_weights_are_the_same_but_for_rounding(runs: tuple[Run, Run]) -> None:
    straight, parts = (checkpoint.load_step(config.folder / "checkpoints", UPDATES).tensors["model"] for config in runs)
    for name, expected in straight.items():
        if name.endswith("attn.c_attn.bias"):
            continue  # a third of it, the bias of the keys, has a gradient of noise: softmax does not see it
        difference = (parts[name].double() - expected.double()).norm()
        assert difference <= 1e-5 * expected.double().norm(), name


def test_a_run_whose_data_has_changed_does_not_go_on(tmp_path: Path) -> None:
    config, recipe = run(tmp_path, "run")
    train_until(recipe, 1, world=1)
    before = files.digest(config.folder / "run.json")
    manifest = files.read_json(config.folder / "checkpoints" / "step-1" / "manifest.json")
    parts = ("weights", "adapter", "config", "tokenizer", "chat template")
    models = {f"{role} {part}" for role in ("teacher", "student") for part in parts}
    assert manifest["run"].keys() == {"settings", "training data", "validation data", "pre-training data"} | models
    assert manifest["run"] == checkpoint.identity(config.folder / "checkpoints")

    changed = rows(24)
    changed[7]["output"] = "The owl is awake."
    write_rows(tmp_path / "train.jsonl", changed)
    with pytest.raises(
        CheckpointError, match=r"checkpoints: its checkpoints belong to a run with different training data; restore the"
    ):
        train_student(config)
    assert files.digest(config.folder / "run.json") == before
    write_rows(tmp_path / "train.jsonl", rows(24))
    train_until(recipe, 2, world=1)
