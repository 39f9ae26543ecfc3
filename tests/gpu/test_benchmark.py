"""The benchmark of a GPU runs with tiny shapes on a CPU, and a part that fails does not stop the others."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu


def test_every_part_runs_or_names_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--out", str(tmp_path)])
    monkeypatch.setitem(gpu.RIVALS, "broken", lambda case, divergence: case.no_such_field)
    monkeypatch.setitem(gpu.RIVALS, "redistill", gpu.RIVALS["redistill, not compiled"])  # compilation takes seconds
    gpu.main()
    written = json.loads((tmp_path / "gpu.json").read_text())
    found = written["results"]
    failed = {name for name, result in found.items() if "failed" in result}
    skipped = {result["skipped"] for result in found.values() if "skipped" in result}
    assert written["small"] and failed == {"loss: broken"}
    allowed = {"No module named 'trl'", "No module named 'liger_kernel'"} | ({"needs a GPU"} - {torch.cuda.is_available()})
    assert skipped <= allowed
    measured = {name for name, result in found.items() if result.get("median", 0) > 0}
    parts = ("loss: redistill", "update: on-policy Jensen-Shannon", "update: MGSR", "generation: redistill")
    assert measured.issuperset({*parts, "generation: transformers"})
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert len(lines) == 2 + len(found) and all(line.count("|") == 4 for line in lines)


def test_parts_after_the_time_are_skipped() -> None:
    found = gpu.measured(gpu.SMALL, minutes=-1)
    assert found and all("was over" in result["skipped"] for result in found.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_full_shapes_need_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no GPU on this machine; use --small"):
        gpu.main()
