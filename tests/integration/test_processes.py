"""However the global batch is cut - micro-batches, processes - the same student comes out."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import redistill
from redistill import files
from redistill.config import encode_run
from tests.integration import two_processes
from tests.worlds import GPT2, tiny_run

# Wider weights than a fresh model's, so that texts and teacher differ; no dropout, whose masks belong to a process.
STILL_GPT2 = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
UPDATES = 10
CUTS = {"one by one": (1, 8, 16), "one by four": (1, 2, 4), "two by two": (2, 2, 1)}  # processes, micro-batch, texts at once


@dataclass(frozen=True)
class Outcome:
    gradients: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    texts: list[list[int]]
    shares: list[list[int]]
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("processes")
    found = {}
    for name, (world, micro_batch, at_once) in CUTS.items():
        training = {"updates": UPDATES, "batch_size": 8, "micro_batch_size": micro_batch, "generation_batch_size": at_once}
        config = tiny_run(folder, config=STILL_GPT2, out=f"{name} run", training=training)
        recipe, out = folder / f"{name}.yaml", folder / name
        recipe.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
        if world == 1:
            two_processes.main(recipe, out, expected_world=1)
        else:
            _torchrun(recipe, out, world)
        found[name] = _read(out, config.folder)
    return found


def _torchrun(recipe: Path, out: Path, world: int) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    package = Path(redistill.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, two_processes.__file__, str(recipe), str(out), str(world)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def _read(out: Path, run: Path) -> Outcome:
    checkpoint = run / "checkpoints" / f"step-{UPDATES}"
    clip_network = {f"clip_network.{name}": value for name, value in load_file(checkpoint / "clip_network.safetensors").items()}
    return Outcome(
        gradients=load_file(out / "gradients.safetensors"),
        weights=load_file(checkpoint / "model.safetensors") | clip_network,
        texts=files.read_json(out / "texts.json"),
        shares=files.read_json(out / "shares.json"),
        metrics=files.read_lines(run / "metrics.jsonl"),
    )


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def without_key_biases(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2 has the biases of query, key and value in one vector.  Softmax does not see a key's bias: its gradient is noise."""
    kept = {}
    for name, value in tensors.items():
        if name.endswith("attn.c_attn.bias"):
            query, _, value_bias = value.chunk(3)
            value = torch.cat([query, value_bias])
        kept[name] = value
    return kept


@pytest.mark.distributed
def test_two_processes_had_half_a_batch_each(outcomes: dict[str, Outcome]) -> None:
    shares = outcomes["two by two"].shares
    assert [len(share) for share in shares] == [4, 4]
    assert [[*shares[0], *shares[1]]] == outcomes["one by one"].shares


@pytest.mark.distributed
def test_every_term_takes_part(outcomes: dict[str, Outcome]) -> None:
    first = outcomes["one by one"].metrics[0]
    assert {"dataset", "revised"} <= first["origin"].keys()
    assert min(first["sft"], first["divergence"], first["span"]) > 0
    assert any(
        name.startswith("clip_network.") and value.norm() > 0 for name, value in outcomes["one by one"].gradients.items()
    )


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["one by four", "two by two"])
def test_gradients_are_the_same(outcomes: dict[str, Outcome], name: str) -> None:
    found, expected = without_key_biases(outcomes[name].gradients), without_key_biases(outcomes["one by one"].gradients)
    assert found.keys() == expected.keys()
    whole = relative(torch.cat([g.flatten() for g in found.values()]), torch.cat([g.flatten() for g in expected.values()]))
    worst = {key: relative(found[key], expected[key]) for key in expected if expected[key].norm() > 0}
    assert max(whole, *worst.values()) < 1e-6, worst


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["one by four", "two by two"])
def test_weights_after_ten_updates_are_the_same(outcomes: dict[str, Outcome], name: str) -> None:
    found, expected = without_key_biases(outcomes[name].weights), without_key_biases(outcomes["one by one"].weights)
    assert found.keys() == expected.keys()
    worst = {key: relative(found[key], expected[key]) for key in expected if expected[key].norm() > 0}
    assert max(worst.values()) < 1e-5, worst


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["one by four", "two by two"])
def test_texts_are_the_same(outcomes: dict[str, Outcome], name: str) -> None:
    assert outcomes[name].texts == outcomes["one by one"].texts
    assert len({tuple(ids) for ids in outcomes["one by one"].texts}) > 8
