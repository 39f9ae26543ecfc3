"""The description of the machine, which needs neither a hub nor an accelerator."""

import importlib.metadata
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from redistill.doctor import machine
from redistill.doctor.findings import Finding, quoted
from redistill.doctor.machine import Disk, Machine, examine_machine, measure_disk, product_speed, unmet_requirements
from redistill.doctor.table import print_machine


def test_speeds_are_per_second_and_the_file_is_removed(tmp_path: Path) -> None:
    ticks = iter([0.0, 2.0, 3.0])
    disk = measure_disk(tmp_path / "none" / "yet", lambda: next(ticks))
    assert (disk.write_bytes_per_s, disk.read_bytes_per_s) == (machine.DISK_BYTES / 2, machine.DISK_BYTES)
    assert disk.free_bytes > 0 and list(tmp_path.iterdir()) == []


def test_a_full_or_read_only_disk_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Path, "open", lambda *arguments, **options: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert measure_disk(tmp_path).fault == "not writable (Permission denied)"
    monkeypatch.setattr("redistill.storage.files.disk.free_bytes", lambda folder: 1000)
    assert "too little space" in measure_disk(tmp_path).fault


def test_products_are_counted_in_operations_per_second() -> None:
    ticks = iter([0.0, 0.0, 1.0, 1.0])
    speed = product_speed(torch.float32, torch.device("cpu"), lambda: next(ticks))
    assert speed == pytest.approx(2 * 2 * 512**3 / 1e12)


def test_a_package_of_another_version_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["torch>=999", "absent-package>=1", "rich>=1", "x; extra == 'a'"]
    )
    lines = [finding.line for finding in unmet_requirements()]
    assert lines[0] == (
        f"the package torch: version {importlib.metadata.version('torch')}; expected >=999; pip install 'torch>=999'"
    )
    assert lines[1].startswith("the package absent-package: version none") and len(lines) == 2


def test_the_tables_have_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(what="\x1b[31mred", measured="1", right="2", remedy="3")
    disk = Disk(folder="/a\x1b[0m", free_bytes=10**9, fault="not writable")
    found = Machine(
        versions={"torch": "\x1b[1m2"},
        about={"cpu": "a", "cores": 2, "memory_bytes": 10**9},
        devices={"cpu": "1 thread"},
        products={"float32": 0.5, "float16": None},
        disks={"current folder": disk},
        hub="not asked",
        findings=(finding,),
    )
    console = Console(record=True, width=100, file=io.StringIO())
    print_machine(found, console)
    text = console.export_text()
    assert "\x1b" not in text and "500e9 FLOP/s" in text and "found: red: 1; expected 2; 3" in text


def test_a_long_text_is_shortened_in_its_middle() -> None:
    assert quoted("a" * 50 + "b" * 50, 4) == "'aa ... bb'"


def test_each_phase_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("redistill.doctor.machine.folders", lambda: {"current folder": tmp_path})
    phases: list[str] = []
    examine_machine(phases.append)
    assert phases == ["versions and devices", "matrix products", "disks", "hub"]
