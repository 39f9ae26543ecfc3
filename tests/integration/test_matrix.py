"""Every method with every kind of teacher and engine: an update is made, or the recipe is rejected in one line."""

import json
import sys
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.cli.tables import matrix
from redistill.config.methods import METHODS
from redistill.config.run import encode_run
from tests.integration.test_extension_points import FILES
from tests.worlds import tiny_run

PARTS = """
from dataclasses import dataclass
from typing import ClassVar

import my_engine
import my_teacher
from redistill.config.capabilities import ENGINES, TEACHERS
from redistill.generation.local import LocalEngine, LocalEngineConfig
from redistill.models.load import ModelConfig, load_model
from redistill.processes.memory import Halving
from redistill.teachers.local import LocalTeacher


@dataclass(frozen=True, kw_only=True)
class TopKWithText(my_teacher.TopK):
    @property
    def capabilities(self):
        return TEACHERS["served, top-k with rest"]

    def build(self, tools):
        model, _ = load_model(ModelConfig(model=self.model))
        engine = LocalEngine(
            model, vocabulary=tools.vocabulary, end_ids=tools.end_ids, pad_id=tools.pad_id, batch_size=Halving("size", 8)
        )
        local = LocalTeacher(model, vocabulary=tools.vocabulary, device=tools.device, engine=engine)
        teacher = my_teacher.TopKTeacher(local, self.capabilities)
        teacher.generate = local.generate
        return teacher


@dataclass(frozen=True, kw_only=True)
class Restricted(LocalEngineConfig):
    capabilities: ClassVar = ENGINES["vllm"]

    def build(self, tools):
        engine = super().build(tools)
        engine.capabilities = self.capabilities
        return engine


@dataclass(frozen=True, kw_only=True)
class Fixed(my_engine.FixedText):
    capabilities: ClassVar = ENGINES["fixed text"]
"""
TEACHERS: dict[str, Any] = {
    "full vocabulary": {},
    "cached": {"kind": "cached"},
    "served, top-k with rest": {"kind": "parts:TopKWithText"},
    "cached, sampled": {"kind": "cached", "form": {"kind": "sampled"}},
    "none": None,
}
FORMS = {"cached": "full", "cached, sampled": "sampled"}
ENGINES: dict[str, Any] = {
    "local": {"kind": "local"},
    "vllm": {"kind": "parts:Restricted"},
    "fixed text": {"kind": "parts:Fixed"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny models and data, and a part for each kind of teacher and engine."""
    folder = tmp_path_factory.mktemp("matrix")
    for name, code in {**FILES, "parts": PARTS}.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield folder
    for name in (*FILES, "parts"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def store(world):
    """The folder of the cached teacher with the form of a type; SeqKD and draft have their own texts. Each is made once."""

    def make(name: str, method: str) -> str:
        has_own = method == "seqkd" or (method == "draft" and FORMS[name] == "full")  # draft cannot use a sampled teacher
        method = method if has_own else "kd"
        folder = world / f"store-{FORMS[name]}-{method}"
        if not folder.exists():
            path = world / f"{folder.name}.yaml"
            path.write_text(yaml.safe_dump(recipe(world, method)), encoding="utf-8")
            form = f"teacher.cache_form={{kind: {FORMS[name]}}}"
            assert main(["cache-teacher", str(path), form, "--out", str(folder)]) == 0
        return str(folder)

    return make


def recipe(world, method):
    return encode_run(tiny_run(world, method, training={"updates": 1}, data={"validation_rows": 1, "tests": {}}))


@pytest.mark.parametrize("method", METHODS)
def test_each_cell_runs_an_update_or_is_rejected_in_one_line(world, store, capsys, method):
    tree = recipe(world, method)
    for number, cell in enumerate(cell for cell in matrix() if cell["method"] == method):
        teacher = TEACHERS[cell["teacher"]]
        out = world / f"{method}-{number}"
        model = {"path": store(cell["teacher"], method)} if cell["teacher"] in FORMS else {"model": str(world / "teacher")}
        parts = {
            "teacher": None if teacher is None else model | teacher,
            "engine": ENGINES[cell["engine"]],
            "out": str(out),
        }
        path = world / f"{method}-{number}.yaml"
        path.write_text(yaml.safe_dump({**tree, **parts, "policy": None, "objective": None}), encoding="utf-8")
        capsys.readouterr()
        code = main(["train", str(path), "--allow-code", "parts"])
        printed = capsys.readouterr().err
        if cell["reason"] is None:
            assert code == 0, (cell, printed)
            assert json.loads((out / "run.json").read_text())["status"] == "trained"
            if cell["engine"] == "fixed text":  # once for each kind of teacher
                assert main(["estimate", str(path), "--json", "--allow-code", "parts"]) == 0
        else:
            assert code == 2, (cell, printed)
            assert cell["reason"] in printed and len(printed.splitlines()) == 1, (cell, printed)
            assert not out.exists()
