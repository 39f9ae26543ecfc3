"""Whatever stands in a file that redistill writes and a stranger has changed: it is read, or refused in one typed line."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from redistill.config.run import load_config
from redistill.reports.compare import build_comparison
from redistill.reports.report import build_report, summary_table
from redistill.runs.run import tokens_of
from redistill.storage import files
from redistill.training import checkpoint
from tests.faults.noise import VALUES, changed, read_or_refused, tried
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


@st.composite
def description(draw: st.DrawFn, path: Path) -> Any:
    """A JSON file of redistill's with some of it changed, any value, or what is no JSON."""
    held = json.loads(path.read_text(encoding="utf-8"))
    noise = st.one_of(
        VALUES, st.text(max_size=20), st.sampled_from(["[" * 50_000, "9" * 5000, '{"schema": 1', "", '{"schema": 2}'])
    )
    return draw(st.one_of(changed(held), changed(held), changed(held), noise))


@given(st.data())
@tried(15, 600)
def test_any_description_of_a_run(written: Path, data: st.DataObject) -> None:
    run = written / "run"
    tree = data.draw(description(run / "run.json"))
    recipe = (lambda: load_config(run / "run.json"), lambda: tokens_of(str(run)))
    read_with(run / "run.json", tree, lambda: build_report(run), lambda: summary_table(run), *recipe)


@given(st.data())
@tried(15, 400)
def test_any_description_of_a_run_that_is_compared(written: Path, data: st.DataObject) -> None:
    path = written / "sweep" / "b" / "run.json"
    outputs = [written / f"c{ending}" for ending in (".html", ".md", ".tex", ".csv")]
    read_with(path, data.draw(description(path)), lambda: build_comparison([written / "sweep"], outputs))


@given(st.data(), st.sampled_from(["run/scores.json", "run/teacher/scores.json", "sweep/b/scores.json"]))
@tried(15, 500)
def test_any_scores(written: Path, data: st.DataObject, name: str) -> None:
    tree, outputs = data.draw(description(written / name)), [written / "c.html", written / "c.csv"]
    read_with(
        written / name, tree, lambda: build_report(written / "run"), lambda: build_comparison([written / "sweep"], outputs)
    )


@given(st.data())
@tried(15, 250)
def test_any_list_of_runs(written: Path, data: st.DataObject) -> None:
    path = written / "sweep" / "sweep.json"
    read_with(path, data.draw(description(path)), lambda: build_comparison([written / "sweep"], [written / "c.md"]))


@given(st.data(), st.sampled_from([checkpoint.MANIFEST, checkpoint.STATE, checkpoint.IDENTITY]))
@tried(15, 250)
def test_any_checkpoint_even_one_that_is_sealed_anew(tmp_path: Path, data: st.DataObject, name: str) -> None:
    mine = {"training data": "f00d"}
    checkpoint.write_identity(tmp_path, mine)
    folder = checkpoint.save(tmp_path, 3, tensors={"model": {"w": torch.ones(2)}}, state={"a": 1}, keep=1)
    path = tmp_path / name if name == checkpoint.IDENTITY else folder / name
    try:
        write_sealed(path, data.draw(description(path)), folder)
        read_or_refused(lambda: checkpoint.load(tmp_path))
        read_or_refused(lambda: checkpoint.check_identity(tmp_path, mine))
    finally:
        (tmp_path / checkpoint.IDENTITY).unlink()


def write_sealed(path: Path, tree: Any, folder: Path) -> None:
    """`tree` as a file of a checkpoint, with every hash as it should be, as whoever can write files would have it."""
    if path.name == checkpoint.IDENTITY and isinstance(tree, dict) and "run" in tree:
        told = json.dumps(tree["run"], indent=2, ensure_ascii=False) + "\n"
        tree["sha256"] = hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8", errors="replace")
    if path.name == checkpoint.STATE:
        held = json.loads((folder / checkpoint.MANIFEST).read_text())
        held["files"][path.name] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
        (folder / checkpoint.MANIFEST).write_text(json.dumps(held))
    sealed = hashlib.sha256((folder / checkpoint.MANIFEST).read_bytes()).hexdigest()
    (folder / checkpoint.SEAL).write_text(f"{sealed}  {checkpoint.MANIFEST}\n")
