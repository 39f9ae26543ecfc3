"""Runs with a cached teacher in a compact form: trained, killed while it is filled, and never mixed with another form."""

import json
from pathlib import Path
from typing import Any

import pytest

from redistill.cli.main import main
from redistill.config.run import Run, load_config
from redistill.errors import ConfigError
from redistill.storage import files
from redistill.teachers.store import TeacherStore
from tests.faults.instants import spread
from tests.faults.test_cached_teacher import KILLED, content, fill, in_a_process, write_recipe
from tests.worlds import tiny_run

FORMS = {"top_k": "{kind: top_k, k: 5}", "sampled": "{kind: sampled, draws: 7}"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compact")


def kd(world: Path, **teacher: Any) -> Run:
    return tiny_run(world, "kd", data={"tests": {}}, teacher=teacher)


@pytest.fixture(scope="module")
def recipe(world: Path) -> Path:
    return write_recipe(world / "kd.yaml", kd(world))


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def store(world: Path, recipe: Path, form: str) -> Path:
    assert main(["cache-teacher", str(recipe), f"teacher.cache_form={FORMS[form]}", "--out", str(world / form)]) == 0
    return world / form


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in files.read_lines(folder / "metrics.jsonl") if "loss" in line]


def test_a_run_with_the_store_learns_what_one_with_the_live_teacher_learns(
    world: Path, recipe: Path, store: Path, form: str
) -> None:
    cached = f"teacher={{kind: cached, path: {store}, form: {FORMS[form]}}}"
    assert main(["train", str(recipe), cached, "--out", str(world / f"run-{form}")]) == 0
    if not (world / "live").exists():
        assert main(["train", str(recipe), "--out", str(world / "live")]) == 0
    mine, theirs = losses(world / f"run-{form}"), losses(world / "live")
    assert len(mine) == len(theirs) == 4 and mine != theirs
    # Forward KL over few classes and one of the rest is a lower bound; an estimate from samples is near its expectation.
    assert all(0 < own <= other * 1.001 if form == "top_k" else abs(own - other) < 0.3 for own, other in zip(mine, theirs))


def test_the_recipe_that_makes_the_store_on_first_use_trains_the_same_student(
    world: Path, recipe: Path, store: Path, form: str
) -> None:
    own = [f"teacher.cache={world / f'first-use-{form}'}", f"teacher.cache_form={FORMS[form]}"]
    assert main(["train", str(recipe), *own, "--out", str(world / f"first-{form}")]) == 0
    assert content(world / f"first-use-{form}") == content(store)
    assert losses(world / f"first-{form}") == losses(world / f"run-{form}")


def test_another_form_or_setting_is_rejected_by_name(
    world: Path, recipe: Path, store: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ["full", *(kind for kind in FORMS if kind != form), "{kind: top_k, k: 6}", "{kind: sampled, draws: 7, seed: 11}"]
    before = content(store)
    for other in others:
        for teacher in (
            [f"teacher={{kind: cached, path: {store}, form: {other}}}"],
            [f"teacher.cache={store}", f"teacher.cache_form={other}"],
        ):
            assert main(["train", str(recipe), *teacher, "--out", str(world / "other")]) == 2, other
            assert "was made with another cache_form" in capsys.readouterr().err.splitlines()[-1], other
    assert main(["train", str(recipe), f"teacher={{kind: cached, path: {store}}}", "--out", str(world / "other")]) == 2
    assert f"another cache_form (cached teacher: {form} " in capsys.readouterr().err.splitlines()[-1]
    assert content(store) == before


@pytest.mark.parametrize("where", ["live", "cached"])
def test_an_objective_that_needs_more_is_rejected_when_the_recipe_is_read(recipe: Path, form: str, where: str) -> None:
    teacher = (
        f"teacher={{kind: cached, path: nowhere, form: {FORMS[form]}}}"
        if where == "cached"
        else f"teacher={{model: nowhere, cache: nowhere, cache_form: {FORMS[form]}}}"
    )
    needs = {
        "method=mgsr": "objective.span_weight: needs teacher logits of the whole vocabulary",
        "objective.divergence=dac_kl": "objective.divergence dac_kl: needs teacher logits of the whole vocabulary",
        "objective.divergence={kind: forward_kl, temperature: 2.0}": "forward_kl with a temperature: needs teacher logits",
    }
    if form == "sampled":
        needs |= {"objective.divergence=rkl": "objective.divergence reverse_kl: needs the teacher's probabilities"}
    for override, fault in needs.items():
        with pytest.raises(ConfigError, match=fault):
            load_config(recipe, [teacher, override])
    load_config(recipe, [teacher])


def test_a_dtype_of_states_is_rejected_for_a_compact_form(recipe: Path, form: str) -> None:
    with pytest.raises(ConfigError, match=rf"teacher.cache_dtype = 'bfloat16': .* which cache_form {form} does not store"):
        load_config(recipe, ["teacher.cache_dtype=bfloat16", f"teacher.cache_form={FORMS[form]}"])


def test_a_store_that_was_killed_is_completed_bitwise_equal(world: Path, form: str) -> None:
    settings = {"top_k": {"kind": "top_k", "k": 5}, "sampled": {"kind": "sampled", "draws": 7}}[form]
    recipe, count = write_recipe(world / f"killed-{form}.yaml", kd(world, cache_form=settings)), world / f"count-{form}"
    whole = world / f"whole-{form}"
    assert in_a_process(fill, recipe, whole, None, 0, count) == 0, recipe.with_suffix(".log").read_text()
    for number in spread(int(count.read_text()), 3):
        out = world / f"killed-{form}-{number}"
        assert in_a_process(fill, recipe, out, number, 0, None) == KILLED, number
        assert in_a_process(fill, recipe, out, None, 0, None) == 0, recipe.with_suffix(".log").read_text()
        assert content(out) == content(whole), number


def test_the_size_is_reported(world: Path, recipe: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache-teacher", str(recipe), f"teacher.cache_form={FORMS[form]}", "--out", str(world / form), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["form"]["kind"] == form
    layout = TeacherStore.open(world / form, report=pytest.fail).layout
    assert found["targets"] == layout.targets and layout.form == found["form"]
