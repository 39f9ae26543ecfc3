"""A sweep on a local Ray equals the sweep of `--jobs 2` bitwise, also if a worker is killed and the sweep is interrupted."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import redistill
from redistill.config.run import encode_run
from redistill.storage import files
from tests.faults.remains import remains
from tests.worlds import tiny_run

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.faults,
    pytest.mark.skipif(not find_spec("ray"), reason="the package ray is not installed; pip install 'redistill[ray]'"),
]
RUNS = [f"{label}-seed{seed}" for label in ("sft", "kd") for seed in (1, 2, 3, 4)]
PATIENCE_S = 900.0


def write_sweep(folder: Path) -> Path:
    """Eight runs, which save a checkpoint after each of their updates."""
    run = tiny_run(folder, "kd", training={"updates": 8, "batch_size": 4, "save_every": 1, "log_every": 1})
    base = {name: value for name, value in encode_run(run).items() if name not in ("name", "method", "out", "seed")}
    tree = {"name": "eight", "base": base, "rows": {"sft": {"method": "sft"}, "kd": {"method": "kd"}}, "seeds": [1, 2, 3, 4]}
    path = folder / "eight.yaml"
    path.write_text(yaml.safe_dump({**tree, "resources": {"cpus": 1}}, sort_keys=False), encoding="utf-8")
    return path


def start(recipe: Path, out: str, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(redistill.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "redistill", "sweep", str(recipe), "--out", out, "--jobs", "2", *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=recipe.parent, stdout=pipe, stderr=pipe, text=True)


def worker_of(folder: Path) -> int:
    """The process that started the run in `folder`, after the run has saved its second checkpoint; 0 if it has not."""
    if not (folder / "checkpoints" / "step-2").exists():
        return 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            command = (status.parent / "cmdline").read_bytes().split(b"\0")
            if str(folder).encode() in command or f"{folder.parent.name}/{folder.name}".encode() in command:
                return int(status.read_text().rpartition(") ")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return 0


def wait_until(process: subprocess.Popen[str], met: Callable[[], int]) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := met()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return found


def status(folder: Path) -> list[str]:
    path = folder / "sweep.json"
    return [run["status"] for run in files.read_json(path)["runs"]] if path.exists() else []


def test_eight_runs_equal_those_of_two_local_jobs_despite_a_killed_worker_and_an_interruption(tmp_path: Path) -> None:
    recipe = write_sweep(tmp_path)
    local = start(recipe, "local")
    assert local.wait() == 0, local.communicate()
    first = start(recipe, "ray", "--on", "ray")
    os.kill(wait_until(first, lambda: worker_of(tmp_path / "ray" / RUNS[0])), signal.SIGKILL)
    wait_until(first, lambda: status(tmp_path / "ray").count("finished") >= 3)
    first.send_signal(signal.SIGTERM)
    _, messages = first.communicate()
    assert first.returncode in {143, -signal.SIGTERM}, messages  # a shell shows 143 for both
    unfinished = [name for name, each in zip(RUNS, status(tmp_path / "ray"), strict=True) if each != "finished"]
    assert 2 <= len(unfinished) <= 5 and "Traceback" not in messages
    second = start(recipe, "ray", "--on", "ray")
    pages, messages = second.communicate()
    assert second.returncode == 0, messages
    assert pages.split()[-4:] == [f"ray/compare.{ending}" for ending in ("html", "md", "tex", "csv")]
    assert re.findall(r"^(\S+): started", messages, re.MULTILINE) == unfinished
    for name in RUNS:
        ours, expected = (remains(tmp_path / where / name) for where in ("ray", "local"))
        for held in (ours, expected):
            for changing in ("log.txt", "recipe.yaml", "report.html"):  # a second start, and the name of the folder
                held.pop(changing, None)
        assert ours == expected and "model/model.safetensors" in ours, name
