"""Sweep recipes: their runs, and errors with field and remedy."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill.config.methods import METHODS
from redistill.config.run import load_config
from redistill.errors import ConfigError
from redistill.losses.divergences import ForwardKL
from redistill.runs.sweep import plan_sweep
from redistill.runs.sweep_recipe import Cell, Sweep, cells, merged, read_sweep
from redistill.storage.packaged import packaged

MINIMAL: dict[str, Any] = {"name": "table", "rows": {"sft": {"method": "sft"}, "mgsr": {"method": "mgsr"}}}


def write(folder: Path, tree: Any, name: str = "sweep.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder / name


def expanded(folder: Path, world: dict[str, Any] | None = None, **tree: Any) -> list[Cell]:
    return list(cells(read_sweep(write(folder, {**MINIMAL, **tree})), world))


def test_every_row_runs_with_every_seed(tmp_path: Path) -> None:
    found = expanded(tmp_path, seeds=[1, 2])
    assert [(cell.label, cell.seed) for cell in found] == [("sft", 1), ("sft", 2), ("mgsr", 1), ("mgsr", 2)]
    assert [cell.tree["seed"] for cell in found] == [1, 2, 1, 2]
    assert [cell.tree["name"] for cell in found] == ["sft-seed1", "sft-seed2", "mgsr-seed1", "mgsr-seed2"]


def test_rows_are_merged_over_the_base_and_the_base_over_the_world(tmp_path: Path) -> None:
    world = {"training": {"updates": 1, "batch_size": 1, "keep": 1}, "name": "world"}
    base = {"training": {"batch_size": 2, "keep": 2}, "seed": 99}
    rows = {"kd": {"method": "kd", "training": {"keep": 3}}}
    (cell,) = expanded(tmp_path, world, base=base, rows=rows, seeds=[5])
    assert cell.tree == {
        "training": {"updates": 1, "batch_size": 2, "keep": 3},
        "name": "kd-seed5",
        "seed": 5,
        "method": "kd",
    }


def test_policy_and_objective_replace_as_a_whole() -> None:
    under = {"policy": {"kind": "mixed", "student_fraction": 0.3}, "objective": {"span_weight": 1.0}}
    assert merged(under, {"policy": {"kind": "revised"}}) == {"policy": {"kind": "revised"}, "objective": {"span_weight": 1.0}}


def test_dotted_keys_are_overrides(tmp_path: Path) -> None:
    rows = {"a": {"method": "mgsr", "objective.span_weight": 0, "data.tests": {"x": None}, "optimiser.learning_rate": "1e-3"}}
    (cell,) = expanded(tmp_path, rows=rows, seeds=[1])
    assert set(cell.tree) == {"method", "name", "seed"}
    assert dict(cell.overrides) == {"objective.span_weight": 0, "data.tests": {"x": None}, "optimiser.learning_rate": "1e-3"}


def test_the_base_may_be_the_path_of_a_recipe(tmp_path: Path) -> None:
    write(tmp_path, {"method": "kd", "training": {"updates": 7}}, "base.yaml")
    (cell,) = expanded(tmp_path, base="base.yaml", rows={"a": {}}, seeds=[1])
    assert cell.tree["training"] == {"updates": 7}


def test_without_groups_there_is_one_table_of_all_rows(tmp_path: Path) -> None:
    sweep = read_sweep(write(tmp_path, {**MINIMAL, "published": "table1-gpt2"}))
    (table,) = sweep.tables.values()
    assert (list(sweep.tables), table.rows, table.baseline) == (["compare"], ("sft", "mgsr"), "sft")
    assert table.published == ("table1-gpt2",)


def test_a_group_has_its_own_baseline_else_the_sweeps_else_its_first_row(tmp_path: Path) -> None:
    groups = {
        "a": {"rows": ["x", "y"], "baseline": "x", "published": ["table2"]},
        "b": {"rows": ["x", "y"]},
        "c": {"rows": ["z", "x"]},
    }
    tree = {"name": "s", "rows": {"x": {}, "y": {}, "z": {}}, "baseline": "y", "groups": groups, "published": "table1-opt"}
    tables = read_sweep(write(tmp_path, tree)).tables
    assert {name: (table.baseline, table.published) for name, table in tables.items()} == {
        "compare-a": ("x", ("table2",)),
        "compare-b": ("y", ("table1-opt",)),
        "compare-c": ("z", ("table1-opt",)),
    }


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"seed": 3}, "seed: no such section; did you mean 'seeds'?"),
    "no rows": ({"rows": {}}, "rows: empty; must have at least one row"),
    "an empty row": ({"rows": {"sft": None}}, "rows.sft = None: must be a mapping"),
    "a label that is no file name": ({"rows": {"a/b": {}}}, "rows: 'a/b': must consist of letters, digits, '.', '_' and '-'"),
    "a name that leaves the folder": ({"name": "../x"}, "name: '../x': must consist of letters"),
    "a key that is no text": ({"rows": {"a": {1: 2}}}, "rows.a: 1: must be names joined by dots"),
    "a key with a comment": ({"rows": {"a": {"out=x #.y": 1}}}, "rows.a: 'out=x #.y': must be names joined by dots"),
    "a key with a line feed": ({"rows": {"a": {"out\n": 1}}}, "contains a line feed"),
    "the folder by a dotted key": ({"rows": {"a": {"out.kind": "x"}}}, "rows.a.out.kind: the sweep sets it"),
    "a seed in a row": ({"rows": {"a": {"seed": 3}}}, "rows.a.seed: the sweep sets it; remove it from the row"),
    "a seed twice": ({"seeds": [1, 1]}, "seeds = [1, 1]: must have at least one seed and no duplicates"),
    "no seed": ({"seeds": []}, "seeds = []: must have at least one seed"),
    "an unknown baseline": ({"baseline": "kd"}, "baseline: no row 'kd'; the rows are sft, mgsr"),
    "an unknown row in a group": ({"groups": {"a": {"rows": ["kd"]}}}, "groups.a.rows: no row 'kd'; the rows are sft, mgsr"),
    "a group's baseline elsewhere": (
        {"groups": {"a": {"rows": ["sft"], "baseline": "mgsr"}}},
        "groups.a.baseline: no row 'mgsr'; the rows are sft",
    ),
    "no such table of the paper": (
        {"published": "table9"},
        "published: the paper has no table 'table9'; choose from table1-gpt2",
    ),
    "an unknown world": ({"world": "real"}, "world = 'real': must be 'toy'"),
    "a base that is not there": ({"base": "none.yaml"}, "No such file or directory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_invalid_sweep_is_rejected_with_the_field(tmp_path: Path, case: str) -> None:
    changes, said = REFUSED[case]
    path = write(tmp_path, {**MINIMAL, **changes})
    with pytest.raises(ConfigError) as error:
        read_sweep(path)
    assert said in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_sweep_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory; give the path of a recipe"):
        read_sweep(tmp_path / "none.yaml")


def test_the_page_of_sweeps_has_every_field() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert named == [field.name for field in dataclasses.fields(Sweep)]


# --- the recipes --------------------------------------------------------------------------------------------------------

RECIPES = packaged("recipes")
METHODS_OF_TABLE_1 = ["sft", "kd", "seqkd", "imitkd", "gkd", "minillm", "distillm", "mgsr", "mgsr-robust"]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("table*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_recipe_is_valid(path: Path) -> None:
    made = plan_sweep(path)
    assert made.sweep.name == path.stem
    assert all(entry.run.data.tests for entry in made.entries)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("table*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_recipe_given_to_run_is_reported_as_such(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rows: this is a sweep, .* `redistill sweep`, .*`redistill estimate --row LABEL`"):
        load_config(path)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("table1-*.yaml")), ids=lambda path: path.stem)
def test_table_1_has_a_row_for_every_method(path: Path) -> None:
    entries = plan_sweep(path).entries
    assert list(dict.fromkeys(entry.run.method for entry in entries)) == METHODS_OF_TABLE_1
    assert len({entry.run.folder for entry in entries}) == len(entries)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("table2*.yaml")), ids=lambda path: path.stem)
def test_table_2_adds_one_part_at_a_time(path: Path) -> None:
    rows = {entry.label: entry.run.resolved_method for entry in plan_sweep(path).entries}
    none, scrg, dac, span, *robust = rows.values()
    assert none.objective == scrg.objective and none.policy != scrg.policy
    assert scrg.policy == dac.policy == span.policy == METHODS["mgsr"].policy
    assert scrg.objective == dataclasses.replace(dac.objective, divergence=ForwardKL())
    assert dac.objective == dataclasses.replace(METHODS["mgsr"].objective, span_weight=0.0)
    assert span.objective == METHODS["mgsr"].objective
    if robust:  # the toy table has two rows more
        on_revised, on_mixed = robust
        assert on_revised.policy == scrg.policy and on_revised.objective == METHODS["mgsr-robust"].objective
        assert on_mixed.policy == none.policy
        assert on_mixed.objective == dataclasses.replace(on_revised.objective, span_weight=0.0)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("table3*.yaml")), ids=lambda path: path.stem)
def test_table_3_changes_one_part_per_group_and_shares_the_mgsr_run(path: Path) -> None:
    made = plan_sweep(path)
    rows = {entry.label: entry.run.resolved_method for entry in made.entries}
    mgsr = METHODS["mgsr"]
    groups = made.sweep.groups
    assert all(rows[label].objective == mgsr.objective for label in groups["3a"].rows)
    assert all(rows[label].policy == mgsr.policy for name in ("3b", "3c") for label in groups[name].rows)
    for label in (*groups["3b"].rows, *groups["3c"].rows):
        assert dataclasses.replace(rows[label].objective, divergence=mgsr.objective.divergence) == mgsr.objective
    assert all(rows[group.baseline] == mgsr for group in groups.values() if group.baseline)
    assert len({entry.run.folder for entry in made.entries}) == 14 * len(made.sweep.seeds)
