"""The calculated memory of the paper's pairs: the page has the table that the script prints."""

from pathlib import Path

import pytest

from benchmarks import placements

PAGE = Path(__file__).parents[2] / "docs/gpu.md"


def test_the_page_has_the_calculated_table() -> None:
    table = placements.table()
    assert table in PAGE.read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 2 + 3 * 4  # two variants of all weights, four of adapters


@pytest.mark.parametrize("pair", placements.PAIRS)
def test_the_recipe_states_placement_precision_and_memory(pair: str) -> None:
    name = placements.PAIRS[pair][0]
    text = (placements.RECIPES / f"{'opt' if name == 'table1-opt' else name}.yaml").read_text(encoding="utf-8")
    assert placements.statement(pair) in text


def test_each_pair_fits_on_40_gb_with_a_placement_of_the_table() -> None:
    """A pair that fits in its training phase only is not in the table as one that fits."""
    for pair in placements.PAIRS:
        assert any(row[0] == pair and row[-2].endswith(", fits") for row in placements.rows())
    replicated = ("bfloat16", "bfloat16", "auto")
    whole = next(row for row in placements.rows() if row[0].startswith("Llama 2") and row[2:5] == replicated)
    assert whole[-2].endswith("does not fit")
    for row in placements.rows():
        phases, largest = [float(size) for size in row[5:9]], float(row[9].partition(",")[0])
        assert abs(max(phases) - largest) <= 0.55
