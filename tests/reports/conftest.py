"""Fixtures: a run folder and a baseline folder, newly written for each test."""

from pathlib import Path

import pytest

from tests.reports.fabricated import write_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "mine")


@pytest.fixture
def baseline_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "sft", "plain-sft", role="baseline")
