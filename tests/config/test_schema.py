"""Schema numbers of recipes, and fields that were renamed."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from redistill import __version__
from redistill.config import schema
from redistill.config.run import load_config
from redistill.config.schema import SCHEMA
from redistill.errors import ConfigError
from redistill.runs.sweep_recipe import read_sweep

RECIPE: dict[str, Any] = {"name": "r", "student": {"model": "s"}, "teacher": {"model": "t"}}


def write(folder: Path, tree: Any, name: str = "recipe.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("number", [1, SCHEMA])
def test_a_recipe_with_a_known_schema_equals_that_without(tmp_path: Path, number: int) -> None:
    plain = load_config(write(tmp_path, RECIPE))
    assert load_config(write(tmp_path, {"schema": number, **RECIPE})) == plain
    assert load_config(write(tmp_path, RECIPE), [f"schema={number}"]) == plain


@pytest.mark.parametrize("tree", [RECIPE, {"name": "table", "rows": {"sft": {"method": "sft"}}}], ids=["run", "sweep"])
def test_a_recipe_of_a_later_schema_is_rejected_with_the_version_to_install(tmp_path: Path, tree: dict[str, Any]) -> None:
    path = write(tmp_path, {**tree, "schema": SCHEMA + 1})
    with pytest.raises(ConfigError) as caught:
        read_sweep(path) if "rows" in tree else load_config(path)
    install = f"redistill {__version__} reads schemas up to {SCHEMA}; install a version later than {__version__}"
    assert str(caught.value) == f"{path}: schema = {SCHEMA + 1}: {install}"


@pytest.mark.parametrize("number", [0, -1, 1.5, "two", True, None, [1]])
def test_an_invalid_schema_is_rejected(tmp_path: Path, number: Any) -> None:
    path = write(tmp_path, {**RECIPE, "schema": number})
    with pytest.raises(ConfigError, match=rf"recipe.yaml: schema = .*: must be a whole number from 1 to {SCHEMA}"):
        load_config(path)


def test_the_run_json_of_a_later_version_names_that_version(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    held = {"schema": SCHEMA + 1, "versions": {"redistill": "9.1.0"}, "config": RECIPE}
    path.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"run.json: schema = {SCHEMA + 1}: .*; install redistill '9.1.0', which wrote it"):
        load_config(path)


def test_a_renamed_field_is_an_error_that_names_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "RENAMED", {"training.steps": "training.updates", "optimizer": "optimiser"})
    expected = f"training.steps: was renamed to training.updates in schema {SCHEMA}; rename it"
    path = write(tmp_path, {**RECIPE, "training": {"steps": 3}})
    with pytest.raises(ConfigError, match=f"recipe.yaml: {expected}"):
        load_config(path)
    with pytest.raises(ConfigError, match=expected):
        load_config(write(tmp_path, RECIPE), ["training.steps=3"])
    with pytest.raises(ConfigError, match="optimizer: was renamed to optimiser"):
        load_config(write(tmp_path, {**RECIPE, "optimizer": {"learning_rate": 1e-3}}))
    assert load_config(write(tmp_path, {**RECIPE, "training": {"updates": 3}})).training.updates == 3
