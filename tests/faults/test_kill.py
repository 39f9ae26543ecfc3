"""kill -9 at any instant, half of them inside of a save: the same call again ends as if nothing had been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from redistill.config.run import encode_run
from redistill.storage import files
from tests.faults import forked
from tests.faults.counts import trials
from tests.faults.forked import Instant
from tests.faults.remains import remains
from tests.worlds import GPT2, tiny_run

WITH_DROPOUT = {**GPT2, "initializer_range": 0.15, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
POLICY = {"kind": "adaptive", "threshold": 0.9, "capacity": 4, "source": {"kind": "revised"}}  # with a replay buffer
TRAINING = {"updates": 4, "batch_size": 4, "micro_batch_size": 2, "save_every": 1, "evaluate_every": 2, "keep": 2}
KILLED, NO_SPACE, TRY_AGAIN = -9, 28, 75
LAST = 0.98  # a profiled run may have a few calls more or less than the one that was counted


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Makes the recipe of a run with a folder of its own; all runs are equal but for that."""
    folder = tmp_path_factory.mktemp("kill")

    def make(out: str) -> tuple[Path, Path]:
        config = tiny_run(folder, config=WITH_DROPOUT, out=out, policy=POLICY, training=TRAINING)
        recipe = folder / f"{out}.yaml"
        recipe.write_text(yaml.safe_dump(encode_run(config)), encoding="utf-8")
        return recipe, config.folder

    return make


@pytest.fixture(scope="module")
def untouched(world: Callable[[str], tuple[Path, Path]]) -> dict[str, Any]:
    """What the run leaves that nothing interrupts."""
    recipe, folder = world("untouched")
    assert forked.run(recipe) == 0, recipe.with_suffix(".log").read_text()
    assert any(line["kind"] == "train" and "replay" in line["origin"] for line in files.read_lines(folder / "metrics.jsonl"))
    return remains(folder)


@pytest.fixture(scope="module")
def totals(world: Callable[[str], tuple[Path, Path]]) -> dict[str, int]:
    """How many instants of each kind such a run has."""
    found = {}
    for kind in ("save", "commit", "write", "call"):
        recipe, folder = world(f"counted-{kind}")
        assert forked.run(recipe, Instant(kind), count_to=folder.with_suffix(".count")) == 0
        found[kind] = int(folder.with_suffix(".count").read_text())
    return found


def numbers(kind: str, total: int, count: int) -> list[int]:
    """Random instants, the same in every call."""
    seed = ("save", "commit", "write", "call").index(kind)
    return sorted(int(n) for n in 1 + np.random.default_rng(seed).choice(int(LAST * total), size=count, replace=False))


@pytest.mark.parametrize(("kind", "quick", "whole"), [("save", 1, 13), ("commit", 1, 12), ("call", 2, 25)])
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    kind: Any,
    quick: int,
    whole: int,
    world: Callable[[str], tuple[Path, Path]],
    untouched: dict[str, Any],
    totals: dict[str, int],
) -> None:
    for number in numbers(kind, totals[kind], trials(quick, whole)):
        recipe, folder = world(f"{kind}-{number}")
        assert forked.run(recipe, Instant(kind, number)) == KILLED, number
        assert forked.run(recipe) == 0, (number, recipe.with_suffix(".log").read_text())
        assert remains(folder) == untouched, number


def test_a_run_whose_disk_is_full_says_so_and_ends_like_others_once_it_is_not(
    world: Callable[[str], tuple[Path, Path]], untouched: dict[str, Any], totals: dict[str, int]
) -> None:
    for number in numbers("write", totals["write"], trials(2, 25)):
        recipe, folder = world(f"full-{number}")
        assert forked.run(recipe, Instant("write", number, NO_SPACE)) == TRY_AGAIN, number
        last_line = recipe.with_suffix(".log").read_text().splitlines()[-1]
        assert str(folder) in last_line and "No space left on device" in last_line, last_line
        assert forked.run(recipe) == 0, (number, recipe.with_suffix(".log").read_text())
        assert remains(folder) == untouched, number
