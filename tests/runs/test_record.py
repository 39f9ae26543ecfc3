"""The environment of a run, for run.json."""

from pathlib import Path

import redistill
from redistill.runs.record import machine, versions
from redistill.storage import files


def test_the_machine_is_described_in_json(tmp_path: Path) -> None:
    described = machine()
    files.write_json(tmp_path / "machine.json", described)
    assert described["cpu"] and described["cores"] >= 1 and described["memory_bytes"] > 2**28
    assert {"python", "platform", "torch_threads", "accelerators"} <= described.keys()


def test_versions_list_redistill_and_installed_packages() -> None:
    found = versions()
    assert found["redistill"] == redistill.__version__ and "torch" in found and "transformers" in found
