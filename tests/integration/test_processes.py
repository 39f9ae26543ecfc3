"""The trained student does not depend on the number of processes and micro-batches."""

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
from redistill.config.methods import METHODS
from redistill.config.run import Run, encode_run
from redistill.storage import files
from redistill.training import checkpoint
from tests.integration import two_processes
from tests.worlds import GPT2, rows, tiny_run

# Wider weights than a fresh model's, so that texts and teacher differ; no dropout, whose masks belong to a process.
STILL_GPT2 = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
REWARD = "rollout_reward"
UPDATES = 3
CUTS = {"one by one": (1, 8, 16), "one by four": (1, 2, 4), "two by two": (2, 2, 1)}  # processes, micro-batch, texts at once
OTHER_CUTS = [name for name in CUTS if name != "one by one"]
SECTIONS: dict[str, dict[str, Any]] = {  # for methods whose defaults have little effect in a few updates
    "minillm": {"policy": {"kind": "rollouts", "source": "teacher_mixed", "num_rollouts": 16, "inner_epochs": 2}},
    "distillm": {"policy": {"kind": "adaptive", "threshold": 0.7, "capacity": 8}},
    "mgsr": {"training": {"updates": 8}},
}

every_method = pytest.mark.parametrize("method", list(METHODS))
every_cut = pytest.mark.parametrize("name", OTHER_CUTS)
pytestmark = pytest.mark.distributed


@dataclass(frozen=True)
class Outcome:
    gradients: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    texts: list[list[int]]
    shares: list[list[int]]
    metrics: list[dict[str, Any]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outcome]:
    """By cut and method; two processes do all methods one after the other, since starting them takes longest."""
    folder = tmp_path_factory.mktemp("processes")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n\n".join(f"The {row['output']} {row['instruction']}" * 9 for row in rows(24)), encoding="utf-8")
    found = {}
    for name, (world, micro_batch, at_once) in CUTS.items():
        slug = name.replace(" ", "-")
        configs = {}
        for method in METHODS:
            sections = SECTIONS.get(method, {})
            settings = {"updates": UPDATES, "batch_size": 8, "micro_batch_size": micro_batch, "generation_batch_size": at_once}
            sections = {**sections, "training": settings | sections.get("training", {}), "data": {"corpus": [str(corpus)]}}
            configs[method] = tiny_run(folder, method, config=STILL_GPT2, out=f"{slug}-{method}-run", **sections)
            recipe = folder / f"{slug}-{method}.yaml"
            recipe.write_text(yaml.safe_dump(encode_run(configs[method])), encoding="utf-8")
        if world == 1:
            two_processes.main(folder, slug, list(METHODS), expected_world=1)
        else:
            _torchrun(folder, slug, world)
        found |= {(name, method): _read(folder / f"{slug}-{method}", config) for method, config in configs.items()}
    return found


def _torchrun(folder: Path, name: str, world: int) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    package = Path(redistill.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, two_processes.__file__, str(folder), name, ",".join(METHODS), str(world)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def _read(out: Path, config: Run) -> Outcome:
    step = checkpoint.load_step(config.folder / "checkpoints", int(config.training.updates))
    clip_network = {f"clip_network.{name}": value for name, value in step.tensors.get("clip_network", {}).items()}
    return Outcome(
        gradients=load_file(out / "gradients.safetensors"),
        weights={**step.tensors["model"], **clip_network},
        texts=files.read_json(out / "texts.json"),
        shares=files.read_json(out / "shares.json"),
        metrics=files.read_lines(config.folder / "metrics.jsonl"),
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


def assert_same(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """No tensor differs by more than `tolerance` of its own norm."""
    found, expected = without_key_biases(found), without_key_biases(expected)
    assert found.keys() == expected.keys()
    worst = {key: relative(found[key], expected[key]) for key in expected if expected[key].norm() > 0}
    assert max(worst.values()) < tolerance, worst


@every_method
def test_two_processes_have_half_a_batch_each(outcomes: dict[tuple[str, str], Outcome], method: str) -> None:
    shares = outcomes["two by two", method].shares
    assert [len(share) for share in shares] == [4, 4]
    assert [[*shares[0], *shares[1]]] == outcomes["one by one", method].shares


@every_method
@every_cut
def test_gradients_are_the_same(outcomes: dict[tuple[str, str], Outcome], name: str, method: str) -> None:
    assert_same(outcomes[name, method].gradients, outcomes["one by one", method].gradients, 2e-6)


@every_method
@every_cut
def test_weights_after_training_are_the_same(outcomes: dict[tuple[str, str], Outcome], name: str, method: str) -> None:
    assert_same(outcomes[name, method].weights, outcomes["one by one", method].weights, 1e-5)


@every_method
@every_cut
def test_the_same_sequences_were_drawn(outcomes: dict[tuple[str, str], Outcome], name: str, method: str) -> None:
    cut, whole = (outcomes[each, method].metrics for each in (name, "one by one"))
    assert [counted(line) for line in cut] == [counted(line) for line in whole]
    rewards, expected = (
        [line["policy"][REWARD] for line in lines if REWARD in (line.get("policy") or {})] for lines in (cut, whole)
    )
    assert rewards == pytest.approx(expected, rel=1e-6)  # their mean is a sum in another order
    assert bool(rewards) == (method == "minillm")


@every_cut
def test_texts_are_the_same(outcomes: dict[tuple[str, str], Outcome], name: str) -> None:
    assert outcomes[name, "mgsr"].texts == outcomes["one by one", "mgsr"].texts
    assert len({tuple(ids) for ids in outcomes["one by one", "mgsr"].texts}) > 8


def test_every_term_is_included(outcomes: dict[tuple[str, str], Outcome]) -> None:
    """Otherwise the tests above would not cover it."""
    first = {method: training_lines(outcomes["one by one", method])[0] for method in METHODS}
    assert {"dataset", "revised"} <= first["mgsr"]["origin"].keys()
    assert min(first["mgsr"][name] for name in ("sft", "divergence", "span")) > 0
    gradients = outcomes["one by one", "mgsr"].gradients
    assert any(name.startswith("clip_network.") and value.norm() > 0 for name, value in gradients.items())
    assert first["seqkd"]["origin"] == {"teacher": 8} and first["minillm"]["origin"] == {"mixture": 8}
    assert min(first["minillm"][name] for name in ("divergence", "pretraining", "pretraining_kl")) > 0
    assert first["minillm"]["policy_gradient"] != 0
    origins = {name for line in training_lines(outcomes["one by one", "distillm"]) for name in line["origin"]}
    assert origins == {"dataset", "student", "replay"}


def counted(line: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    policy = {name: value for name, value in (line.get("policy") or {}).items() if name != REWARD}
    return line.get("origin"), line.get("response_length"), policy


def training_lines(outcome: Outcome) -> list[dict[str, Any]]:
    return [line for line in outcome.metrics if line["kind"] == "train"]
