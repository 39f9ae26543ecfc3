"""Recipes of the package: every one is listed, and commands accept their names unless a file has the name."""

import re
from pathlib import Path

import pytest

from redistill.config.recipes import packaged_recipe, packaged_recipes, read_recipe
from redistill.config.run import Run, decode_run, encode_run, load_config
from redistill.errors import ConfigError
from redistill.policies import Adaptive, Buffered, num_buffered
from redistill.runs.sweep import plan_sweep
from redistill.runs.sweep_recipe import read_sweep

RECIPES = packaged_recipes()
KINDS = {kind: [name for name, recipe in RECIPES.items() if recipe.kind == kind] for kind in ("run", "sweep")}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", KINDS["run"])
def test_every_recipe_of_a_run_is_valid_and_survives_printing(name):
    run = load_config(Path(name))
    assert run.name == name and decode_run(encode_run(run), "printed") == run


@pytest.mark.parametrize("name", KINDS["sweep"])
def test_a_sweep_is_read_by_its_name_and_a_copy_of_it_has_the_same_runs(name, folder):
    (folder / "mine.yaml").write_bytes(RECIPES[name].path.read_bytes())
    assert read_sweep(Path("mine.yaml")) == read_sweep(Path(name)) and read_sweep(Path(name)).name == name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_the_head_of_a_recipe_has_a_title_of_one_line_and_its_command(recipe):
    head = recipe.path.read_text(encoding="utf-8").partition("\nname: ")[0]
    assert recipe.command in head and len(recipe.title) <= 76 and re.match(r"[A-Z].+\w$", recipe.title)


def test_a_file_has_precedence_over_a_recipe_of_the_package(folder):
    (folder / "smollm2-dolly").write_text("name: mine\nmethod: sft\nstudent: {model: m}\n")
    assert load_config(Path("smollm2-dolly")).name == "mine"
    assert load_config(RECIPES["smollm2-dolly"].path).name == "smollm2-dolly"


def test_a_folder_with_the_name_of_a_recipe_does_not_hide_it(folder):
    (folder / "smollm2-dolly").mkdir()
    assert load_config(Path("smollm2-dolly")).name == "smollm2-dolly"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("smollm2-doly", "did you mean 'smollm2-dolly'"),
        ("recipes/table1-toy.yaml", "the recipe of the package has the name table1-toy"),
        ("./table1-toy.yaml", "the recipe of the package has the name table1-toy"),
        ("x.yaml", "`redistill recipes list`"),
        ("../recipes/opt", "the recipe of the package has the name opt"),
        (".", "`redistill recipes list`"),
        ("x" * 300, "`redistill recipes list`"),
    ],
)
def test_another_path_is_rejected_with_a_hint(path, hint):
    with pytest.raises(ConfigError, match=re.escape(hint)):
        read_recipe(Path(path))


def test_an_unknown_name_is_rejected():
    with pytest.raises(ConfigError, match=r"'\.\./opt': no such recipe in the package; did you mean 'opt'\?"):
        packaged_recipe("../opt")


def test_the_base_of_a_sweep_is_a_file_beside_it_or_else_a_recipe_of_the_package(folder):
    sweep = folder / "sweeps" / "mine.yaml"
    sweep.parent.mkdir()
    sweep.write_text("name: mine\nbase: smollm2-small\nrows: {sft: {method: sft}}\n")
    assert plan_sweep(sweep).entries[0].run.data.train == ("databricks/databricks-dolly-15k",)
    (sweep.parent / "smollm2-small").write_text("student: {model: other}\n")
    assert read_sweep(sweep).base == {"student": {"model": "other"}}


def buffer_of(run: Run) -> int | None:
    """Size of the replay buffer of a run in sequences; None without a buffer."""
    policy = run.resolved_method.policy
    while policy is not None and not isinstance(policy, Adaptive | Buffered):
        policy = getattr(policy, "source", None)
    return None if policy is None else num_buffered(policy.capacity, run.training.batch_size)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        *((f"table1-{pair}", {"distillm"}) for pair in ("gpt2", "opt", "llama2", "openllama2")),
        ("table3", {"off-policy", "scrg-off-policy"}),
    ],
)
def test_replay_buffers_are_as_large_as_on_the_processes_of_the_reference(name, rows):
    """The reference has 8 sequences of a batch, and a buffer of 1000, on each process."""
    entries = plan_sweep(Path(name)).entries
    sizes = {entry.label: size for entry in entries if (size := buffer_of(entry.run)) is not None}
    batches = {entry.label: entry.run.training.batch_size for entry in entries}
    assert sizes == {label: 1000 * batches[label] // 8 for label in rows}


@pytest.mark.parametrize("method", ["distillm", "imitkd", "gkd"])
def test_the_buffer_of_the_reference_code_grows_with_the_batch(method, folder):
    models = "teacher: {model: t}\nstudent: {model: s}\ndata: {train: [rows.jsonl]}\n"
    (folder / "mine.yaml").write_text(f"name: mine\ncompat: distillm\nmethod: {method}\n{models}")
    sizes = [buffer_of(load_config(Path("mine.yaml"), [f"training.batch_size={size}"])) for size in (8, 32)]
    assert sizes == [1000, 4000]


def test_the_recipe_of_a_run_is_not_a_sweep():
    with pytest.raises(ConfigError, match="smollm2-small: rows: missing; this is the recipe of one run, so use"):
        read_sweep(Path("smollm2-small"))
