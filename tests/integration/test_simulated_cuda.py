"""Whole runs on a simulated CUDA device: no mixed devices, the losses of the CPU, and few waits of the host for the device."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from redistill.config.methods import METHODS
from tests.simulated_cuda.device import TORCH
from tests.simulated_cuda.faults import FAULTS

ROOT = Path(__file__).parents[2]
UPDATES = 3
NO_CPU_EQUAL = {"bf16"}  # autocast converts other operations on a GPU than on a CPU
COMPARED = [*METHODS, "lora", "bf16"]

pytestmark = [
    pytest.mark.skipif(not torch.__version__.startswith(TORCH), reason=f"the simulated device was tried with torch {TORCH}"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="the hooks of the simulated device need g++"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of all trials, which run in one process of their own."""
    folder = tmp_path_factory.mktemp("simulated_cuda")
    command = [sys.executable, "-P", "-m", "tests.simulated_cuda.trials", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    environment["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # transformers would read weights in threads, which are not simulated
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stderr[-3000:], (folder / "log.txt").read_text(encoding="utf-8")[-2000:])
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def within(counts: dict[str, dict[str, int]], *prefixes: str) -> dict[str, int]:
    """The synchronisations whose line is in one of these modules."""
    return {line: number for line, number in counts["syncs"].items() if line.startswith(prefixes)}


def in_the_vocabulary_pass(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """The synchronisations in the vocabulary pass and the losses; statistics are read on the host once."""
    return {line: number for line, number in within(counts, "vocab_pass/", "losses/").items() if "statistics.py" not in line}


@pytest.mark.parametrize("trial", COMPARED)
def test_a_run_has_the_losses_of_the_cpu(found: dict[str, Any], trial: str) -> None:
    device, cpu = found[trial]["device"], found[trial]["cpu"]
    assert len(device) == len(cpu) >= UPDATES
    if trial not in NO_CPU_EQUAL:
        for own, other in zip(device, cpu, strict=True):
            assert own == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("trial", ["kd", "mgsr"])
def test_an_evaluation_has_the_answers_of_the_cpu(found: dict[str, Any], trial: str) -> None:
    assert found[trial]["equal answers"]


@pytest.mark.parametrize("trial", COMPARED)
def test_the_vocabulary_pass_never_waits(found: dict[str, Any], trial: str) -> None:
    assert in_the_vocabulary_pass(found[trial]["training"]) == {}


@pytest.mark.parametrize("trial", ["opd", "gkd", "mgsr", "minillm"])
def test_generation_waits_at_most_once_in_five_tokens(found: dict[str, Any], trial: str) -> None:
    waits = sum(within(found[trial]["training"], "generation/generate.py", "vocab_pass/sampling.py").values())
    assert 0 < waits <= 0.2 * found[trial]["cost"]["generated_tokens"]


def test_generation_with_a_ban_of_n_grams_waits_at_most_once_in_two_tokens(found: dict[str, Any]) -> None:
    waits = within(found["kd"]["evaluation"], "generation/generate.py", "vocab_pass/sampling.py")
    assert 0 < sum(waits.values()) <= 0.5 * 3 * 16, waits  # 3 answers of 16 tokens


@pytest.mark.parametrize("trial", COMPARED)
def test_weights_are_read_to_the_device_one_by_one(found: dict[str, Any], trial: str) -> None:
    """Whole models are not copied from the CPU later, so that no process needs memory for them."""
    copies = found[trial]["training"]["copies"]
    weights = 3 * 9 + 2  # of each model: three layers, embeddings and the final norm
    models = 1 if trial == "sft" else 2
    assert sum(number for line, number in copies.items() if line.startswith("models/load.py")) >= models * weights
    later = ("runs/opened.py", "teachers/local.py", "models/student.py")  # the clip network of DAC-KL has six tensors
    assert sum(number for line, number in copies.items() if line.startswith(later)) < weights


def test_an_update_waits_at_most_four_times(found: dict[str, Any]) -> None:
    """Transformers waits besides, twice in each forward pass, to see whether an attention mask has padding."""
    waits = within(found["kd"]["training"], "training/", "vocab_pass/", "policies/", "data/")
    assert 0 < sum(waits.values()) <= 4 * UPDATES, waits


def test_a_stopped_run_is_resumed_bitwise(found: dict[str, Any]) -> None:
    assert found["resume"]["equal"]


def test_memory_is_estimated(found: dict[str, Any]) -> None:
    assert found["estimate"]["peak_bytes"] >= 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_detected(found: dict[str, Any], name: str) -> None:
    fault = found["faults"][name]
    if "CPU" in name:
        assert "Expected all tensors to be on the same device" in fault["error"]
    elif "numpy" in name:
        assert "can't convert cuda:0 device type tensor to numpy" in fault["error"]
    elif "decode" in name:
        assert sum(within(fault, "generation/generate.py").values()) > 0.2 * UPDATES * 4 * 16
    else:
        assert in_the_vocabulary_pass(fault)


def test_ten_faults_are_planted() -> None:
    assert len(FAULTS) == 10
