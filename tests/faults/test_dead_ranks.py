"""Several processes: where one fails, is killed or stands still, none is left waiting."""

import time
from pathlib import Path

import pytest

from redistill.processes import watch as ranks
from redistill.storage import files
from tests.faults import ranks_job
from tests.faults.counts import WHOLE, trials
from tests.faults.ranks_job import recipe
from tests.faults.test_signals import assert_same, outcome, updates_logged

pytestmark = pytest.mark.distributed
MINUTE_S = 60.0
PLACES = [  # what lies between two parts that are watched themselves, training, data preparation, evaluation
    "_evaluate_student",
    "accumulate_gradients",
    "tokenize_training",
    "ResponseFiles.complete",
]
FATES = list(ranks_job.FATES)
# A trial of the quick subset need not wait as long for heartbeats as a job does.
WAITS = {} if WHOLE else {"REDISTILL_SILENCE_S": "8"}
SHUTDOWN_S = 5 if WHOLE else 3  # with its own 30, torchrun alone takes half of the minute to kill what is stopped


@pytest.mark.parametrize(
    ("fate", "place"),
    [(fate, PLACES[(2 * number + turn) % 4]) for turn in range(trials(1, 3)) for number, fate in enumerate(FATES)],
)
def test_the_job_ends_within_a_minute_and_names_the_guilty_process_last(tmp_path: Path, fate: str, place: str) -> None:
    done = ranks_job.torchrun("dead", recipe(tmp_path), fate, place, shutdown_s=SHUTDOWN_S, **WAITS)
    passed = time.time() - files.read_json(tmp_path / "fate.json")
    assert done.returncode != 0 and (passed < MINUTE_S or not WHOLE), passed
    assert "[rank0]: Traceback" not in done.stderr, "a traceback of what only followed"
    last = done.stderr.rpartition("Root Cause")[2]
    if fate == "raises":
        assert "rank      : 1 " in last and "TypeError: planted" in last, done.stderr[-4000:]
    elif fate == "is killed":
        assert "rank      : 1 " in last and "Signal 9 (SIGKILL)" in last, done.stderr[-4000:]
    else:
        assert "process 1 of 2 has sent no heartbeat for" in last, done.stderr[-4000:]


@pytest.mark.faults
@pytest.mark.parametrize("placement", ["auto", "sharded"])
@pytest.mark.parametrize("place", ["generate", "_evaluate_student", "save_checkpoint"])
def test_the_same_command_resumes_after_a_rank_was_killed(tmp_path: Path, place: str, placement: str) -> None:
    path = recipe(tmp_path, placement)
    done = ranks_job.torchrun("dead", path, "is killed", place, shutdown_s=SHUTDOWN_S, **WAITS)
    passed = time.time() - files.read_json(tmp_path / "fate.json")
    assert done.returncode != 0 and (passed < MINUTE_S or not WHOLE), passed
    for out in ("run", "straight"):
        again = ranks_job.torchrun("complete", path, out, shutdown_s=SHUTDOWN_S)
        assert again.returncode == 0, again.stderr[-4000:]
    assert updates_logged(tmp_path / "run") == ranks_job.UPDATES
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "straight"))


def test_what_fails_alone_fails_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(TypeError, match="mine"), ranks.watched():
        raise TypeError("mine")
