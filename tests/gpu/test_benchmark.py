"""The benchmark of a GPU runs with tiny shapes on a CPU, and a part that fails does not stop the others."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, loss

ROOT = Path(__file__).parents[2]


def test_every_part_runs_or_names_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--tests", "passed", "--out", str(tmp_path)])
    monkeypatch.setitem(gpu.RIVALS, "broken", lambda case, divergence: case.no_such_field)
    monkeypatch.setitem(gpu.RIVALS, "redistill", gpu.RIVALS["redistill, not compiled"])  # compilation takes seconds
    gpu.main()
    written = json.loads((tmp_path / "gpu.json").read_text())
    found = written["results"]
    failed = {name for name, result in found.items() if "failed" in result}
    skipped = {result["skipped"] for result in found.values() if "skipped" in result}
    assert written["small"] and written["tests"] == "passed" and failed == {"loss: broken"}
    allowed = {"No module named 'trl'", "No module named 'liger_kernel'"} | ({"needs a GPU"} - {torch.cuda.is_available()})
    assert skipped <= allowed
    measured = {name for name, result in found.items() if result.get("median", 0) > 0}
    parts = ("loss: redistill", "update: on-policy Jensen-Shannon", "update: MGSR", "generation: redistill")
    assert measured.issuperset({*parts, "generation: transformers"})
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert lines[:2] == ["Tests that need a GPU: passed.", ""]
    assert len(lines) == 4 + len(found) and all(line.count("|") == 4 for line in lines[2:])


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_gradients_have_the_size_of_their_dtype(dtype: torch.dtype, num_bytes: int) -> None:
    case = loss.Case(loss.Shape(rows=4, classes=6, student=3, teacher=5), dtype)
    case.hidden.sum().backward()
    case.weight.sum().backward()
    assert case.hidden.grad is not None and case.weight.grad is not None
    assert gpu.gradient_bytes(case) == num_bytes * (4 * 3 + 6 * 3) == case.hidden.grad.nbytes + case.weight.grad.nbytes


def test_synchronisations_per_token_are_those_of_generation_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An update also waits outside generation; these waits are not divided by the number of tokens."""
    monkeypatch.setattr(gpu, "launches_and_waits", lambda work: {"kernels": 1, "synchronisations": 100 if is_step(work) else 4})

    def is_step(work: object) -> bool:
        return work is not made.generate

    made = types.SimpleNamespace(step=lambda: None, generate=lambda: None)
    monkeypatch.setattr(gpu, "Update", lambda sizes, method: made)
    found = {name: work() for name, work in gpu.of_updates(gpu.SMALL) if name.startswith("kernels")}
    assert found.pop("kernels: generation")["synchronisations per token"] == 4 / (gpu.SMALL.batch * gpu.SMALL.response)
    assert found and all(result == {"kernels": 1, "synchronisations": 100} for result in found.values())


def test_kernels_and_synchronisations_are_counted_by_name() -> None:
    calls = {
        "cudaLaunchKernel": 3,
        "cuLaunchKernelEx": 2,
        "cudaStreamSynchronize": 4,
        "cudaDeviceSynchronize": 1,
        "aten::mm": 9,
    }
    assert gpu.counted(calls) == {"kernels": 5, "synchronisations": 5}


@pytest.mark.parametrize(("has_gpu", "failed"), [(True, 0), (True, 1), (False, 0)])
def test_the_result_of_the_tests_is_passed_on(tmp_path: Path, has_gpu: bool, failed: int) -> None:
    """The script measures although tests failed, and fails then."""
    python = tmp_path / "python"
    log = tmp_path / "log"
    cases = f'*is_available*) exit {int(not has_gpu)};; *"-m pytest"*) exit {failed};; *) printf "%s|" "$@" > {log};;'
    python.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\n')
    python.chmod(0o755)
    command = [str(ROOT / "benchmarks" / "gpu.sh"), "--small"]
    done = subprocess.run(command, env={**os.environ, "PYTHON": str(python)}, capture_output=True, text=True)
    expected = ("failed (pytest exited with 1)" if failed else "passed") if has_gpu else "not run: no GPU on this machine"
    assert log.read_text() == f"-m|benchmarks.gpu|--tests|{expected}|--small|"
    assert done.returncode == failed, done.stderr


def test_parts_after_the_time_are_skipped() -> None:
    found = gpu.measured(gpu.SMALL, minutes=-1)
    assert found and all("was over" in result["skipped"] for result in found.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_full_shapes_need_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no GPU on this machine; use --small"):
        gpu.main()
