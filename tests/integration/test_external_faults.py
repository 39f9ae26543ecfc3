"""Faults of external components: one line and an exit code, never a traceback."""

import sys
from typing import Any

import pytest
import yaml

from redistill.cli.main import main
from redistill.config.run import encode_run
from tests.worlds import tiny_run

PARTS = """
from dataclasses import dataclass, field

import torch

from redistill.contracts import EngineCapabilities, Generation, Needs, TeacherCapabilities
from redistill.data.tasks import Task
from redistill.losses.divergences import Softened
from redistill.records import Metric


@dataclass(frozen=True, kw_only=True)
class Engine:
    fault: str = ""

    @property
    def capabilities(self):
        if self.fault == "raises":
            raise RuntimeError("no capabilities")
        flag = "yes" if self.fault == "flag" else False
        return {"mixture": True} if self.fault == "dict" else EngineCapabilities(mixture=flag)

    def build(self, tools):
        if self.fault == "build":
            raise RuntimeError("no server")
        return object() if self.fault == "methods" else Texts(self)


class Texts:
    def __init__(self, node):
        self.fault, self.capabilities = node.fault, node.capabilities
        if node.fault == "other":
            self.capabilities = EngineCapabilities(mixture=True)

    def sync(self, student, step):
        if self.fault == "sync":
            raise OSError("connection lost")

    def generate(self, requests, sampling):
        texts = {"empty": (), "long": (1,) * 999, "range": (10**6,), "list": [1, 2], "strings": ("a",)}
        text = texts.get(self.fault, (1, 2))
        made = [Generation(token_ids=text, finished=False) for _ in requests]
        return made[1:] if self.fault == "short" else [None for _ in requests] if self.fault == "none" else made


@dataclass(frozen=True, kw_only=True)
class Teacher:
    fault: str = ""

    @property
    def capabilities(self):
        if self.fault == "statistics":
            return TeacherCapabilities(full_vocabulary=False, statistics=True, top_k=8)
        return TeacherCapabilities(full_vocabulary=True, mixture=self.fault == "mixture", generates=self.fault == "generates")

    def build(self, tools):
        return Taught(self.capabilities)


class Taught:
    def __init__(self, capabilities):
        self.capabilities = capabilities

    def prepare(self, sequences): ...
    def rows(self, batch): ...
    def faults(self): return 0
    def release(self): ...


@dataclass(frozen=True, kw_only=True)
class Policy:
    fault: str = ""
    sampling: None = None

    @property
    def needs(self):
        return None if self.fault == "needs" else Needs()

    def bind(self, tools):
        return object() if self.fault == "methods" else Source()


class Source:
    def sequences(self, step, items): return []
    def observe(self, validation_loss): ...
    def metrics(self): return {}
    def state_dict(self): return {}
    def load_state_dict(self, state): ...


@dataclass(frozen=True, kw_only=True)
class Scalar(Softened):
    def __call__(self, logq_NV, logp_NV):
        return (logq_NV - logp_NV).square().mean()


def _fail(answer, record):
    raise ZeroDivisionError("no words")


METRIC = Metric(name="failing", title="failing", score=_fail)
TASK = Task(name="odd", description="odd", metrics=METRIC)
"""

FAULTS: dict[str, tuple[int, dict[str, Any], str]] = {
    **{
        f"engine, {fault}": (code, {"engine": {"kind": "parts:Engine", "fault": fault}}, text)
        for fault, code, text in [
            ("raises", 2, "its capabilities cannot be computed (RuntimeError: no capabilities)"),
            ("dict", 2, "capabilities has the type dict; must be a redistill.contracts.EngineCapabilities"),
            ("flag", 2, "mixture = 'yes': must be True or False"),
            ("build", 2, "cannot be built (RuntimeError: no server)"),
            ("methods", 2, "has no sync and no generate"),
            ("other", 2, "other capabilities than the class declares"),
            ("sync", 1, "sync failed (OSError: connection lost)"),
            ("empty", 1, "0 tokens; must be 1 to 16"),
            ("long", 1, "999 tokens; must be 1 to 16"),
            ("range", 1, "a token id is not a whole number below"),
            ("strings", 1, "a token id is not a whole number below"),
            ("list", 1, "must be a redistill.contracts.Generation whose token_ids are a tuple"),
            ("none", 1, "must be a redistill.contracts.Generation"),
            ("short", 1, "3 results for 4 requests"),
        ]
    },
    "teacher, statistics": (2, {"teacher": {"kind": "parts:Teacher", "fault": "statistics"}}, "needs full_vocabulary"),
    "teacher, mixture": (2, {"teacher": {"kind": "parts:Teacher", "fault": "mixture"}}, "declares mixture"),
    "teacher, generate": (2, {"teacher": {"kind": "parts:Teacher", "fault": "generates"}}, "has no generate"),
    "an engine as teacher": (2, {"teacher": {"kind": "parts:Engine"}}, "must be a redistill.contracts.TeacherCapabilities"),
    "a teacher as engine": (2, {"engine": {"kind": "parts:Teacher"}}, "must be a redistill.contracts.EngineCapabilities"),
    "policy, needs": (2, {"policy": {"kind": "parts:Policy", "fault": "needs"}}, "must be a redistill.contracts.Needs"),
    "policy, methods": (2, {"policy": {"kind": "parts:Policy", "fault": "methods"}}, "has no sequences"),
    "policy, answers": (2, {"policy": {"kind": "parts:Policy"}}, "0 sequences for 4 prompts"),
    "divergence, shape": (
        2,
        {"objective": {"sft_weight": 0.0, "divergence": {"kind": "parts:Scalar"}}},
        "Scalar: returned shape []",
    ),
    "metric": (2, {"evaluation": {"metrics": ["rouge_l", "parts:METRIC"]}}, "cannot be computed (ZeroDivisionError: no words)"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "parts.py").write_text(PARTS.replace("TASK = Task(", "TASK = lambda: Task("), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        yield folder
    sys.modules.pop("parts", None)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_external_component_is_reported_in_one_line(world, capsys, fault):
    code, sections, text = FAULTS[fault]
    tree = encode_run(tiny_run(world, "imitkd", training={"updates": 1}, out=f"out-{fault}", data={"tests": {}}))
    path = world / "recipe.yaml"
    path.write_text(yaml.safe_dump({**tree, "policy": None, "objective": None, **sections}), encoding="utf-8")
    capsys.readouterr()
    assert main(["train", str(path), "--allow-code", "parts"]) == code
    printed = capsys.readouterr().err
    assert text in printed.splitlines()[-1], printed
    assert "Traceback" not in printed


def test_the_metrics_of_a_test_set_are_a_tuple(world):
    import parts

    with pytest.raises(ValueError, match=r"test set odd: metrics: must be a tuple"):
        parts.TASK()
