"""Logs of a run are read in one pass and with bounded memory."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from redistill.errors import CheckpointError
from redistill.reports.folders import log_lines
from redistill.reports.logs import CHUNK_LINES, MAX_POSITION, read_log, read_revisions
from redistill.reports.report import build_report
from redistill.reports.thinning import MAX_POINTS
from tests.reports.fabricated import metrics, revision, write_lines, write_run

NAMES = ("loss", "grad_norm", "kept_classes")


def lines_of(updates: int) -> Iterator[dict]:
    """A log that is generated on the fly: an update a line, with validations and events."""
    for step in range(1, updates + 1):
        yield {"kind": "train", "step": step, "loss": 1 / step, "grad_norm": None, "origin": {"student": 3, "dataset": 1}}
        if step % 100 == 0:
            yield {"kind": "validation", "step": step, "rouge_l": step / updates}
        if step % 1000 == 0:
            yield {"kind": "event", "step": step, "event": "loss_spike", "text": f"step {step}: a spike"}


def test_curves_have_the_values_of_their_lines() -> None:
    log = read_log(metrics(60), NAMES)
    assert list(log.train) == list(NAMES) and list(log.validation) == ["rouge_l", "cross_entropy", "kl"]
    bins = log.train["grad_norm"].bins()
    assert bins.steps.tolist() == [step for step in range(1, 61) if step != 7], "one update has no gradient norm"
    assert log.validation["rouge_l"].bins().means.tolist() == [21, 22, 23, 24, 25, 26]
    np.testing.assert_allclose(log.origins["revised"].bins().means, np.arange(1, 61) / 60)


def test_values_that_are_not_numbers_are_omitted() -> None:
    values = ["1.5", [2.0], {"a": 1}, None, True, 3, 10**400, -(10**400), 4.5]
    log = read_log([{"kind": "train", "step": step, "loss": value} for step, value in enumerate(values)], NAMES)
    bins = log.train["loss"].bins()
    assert (bins.steps.tolist(), bins.means.tolist()) == ([4, 5, 8], [1.0, 3.0, 4.5])
    assert not read_log([{"kind": "train", "step": "1", "loss": 1.0}, {"kind": "train", "loss": 1.0}], NAMES).train


def test_an_origin_that_appears_late_had_the_fraction_0_before() -> None:
    total, late = 3 * CHUNK_LINES, 2 * CHUNK_LINES + 5
    origins = [{"dataset": 1} if step < late else {"replay": 1} for step in range(total)]
    log = read_log([{"kind": "train", "step": step, "origin": origin} for step, origin in enumerate(origins)], NAMES)
    gold, replay = log.origins["dataset"].bins(), log.origins["replay"].bins()
    np.testing.assert_array_equal(gold.steps, replay.steps)
    np.testing.assert_allclose(gold.means + replay.means, 1.0)
    assert replay.counts @ replay.means == total - late and replay.means[0] == 0.0


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    peaks = []
    for updates in (20_000, 200_000):
        tracemalloc.start()
        log = read_log(lines_of(updates), NAMES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(log.train["loss"].bins().steps) <= MAX_POINTS and log.events.count == updates // 1000
    assert peaks[1] < 1.1 * peaks[0] and peaks[1] < 8e6, peaks


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_lines(path, lines_of(20_000))
    assert path.stat().st_size > 1.5e6
    tracemalloc.start()
    count = sum(1 for _ in log_lines(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_220 and peak < 3e5, peak


def test_a_damaged_line_is_an_error_and_a_torn_last_line_is_not(tmp_path: Path) -> None:
    path = tmp_path / "revisions.jsonl"
    path.write_text('{"step": 1}\n3\n{"step": 2}\n{"st')
    assert read_revisions(log_lines(path)).count == 2
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"revisions\.jsonl:2: not JSON .*; restore the file, or rerun the command"):
        read_revisions(log_lines(path))


# --- the page -----------------------------------------------------------------------------------------------------------


def event(step: int, name: str = "loss_spike") -> dict:
    return {"kind": "event", "step": step, "event": name, "text": f"step {step}: something <b>happened</b>"}


def test_the_page_lists_events_and_says_how_many_it_omits(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "run", updates=3)
    page = build_report(folder).read_text(encoding="utf-8")
    assert 'id="events"' not in page
    for count, omits in ((2, False), (500, True)):
        write_lines(folder / "metrics.jsonl", [*metrics(3), *map(event, range(1, count + 1)), event(4, "collapse")])
        page = build_report(folder).read_text(encoding="utf-8")
        assert f"1 × collapse, {count} × loss_spike" in page
        assert "step 1: something &lt;b&gt;happened" in page and "step 4: something" in page
        assert (f"20 of {count + 1} events" in page) is omits


def test_the_page_says_of_how_many_corrections_it_shows_some(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "run", updates=3)
    write_lines(folder / "revisions.jsonl", (revision(step) for step in range(1, 3001)))
    page = build_report(folder).read_text(encoding="utf-8")
    assert "8 of 3000 logged corrections" in page and "update 1 · sample 7" in page and "update 3000 · sample 21000" in page


def test_the_lines_of_a_log_may_be_any_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "run", updates=3)
    lines = [{"kind": "train"}, {"kind": "event"}, {"kind": ["train"]}, {"kind": "validation", "step": {}}, [], 3, None]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1 × None" in build_report(folder).read_text(encoding="utf-8")


def test_positions_of_all_corrections_are_counted() -> None:
    """Also of those that are not kept; damaged positions are omitted, and very late ones share a bin."""
    lines = [{"position": each} for each in (2, 2, 7, -1, "x", None, 1e300)]
    revisions = read_revisions([*lines, *({"position": 3} for _ in range(5000))])
    assert revisions.positions == {2: 2, 7: 1, MAX_POSITION: 1, 3: 5000} and revisions.count == 5007
