"""kill -9 at any instant of a longer run: the same call again ends as an extension that nothing interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml

from redistill.config.run import encode_run
from redistill.storage import files
from tests.faults import forked
from tests.faults.counts import trials
from tests.faults.forked import Instant
from tests.faults.instants import spread
from tests.faults.remains import remains
from tests.worlds import GPT2, tiny_run

POLICY = {"kind": "adaptive", "threshold": 0.9, "capacity": 4, "source": {"kind": "student_generated"}}
TRAINING = {"batch_size": 4, "micro_batch_size": 2, "save_every": 1, "evaluate_every": 2, "keep": 2}
SHORT, LONG = 2, 5
KILLED = -9
LAST = 0.98  # a profiled run may have a few calls more or less than the one that was counted

World = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Makes a recipe of the longer run, and its folder with the finished shorter run."""
    folder = tmp_path_factory.mktemp("extension")

    def recipe(out: str, updates: int) -> tuple[Path, Path]:
        config = tiny_run(folder, "distillm", config=GPT2, out=out, policy=POLICY, training={**TRAINING, "updates": updates})
        path = folder / f"{out}-{updates}.yaml"
        path.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
        return path, config.folder

    path, finished = recipe("short", SHORT)
    assert forked.run(path) == 0, path.with_suffix(".log").read_text()

    def make(out: str) -> tuple[Path, Path]:
        path, run = recipe(out, LONG)
        shutil.copytree(finished, run)
        return path, run

    return make


@pytest.fixture(scope="module")
def undisturbed(world: World) -> dict[str, Any]:
    """The files of an extension that nothing interrupted."""
    recipe, folder = world("undisturbed")
    short = remains(folder)
    assert forked.run(recipe) == 0, recipe.with_suffix(".log").read_text()
    found = remains(folder)
    assert {name: found[f"step-{SHORT}/{name}"] for name in short if f"step-{SHORT}/{name}" in found}.keys() >= {
        "run.json",
        "scores.json",
        "model/model.safetensors",
        "responses/toy-seed10.jsonl",
    }
    assert [line["event"] for line in files.read_lines(folder / "metrics.jsonl") if line["kind"] == "event"] == ["extended"]
    return found


def instants(world: World, kind: Literal["save", "commit", "write", "call"], count: int) -> list[int]:
    """Instants of an extension: the first ones of each kind, in which the results are moved, and ones spread over the rest."""
    recipe, folder = world(f"counted-{kind}")
    counted = folder.with_suffix(f".{kind}")
    assert forked.run(recipe, Instant(kind), count_to=counted) == 0
    total = int(LAST * int(counted.read_text()))
    moved = (
        np.random.default_rng(count).choice(range(1, min(60, total)), size=count // 2, replace=False) if kind == "write" else []
    )
    return sorted({*map(int, moved), *spread(total, count - len(moved))})


@pytest.mark.parametrize(("kind", "quick", "whole"), [("write", 4, 40), ("commit", 1, 10), ("call", 2, 20)])
def test_an_extension_that_was_killed_ends_as_one_that_was_not(
    kind: Any, quick: int, whole: int, world: World, undisturbed: dict[str, Any]
) -> None:
    for number in instants(world, kind, trials(quick, whole)):
        recipe, folder = world(f"{kind}-{number}")
        assert forked.run(recipe, Instant(kind, number)) == KILLED, number
        assert forked.run(recipe) == 0, (number, recipe.with_suffix(".log").read_text())
        assert remains(folder) == undisturbed, number


def test_after_a_kill_the_shorter_run_can_be_repeated_and_then_extended(world: World, undisturbed: dict[str, Any]) -> None:
    """The instant is before run.json names the new length: its model is in `step-N` already, and its scores are not."""
    recipe, folder = world("repeated")
    short = recipe.with_name(f"{folder.name}-{SHORT}.yaml")
    short.write_text(recipe.read_text().replace(f"updates: {LONG}", f"updates: {SHORT}"), encoding="utf-8")
    before = remains(folder)
    kept = folder / f"step-{SHORT}"
    shutil.copytree(folder, kept, ignore=shutil.ignore_patterns("checkpoints", "model", "revisions.jsonl", kept.name))
    (folder / "model").rename(kept / "model")
    (folder / "report.html").unlink(missing_ok=True)
    (folder / "scores.json").unlink()
    assert forked.run(short) == 0, short.with_suffix(".log").read_text()
    assert {name: remains(folder)[name] for name in before} == before
    assert forked.run(recipe) == 0
    assert remains(folder) == undisturbed
