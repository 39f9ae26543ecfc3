"""The JSON Schema of recipes: it accepts and rejects what the decoder accepts and rejects."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from redistill.cli.main import main
from redistill.config import decode as decoding
from redistill.config.described import descriptions, number_range
from redistill.config.json_schema import run_schema
from redistill.config.recipes import SCHEMA_FILES, SCHEMA_LINE, packaged_recipes
from redistill.config.run import NAMES, decode_run, encode_run, load_config
from redistill.errors import ConfigError
from redistill.runs.sweep_recipe import read_sweep, sweep_schema
from redistill.storage.packaged import packaged
from tests.configuration_page import Section, sections

SCHEMAS = {"run": run_schema(), "sweep": sweep_schema()}
VALIDATORS = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in SCHEMAS.items()}
RECIPES = packaged_recipes()
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.yaml"))
VALID = {"name": "r", "teacher": {"model": "t"}, "student": {"model": "s"}}


def faults(tree: Any, kind: str = "run") -> list[str]:
    """The dotted paths at which the schema rejects a recipe."""
    found = VALIDATORS[kind].iter_errors(tree)
    return [".".join(map(str, error.absolute_path)) for error in found]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_file_of_the_package_is_what_the_command_prints(kind, capsys):
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[kind])
    assert main(["config", "schema", *(["--sweep"] if kind == "sweep" else [])]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == SCHEMAS[kind]
    remedy = f"redistill config schema{' --sweep' if kind == 'sweep' else ''} > src/redistill/recipes/{SCHEMA_FILES[kind]}"
    assert (packaged("recipes") / SCHEMA_FILES[kind]).read_text(encoding="utf-8") == printed, remedy


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_recipe_of_the_package_names_its_schema_which_accepts_it(recipe):
    text = recipe.path.read_text(encoding="utf-8")
    assert text.startswith(f"{SCHEMA_LINE}{SCHEMA_FILES[recipe.kind]}\n# ")
    assert faults(yaml.safe_load(text), recipe.kind) == []
    if recipe.kind == "run":
        assert faults(encode_run(load_config(recipe.path))) == [], "with all defaults"


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_a_recipe_of_the_tests_is_accepted(path):
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert faults(tree, "sweep" if "rows" in tree else "run") == []


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": "fixed", "method": "kd"},
        {"objective": {"divergence": "fkl"}, "method": "kd"},
        {"objective": {"divergence": {"kind": "srkl", "alpha": "2e-1"}}, "method": "kd"},
        {"policy": {"kind": "mixed", "source": {"kind": "revised", "source": "student_generated"}}},
        {"training": {"updates": "3 epochs", "batch_size": "1e1"}, "optimiser": {"learning_rate": "5e-4", "betas": [0, 0.5]}},
        {"data": {"train": "a.jsonl", "tests": {"dolly": None, "b": "b.jsonl", "c": {"path": "c"}}}},
        {"data": {"train": ["a", {"path": "b", "columns": {"prompt": "q"}}]}, "schema": 2},
        {"teacher": {"kind": "cached", "path": "p"}, "method": "kd"},
        {"teacher": {"model": "t", "cache": "c", "cache_form": {"kind": "top_k", "k": 4}}, "method": "kd"},
        {"student": {"model": "teacher", "initialise": {"layers": [0, 1]}, "lora": None}},
        {"evaluation": {"decodings": [{"temperature": 0}], "seeds": [1, 2]}, "guards": {"spike_factor": 2}},
    ],
    ids=str,
)
def test_what_the_decoder_accepts_is_accepted(changes):
    decode_run(VALID | changes, "recipe")
    assert faults(VALID | changes) == []


def test_a_class_of_another_package_is_accepted_where_the_decoder_accepts_one():
    named = {"kind": "own:Hellinger", "anything": 1}
    assert faults(VALID | {"method": "own:METHOD", "policy": "own:P", "objective": {"divergence": named}}) == []
    assert faults(VALID | {"evaluation": named}) == ["evaluation"]


FAULTY: dict[str, dict[str, Any]] = {
    "name": {"name": 3},
    "method": {"method": "mgrs"},
    "trainig": {"trainig": {}},
    "training.update": {"training": {"update": 5}},
    "training.updates": {"training": {"updates": 0}},
    "training.batch_size": {"training": {"batch_size": 0}},
    "training.precision": {"training": {"precision": "fp16"}},
    "training.keep": {"training": {"keep": "many"}},
    "seed": {"seed": True},
    "placement": {"placement": "split"},
    "compat": {"compat": "minillm"},
    "teacher.dtype": {"teacher": {"model": "t", "dtype": "fp8"}},
    "teacher.path": {"teacher": {"kind": "cached", "path": 3}},
    "teacher.kind": {"teacher": {"kind": "remote", "model": "t"}},
    "teacher.finetune.learning_rate": {"teacher": {"model": "t", "finetune": {"learning_rate": 0}}},
    "student": {"student": "gpt2"},
    "student.lora.rank": {"student": {"model": "s", "lora": {"rank": 0}}},
    "student.initialise.layers": {"student": {"initialise": {"layers": "all"}}},
    "data.train": {"data": {"train": 3}},
    "data.validation_rows": {"data": {"validation_rows": 0}},
    "data.tokens.response_tokens": {"data": {"tokens": {"response_tokens": 0}}},
    "data.columns": {"data": {"columns": ["q"]}},
    "policy.kind": {"policy": {"kind": "student_generate"}},
    "policy.student_fraction": {"policy": {"kind": "mixed", "source": "student_generated", "student_fraction": 2}},
    "policy.source.temperature": {"policy": {"kind": "mixed", "source": {"kind": "student_generated", "temperature": 0}}},
    "objective.divergence.alpha": {"objective": {"divergence": {"kind": "skew_forward_kl", "alpha": 1.0}}},
    "objective.sft_weight": {"objective": {"sft_weight": -1}},
    "optimiser.betas[1]": {"optimiser": {"betas": [0.9, "high"]}},
    "optimiser.schedule": {"optimiser": {"schedule": "linear"}},
    "guards.spike_factor": {"guards": {"spike_factor": 1}},
    "evaluation.seeds[1]": {"evaluation": {"seeds": [1, "x"]}},
    "evaluation.top_p": {"evaluation": {"top_p": 0}},
    "tracking.to[0]": {"tracking": {"to": ["mlfow"]}},
    "schema": {"schema": 99},
}


@pytest.mark.parametrize("where", FAULTY)
def test_a_faulty_recipe_is_rejected_where_the_decoder_rejects_it(where):
    tree = VALID | FAULTY[where]
    with pytest.raises(ConfigError) as caught:
        decode_run(tree, "recipe")
    assert str(caught.value).startswith(f"recipe: {where}"), caught.value
    path = where.replace("[", ".").replace("]", "")
    (found,) = set(faults(tree))
    is_unknown = "no such" in str(caught.value) and "no such kind" not in str(caught.value)
    assert found == (path.rpartition(".")[0] if is_unknown and "method" not in path else path)


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"name": "s"}, ""),
        ({"name": "s", "rows": {}}, "rows"),
        ({"name": "s", "rows": {"a": {"trainig": {}}}}, "rows.a"),
        ({"name": "s", "rows": {"a": {"seed": 3}}}, "rows.a"),
        ({"name": "s", "rows": {"a": {"policy": {"kind": "mixd"}}}}, "rows.a.policy.kind"),
        ({"name": "s", "rows": {"a": {}}, "base": {"training": {"updates": 0}}}, "base.training.updates"),
        ({"name": "s", "rows": {"a": {}}, "world": "real"}, "world"),
        ({"name": "s", "rows": {"a": {}}, "resources": {"cpus": "many"}}, "resources.cpus"),
    ],
)
def test_a_faulty_sweep_is_rejected(tree, where, tmp_path):
    assert set(faults(tree, "sweep")) == {where}
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"base": {"student": {"model": "s"}, "method": "sft"}} | tree))
    with pytest.raises(ConfigError):
        sweep = read_sweep(path)
        decode_run({**sweep.base, **sweep.rows["a"], "name": "a"}, "row")  # the settings are decoded with those of the base


# --- ranges, which the schema takes from the docstrings -------------------------------------------------------------------

PLACEHOLDERS = {"model": "m", "path": "p", "url": ["http://127.0.0.1:1/v1"], "source": "student_generated"}


def ranges() -> Iterator[tuple[Section, str, Mapping[str, Any]]]:
    """Every number of a recipe whose description has a range."""
    for section in sections():
        texts = descriptions(section.node)
        for field in dataclasses.fields(section.node):
            is_number = any(word in str(field.type) for word in ("int", "float")) and "Literal['" not in str(field.type)
            if is_number and "tuple" not in str(field.type) and (found := number_range(texts[field.name])):
                yield section, field.name, found


RANGES = list(ranges())


def outside(limits: Mapping[str, Any]) -> Iterator[float]:
    """Numbers just outside a range."""
    for word, value in limits.items():
        step = 0 if word.startswith("exclusive") else 1
        yield value - step if "inimum" in word else value + step


def test_most_numbers_of_a_recipe_have_a_range():
    assert len(RANGES) > 100


@pytest.mark.parametrize(("section", "name", "limits"), RANGES, ids=[f"{s.node.__name__}.{name}" for s, name, _ in RANGES])
def test_a_number_outside_the_range_of_its_description_is_rejected(section, name, limits):
    node = section.node
    given = {f.name: PLACEHOLDERS[f.name] for f in dataclasses.fields(node) if f.default is f.default_factory and f.init}
    if any(part.name == "initialise" for part in dataclasses.fields(node)):
        given["model"] = "m"
    if any(part.name == "url" for part in dataclasses.fields(node)):  # a server needs both, whatever their defaults are
        given |= {"url": PLACEHOLDERS["url"], "model": "m"}
    for value in outside(limits):
        assert math.isfinite(value)
        with pytest.raises(ConfigError, match=name):
            decoding.decode(node, given | {name: value}, NAMES)


# --- files beside a recipe ------------------------------------------------------------------------------------------------


def test_a_copied_recipe_has_its_schema_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    schema = Path("new") / SCHEMA_FILES["run"]
    for _ in range(2):
        assert main(["recipes", "copy", "opt", "--out", "new/mine.yaml"]) == 0
        assert json.loads(schema.read_text(encoding="utf-8")) == SCHEMAS["run"]
        schema.write_text(schema.read_text(encoding="utf-8").replace('"name"', '"former"'))  # of an earlier version
    schema.write_text("{}")
    assert main(["recipes", "copy", "opt", "--out", "new/mine.yaml"]) == 0
    assert schema.read_text() == "{}", "a file that is not of redistill"


def test_the_dataclasses_of_a_recipe_have_distinct_names():
    """The schema refers to them by name."""
    names = [section.node.__name__ for section in sections()]
    assert len(set(names)) == len(names) and set(SCHEMAS["run"]["$defs"]) == set(names) - {"Run"}
