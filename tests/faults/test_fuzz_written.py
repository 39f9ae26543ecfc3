"""Whatever stands in a file that redistill writes and a stranger has changed: it is read, or refused in one typed line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redistill.config.run import load_config
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report, summary_table
from redistill.runs.templates import tokens_of
from redistill.storage import files
from tests.faults.noise import fuzzed, read_or_refused, written_json
from tests.reports.fabricated import write_method, write_run


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, a sweep and a checkpoint as they should be."""
    folder = tmp_path_factory.mktemp("written")
    write_run(folder / "run", "mine")
    scores = {"toy": {10: [1.0, 2.0, 3.0], 20: [2.0, 3.0, 4.0]}}
    for name in ("a", "b"):
        write_method(folder / "sweep" / name, scores, name)
    runs = [{"label": name, "seed": 10, "folder": name} for name in ("a", "b")]
    files.write_json(
        folder / "sweep" / "sweep.json",
        {"schema": 1, "name": "s", "baseline": "a", "published": [], "groups": {}, "runs": runs},
    )
    return folder


def read_with(path: Path, tree: Any, *reads: Callable[[], Any]) -> None:
    """Every reader has its way with the file as `tree`, which then is again what it was."""
    before = path.read_bytes()
    try:
        path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8", errors="replace")
        for read in reads:
            read_or_refused(read)
    finally:
        path.write_bytes(before)


def description(path: Path) -> st.SearchStrategy[str]:
    """A JSON file of redistill's with some of it changed, any value, or what is no JSON."""
    return written_json(json.loads(path.read_text(encoding="utf-8")))


@given(st.data())
@fuzzed("run.json")
def test_any_description_of_a_run(written: Path, data: st.DataObject) -> None:
    run = written / "run"
    tree = data.draw(description(run / "run.json"))
    recipe = (lambda: load_config(run / "run.json"), lambda: tokens_of(str(run)))
    read_with(run / "run.json", tree, lambda: build_report(run), lambda: summary_table(run), *recipe)


@given(st.data())
@fuzzed("run.json of a compared run")
def test_any_description_of_a_run_that_is_compared(written: Path, data: st.DataObject) -> None:
    path = written / "sweep" / "b" / "run.json"
    outputs = [written / f"c{ending}" for ending in (".html", ".md", ".tex", ".csv")]
    read_with(path, data.draw(description(path)), lambda: build_comparison([written / "sweep"], outputs))


@given(st.data(), st.sampled_from(["run/scores.json", "run/teacher/scores.json", "sweep/b/scores.json"]))
@fuzzed("scores.json")
def test_any_scores(written: Path, data: st.DataObject, name: str) -> None:
    tree, outputs = data.draw(description(written / name)), [written / "c.html", written / "c.csv"]
    read_with(
        written / name, tree, lambda: build_report(written / "run"), lambda: build_comparison([written / "sweep"], outputs)
    )


@given(st.data())
@fuzzed("sweep.json")
def test_any_list_of_runs(written: Path, data: st.DataObject) -> None:
    path = written / "sweep" / "sweep.json"
    read_with(path, data.draw(description(path)), lambda: build_comparison([written / "sweep"], [written / "c.md"]))


REVISION = {
    "step": 1,
    "sample": 2,
    "position": 3,
    "kl": 0.5,
    "prompt": "a",
    "kept": "b",
    "student_token": "c",
    "teacher_token": "d",
}
UPDATE = {"kind": "train", "step": 1, "loss": 2.5, "learning_rate": 0.1, "origin": {"student": 3, "dataset": 5}}
LOGGED = [
    UPDATE,
    {"kind": "validation", "step": 5, "cross_entropy": 2.5, "rouge_l": 20.0},
    {"kind": "event", "step": 2, "event": "loss_spike", "text": "a spike", "samples": [1]},
    {**REVISION, "student_tail": "e", "new_tail": "f"},
]


@given(
    st.lists(st.sampled_from(LOGGED).flatmap(written_json), max_size=5).map("\n".join),
    st.sampled_from(["metrics", "revisions"]),
)
@fuzzed("logs of a run")
def test_any_log_of_a_run(written: Path, text: str, name: str) -> None:
    path = written / "run" / f"{name}.jsonl"
    path.touch()
    read_with(path, f"{text}\n", lambda: build_report(written / "run"))


@given(st.data())
@fuzzed("answers of a run")
def test_any_answers_of_a_run(written: Path, data: st.DataObject) -> None:
    path = written / data.draw(st.sampled_from(["run/responses/dolly-seed10.jsonl", "sweep/b/responses/toy-seed10.jsonl"]))
    lines = path.read_text().splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    lines[number] = data.draw(written_json(json.loads(lines[number])))
    outputs = [written / "c.html", written / "c.csv"]
    read_with(
        path, "\n".join(lines), lambda: build_report(written / "run"), lambda: build_comparison([written / "sweep"], outputs)
    )
