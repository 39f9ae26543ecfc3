"""Training does not depend on the placement of the student: gradients, weights, memory, and runs that change it half-way.

`make faults` computes every method with full and LoRA students, tied and untied heads, on 1, 2 and 4 processes.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import redistill
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults import placed_runs
from tests.faults.counts import WHOLE
from tests.faults.placed_runs import CASES, HALF, PLACEMENTS, RUN_PLACEMENTS, UPDATES

pytestmark = pytest.mark.distributed
OTHERS = [name for name in RUN_PLACEMENTS if name != "single"]
RESUMED = list(placed_runs.resumed())
GRADIENT, WEIGHTS = 1e-5, 1e-4  # relative to the norm of all tensors
PATIENCE_S = 3600.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs; the processes of a placement are started once for all cases."""
    folder = tmp_path_factory.mktemp("matrix")
    for placement in RUN_PLACEMENTS:
        for case in CASES:
            placed_runs.write_recipe(folder, placement, case)
    for placement in RUN_PLACEMENTS:
        start(folder, placement, "cases")
    for trial in RESUMED:
        placed_runs.prepare_resumed(folder, *trial)
    for placement in {after for _, after, _ in RESUMED}:
        start(folder, placement, "resumed")
    return folder


def start(folder: Path, placement: str, part: str) -> None:
    count = str(PLACEMENTS[placement])
    if count == "1":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda: False)
            placed_runs.main(folder, placement, part)
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    root, package = Path(__file__).parents[2], Path(redistill.__file__).parents[1]
    paths = {"PYTHONPATH": f"{package}{os.pathsep}{root}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "-m", placed_runs.__name__, str(folder), placement, part]
    log = folder / f"{placement}-{part}.log"
    with log.open("w") as out:
        done = subprocess.run(command, env={**os.environ, **paths}, cwd=root, stdout=out, stderr=out, timeout=PATIENCE_S)
    assert done.returncode == 0, log.read_text()[-6000:]


def distance(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors, relative to that of the expected ones."""
    assert found.keys() == expected.keys()
    left, right = (torch.cat([each[name].flatten().double() for name in sorted(expected)]) for each in (found, expected))
    return float((left - right).norm() / right.norm())


def weights(run: Path, step: int = UPDATES) -> dict[str, torch.Tensor]:
    tensors = checkpoint.load_step(run / "checkpoints", step).tensors
    return {f"{group}.{name}": value for group in ("model", "clip_network") for name, value in tensors.get(group, {}).items()}


def draws(run: Path) -> list[tuple[Any, ...]]:
    """The origins and lengths of the sequences of each update."""
    lines = [line for line in files.read_lines(run / "metrics.jsonl") if line["kind"] == "train"]
    return [(line["step"], line.get("origin"), line.get("response_length")) for line in lines]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("placement", OTHERS)
def test_gradients_equal_those_of_one_process(folder: Path, placement: str, case: str) -> None:
    found, expected = (load_file(folder / where / f"{case}.gradient.safetensors") for where in (placement, "single"))
    assert expected and distance(found, expected) <= GRADIENT


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("placement", OTHERS)
def test_weights_and_draws_equal_those_of_one_process(folder: Path, placement: str, case: str) -> None:
    found, expected = (folder / where / case for where in (placement, "single"))
    assert draws(found) == draws(expected) and len(draws(expected)) == UPDATES
    assert distance(weights(found), weights(expected)) <= WEIGHTS
    assert distance(weights(expected, HALF), weights(expected)) > WEIGHTS, "a run that does not change shows nothing"


@pytest.mark.parametrize("case", CASES)
def test_a_rank_of_two_holds_at_most_6_tenths_of_the_trained_state_and_of_the_teacher(folder: Path, case: str) -> None:
    sizes = zip(*(files.read_json(folder / where / f"{case}.bytes.json") for where in ("sharded-2", "single")), strict=True)
    for found, expected in sizes:
        assert 0.5 * expected <= found <= 0.6 * expected


@pytest.mark.parametrize(("before", "after", "case"), RESUMED)
def test_a_run_resumes_with_another_placement(folder: Path, before: str, after: str, case: str) -> None:
    found, expected = folder / placed_runs.resumed_name(before, after, case), folder / "single" / case
    assert draws(found) == draws(expected)
    assert distance(weights(found), weights(expected)) <= WEIGHTS
    assert files.read_json(found / "run.json")["processes"] == PLACEMENTS[after]


@pytest.mark.skipif(not WHOLE, reason="only one run is resumed")
def test_every_case_resumes_and_every_pair_of_placements_is_covered() -> None:
    assert {case for _, _, case in RESUMED} == set(CASES)
    assert len({(before, after) for before, after, _ in RESUMED}) == len(RUN_PLACEMENTS) * (len(RUN_PLACEMENTS) - 1)
