"""SIGTERM to one process of two: both stop at the same step, none waits, and the run ends as if nothing had been."""

from pathlib import Path

import pytest

from redistill.storage import files
from tests.faults.counts import WHOLE, trials
from tests.faults.ranks_job import UPDATES, recipe, torchrun
from tests.faults.test_signals import assert_same, outcome, updates_logged

pytestmark = pytest.mark.distributed
HANG_S = 30.0


def test_both_stop_when_one_is_told_to_and_go_on_to_the_same_end(tmp_path: Path) -> None:
    count = trials(1, 10)
    done = torchrun("stopped", recipe(tmp_path), count, shutdown_s=30)
    assert done.returncode == 0, done.stderr[-4000:]
    for trial in range(count):
        sent = files.read_json(tmp_path / f"sent-{trial}.json")
        ended = [files.read_json(tmp_path / f"ended-{trial}-{rank}.json") for rank in (0, 1)]
        assert [each["code"] for each in ended] == [143, 143], ended
        assert len({each[name] for each in ended for name in ("step", "saved")}) == 1, (
            f"both at one step, and that saved: {ended}"
        )
        assert max(each["time"] for each in ended) - sent < HANG_S or not WHOLE, ended
        out = tmp_path / f"trial-{trial}"
        assert updates_logged(out) == UPDATES, "no update was made twice"
        assert_same(outcome(out), outcome(tmp_path / "straight"))
