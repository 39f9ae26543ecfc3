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
GENERATING = ["opd", "gkd", "mgsr", "minillm"]
WAITS_PER_TOKEN = 0.2
UPDATE_WAITS = 4
"""Limit of the synchronisations of an update outside generation and logging; LIMITS has the exceptions."""
LIMITS = {
    "iwopd": 6,  # the weights of each of four sequences are read
    "minillm": 18,  # the log-probabilities of both models for each of eight roll-outs are read
}


def limit_of(trial: str) -> int:
    return LIMITS.get(trial, UPDATE_WAITS)


def _line_with(path: Path, text: str) -> str:
    """The place of the only line that contains a text, such as "vocab_pass/statistics.py:91"."""
    lines = [number for number, line in enumerate(path.read_text().splitlines(), 1) if text in line]
    assert len(lines) == 1
    return f"{path.parent.name}/{path.name}:{lines[0]}"


STATISTICS_READ = _line_with(ROOT / "src/redistill/vocab_pass/statistics.py", "check_sampled(int(")

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


def waits(counts: dict[str, dict[str, int]], *phases: str, without: str = "") -> dict[str, int]:
    """The synchronisations in phases of a run, which `device.PHASES` names, in all files of the package."""
    found = ((place.partition(":")[0].strip(), place, number) for place, number in counts["syncs"].items())
    return {place: number for phase, place, number in found if phase in phases and not (without and without in place)}


def in_the_vocabulary_pass(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """The synchronisations in the vocabulary pass and the losses, except the one read of `row_statistics`."""
    phases = ("update vocabulary pass", "validation vocabulary pass", "vocabulary pass")
    return waits(counts, *phases, without=f"{STATISTICS_READ} ")


def in_generation(counts: dict[str, dict[str, int]], phase: str = "update generation") -> dict[str, int]:
    return waits(counts, phase, f"{phase} vocabulary pass")


def in_updates(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """The synchronisations of updates outside generation and logging, except those inside transformers."""
    return waits(counts, "update", "update vocabulary pass", without="(transformers)")


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


@pytest.mark.parametrize("trial", GENERATING)
def test_generation_waits_at_most_once_in_five_tokens(found: dict[str, Any], trial: str) -> None:
    counts = in_generation(found[trial]["training"])
    assert 0 < sum(counts.values()) <= WAITS_PER_TOKEN * found[trial]["cost"]["generated_tokens"], counts


def test_generation_with_a_ban_of_n_grams_waits_at_most_once_in_two_tokens(found: dict[str, Any]) -> None:
    counts = in_generation(found["kd"]["evaluation"], "generation")
    assert 0 < sum(counts.values()) <= 0.5 * 3 * 16, counts  # 3 answers of 16 tokens


@pytest.mark.parametrize("trial", COMPARED)
def test_weights_are_read_to_the_device_one_by_one(found: dict[str, Any], trial: str) -> None:
    """Whole models are not copied from the CPU later, so that no process needs memory for them."""
    copies = found[trial]["training"]["copies"]
    weights = 3 * 9 + 2  # of each model: three layers, embeddings and the final norm
    models = 1 if trial == "sft" else 2
    lines = [(place.partition(": ")[2], number) for place, number in copies.items()]
    assert sum(number for line, number in lines if line.startswith("models/load.py")) >= models * weights
    later = ("runs/opened.py", "teachers/local.py", "models/student.py")  # the clip network of DAC-KL has six tensors
    assert sum(number for line, number in lines if line.startswith(later)) < weights


@pytest.mark.parametrize("trial", COMPARED)
def test_an_update_waits_a_few_times(found: dict[str, Any], trial: str) -> None:
    """Transformers waits besides, twice in each forward pass of a body, to see whether an attention mask has padding."""
    counts = in_updates(found[trial]["training"])
    assert 0 < sum(counts.values()) <= limit_of(trial) * UPDATES, counts


def test_a_stopped_run_is_resumed_bitwise(found: dict[str, Any]) -> None:
    assert found["resume"]["equal"]


def test_memory_is_estimated(found: dict[str, Any]) -> None:
    assert found["estimate"]["peak_bytes"] >= 0


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_detected(found: dict[str, Any], name: str) -> None:
    fault, shown_by = found["faults"][name], FAULTS[name].shown_by
    if shown_by == "generation":
        assert sum(in_generation(fault).values()) > WAITS_PER_TOKEN * fault["cost"]["generated_tokens"]
    elif shown_by == "update":
        assert sum(in_updates(fault).values()) > limit_of(FAULTS[name].trial)
    elif shown_by == "vocabulary pass":
        assert in_the_vocabulary_pass(fault)
    elif "numpy" in name:
        assert "can't convert cuda:0 device type tensor to numpy" in fault["error"]
    else:
        assert "Expected all tensors to be on the same device" in fault["error"]


def test_fifteen_faults_are_planted() -> None:
    assert len(FAULTS) == 15
