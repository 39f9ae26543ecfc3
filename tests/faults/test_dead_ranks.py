"""Several processes: told to stop they stop together, and where one fails, is killed or stands still, none is left waiting."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import redistill
from redistill import files, ranks
from redistill.config import encode_run
from tests.faults import ranks_job
from tests.faults.counts import WHOLE, trials
from tests.faults.test_signals import UPDATES, WITH_DROPOUT, assert_same, outcome, updates_logged
from tests.worlds import tiny_run

pytestmark = pytest.mark.distributed
HANG_S = float(os.environ.get("REDISTILL_HANG_S", "600"))  # what hangs must end; a healthy job takes a part of it
SHUTDOWN_S = "30" if WHOLE else "5"  # how long torchrun waits for a process that it has told to end; 30 is its own
MINUTE_S = 60.0
BUFFERED = {"kind": "adaptive", "threshold": 0.9, "capacity": 4, "source": {"kind": "revised"}}
PLACES = ["tokenize_training", "accumulate_gradients", "Writer.responses"]  # of data preparation, training, evaluation
FATES = list(ranks_job.FATES)


def recipe(folder: Path) -> Path:
    settings = {"updates": UPDATES, "batch_size": 4, "micro_batch_size": 1, "evaluate_every": 2}
    config = tiny_run(folder, "mgsr", config=WITH_DROPOUT, policy=BUFFERED, training=settings)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
    return path


def torchrun(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Two processes of ranks_job.py."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--shutdown-timeout", SHUTDOWN_S, "-m", "tests.faults.ranks_job", *map(str, arguments)]
    root, package = Path(__file__).parents[2], Path(redistill.__file__).parents[1]
    paths = {"PYTHONPATH": f"{package}{os.pathsep}{root}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, **paths}
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=HANG_S, check=False)


def test_both_stop_when_one_is_told_to_and_go_on_to_the_same_end(tmp_path: Path) -> None:
    count = trials(2, 10)
    done = torchrun("stopped", recipe(tmp_path), count)
    assert done.returncode == 0, done.stderr[-4000:]
    for trial in range(count):
        told = [files.read_json(tmp_path / f"code-{trial}-{rank}.json") for rank in (0, 1)]
        assert [each["code"] for each in told] == [143, 143], told
        out = tmp_path / f"trial-{trial}"
        assert updates_logged(out) == UPDATES, "no update was made twice"
        assert_same(outcome(out), outcome(tmp_path / "straight"))


@pytest.mark.parametrize(
    ("fate", "place"),
    [(fate, PLACES[(number + turn) % 3]) for turn in range(trials(1, 3)) for number, fate in enumerate(FATES)],
)
def test_the_job_ends_within_a_minute_and_names_the_guilty_process_last(tmp_path: Path, fate: str, place: str) -> None:
    done = torchrun("dead", recipe(tmp_path), fate, place)
    passed = time.time() - files.read_json(tmp_path / "fate.json")
    assert done.returncode != 0 and (passed < MINUTE_S or not WHOLE), passed
    assert "[rank0]: Traceback" not in done.stderr, "a traceback of what only followed"
    last = done.stderr.rpartition("Root Cause")[2]
    if fate == "raises":
        assert "rank      : 1 " in last and "TypeError: planted" in last, done.stderr[-4000:]
    elif fate == "is killed":
        assert "rank      : 1 " in last and "Signal 9 (SIGKILL)" in last, done.stderr[-4000:]
    else:
        assert "process 1 of 2 has given no sign of life for" in last, done.stderr[-4000:]


def test_what_fails_alone_fails_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(TypeError, match="mine"), ranks.watched():
        raise TypeError("mine")
