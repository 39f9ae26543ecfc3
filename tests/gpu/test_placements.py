"""The calculated memory of the paper's pairs: the page has the table that the script prints."""

from pathlib import Path

import pytest

from benchmarks import placements

PAGE = Path(__file__).parents[2] / "docs/gpu.md"


def test_the_page_has_the_calculated_table() -> None:
    table = placements.table()
    assert table in PAGE.read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 2 + 3 * 3  # two variants of all weights, three of adapters


@pytest.mark.parametrize("pair", placements.PAIRS)
def test_the_recipe_states_placement_precision_and_memory(pair: str) -> None:
    name = placements.PAIRS[pair][0]
    text = (placements.RECIPES / f"{'opt' if name == 'table1-opt' else name}.yaml").read_text(encoding="utf-8")
    assert placements.statement(pair) in text


def test_sharding_divides_weights_and_optimiser_state() -> None:
    name, teacher, student = placements.PAIRS["GPT-2 1.5B -> 0.1B"]
    run = placements.recipe(name)
    whole, part = (placements.memory(run, (teacher, student), 40 * 10**9, sharded=sharded).parts for sharded in (False, True))
    for name in ("student", "gradients and optimiser"):
        assert part[name] == whole[name] // placements.GPUS
    assert part["teacher"] == whole["teacher"] and part["gathered"] > whole["gathered"] == 0
