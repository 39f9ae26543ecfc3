"""The run and the baseline that most tests read, each test with its own copy."""

from pathlib import Path

import pytest

from tests.reports.fabricated import write_run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", "mine")


@pytest.fixture
def baseline_folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "sft", "plain-sft", role="baseline")
