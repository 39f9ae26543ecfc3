"""External divergences, policies, teachers, engines and methods: imported only if they are allowed."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml

from redistill.cli import main as cli
from redistill.config.run import decode_run, encode_run, load_config
from redistill.errors import ConfigError
from redistill.losses.divergences import SkewForwardKL, TotalVariation
from redistill.policies import Mixed
from redistill.runs.templates import tokens_of
from redistill.testing import check_divergence
from redistill.training.objective import Objective
from tests.worlds import tiny_run

MODULE = '''
"""External components."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from redistill.contracts import EngineCapabilities, TeacherCapabilities

from redistill.losses.divergences import ReverseKL, Softened
from redistill.config.methods import Method
from redistill.training.objective import Objective
from redistill.policies import Fixed

Path("was_run").touch()


@dataclass(frozen=True, kw_only=True)
class Hellinger(Softened):
    """Half the squared distance of the square roots."""

    scale: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.scale <= 0:
            raise ValueError(f"scale = {self.scale}: must be > 0")

    def __call__(self, logq_NV, logp_NV):
        logq_NV, logp_NV = self.softened(logq_NV, logp_NV)
        return 0.5 * self.scale * ((0.5 * logp_NV).exp() - (0.5 * logq_NV).exp()).square().sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Late:
    """Passes everything to its source."""

    source: "PolicyConfig" = field(default_factory=Fixed)

    @property
    def sampling(self):
        return self.source.sampling

    @property
    def needs(self):
        return self.source.needs

    def bind(self, tools):
        return self.source.bind(tools)


@dataclass(frozen=True, kw_only=True)
class TopTeacher:
    """A teacher that gives the most probable classes."""

    top_k: int = 64

    @property
    def capabilities(self):
        return TeacherCapabilities(full_vocabulary=False, top_k=self.top_k)

    def build(self, tools):
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TextEngine:
    """An engine of fixed text."""

    capabilities: ClassVar[EngineCapabilities] = EngineCapabilities(deterministic=True, samples_student=False)
    text: str = "yes"

    def build(self, tools):
        raise NotImplementedError


@dataclass(kw_only=True)
class Thawed:
    def __call__(self, logq_NV, logp_NV):
        return logq_NV.sum(-1)


@dataclass(frozen=True, kw_only=True)
class Mute:
    pass


OWN = Method(
    policy=Late(),
    objective=Objective(sft_weight=0.0, divergence=Hellinger(scale=2.0)),
    summary="own",
    source="here",
    optimiser={"learning_rate": 0.25},
)
NUMBER = 3
'''

LEAST = {"name": "own", "teacher": {"model": "teacher"}, "student": {"model": "student"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with own_parts.py; modules imported from it are removed from sys.modules afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "broken_parts.py").write_text("import nothing_of_this_name\n")
    yield tmp_path
    for name in ("own_parts", "broken_parts"):
        sys.modules.pop(name, None)


def write_recipe(folder: Path, **sections) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(LEAST | sections))
    return path


def error_of(folder: Path, *allowed: str, **sections) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write_recipe(folder, **sections), allow_code=allowed)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{folder / 'recipe.yaml'}: ")


DIVERGENCE = {"objective": {"divergence": {"kind": "own_parts:Hellinger", "scale": 3}}}


# --- short names of the package -----------------------------------------------------------------------------------------


def test_short_names_of_divergences_are_accepted(tmp_path):
    kinds = {"sfkl": "skew_forward_kl", "srkl": "skew_reverse_kl", "jsd": "jensen_shannon", "tvd": "total_variation"}
    kinds |= {"fkl": "forward_kl", "rkl": "reverse_kl", "akl": "adaptive_kl", "ab": "alpha_beta"}
    for short, kind in kinds.items():
        run = load_config(write_recipe(tmp_path, objective={"divergence": short}))
        assert encode_run(run)["objective"]["divergence"]["kind"] == kind
    run = load_config(write_recipe(tmp_path, objective={"divergence": {"kind": "sfkl", "alpha": 0.2, "temperature": 2}}))
    assert run.objective.divergence == SkewForwardKL(alpha=0.2, temperature=2.0)


# --- code that is not allowed is not run -------------------------------------------------------------------------------------


def test_code_that_is_not_allowed_is_not_run_and_the_flag_is_named(folder, capsys):
    recipe = write_recipe(folder, **DIVERGENCE)
    for command in ("config", "run", "train"):
        assert cli.main([command, str(recipe)]) == 2
        assert capsys.readouterr().err == (
            f"redistill: {recipe}: objective.divergence.kind = 'own_parts:Hellinger': "
            "external code is not allowed; add --allow-code own_parts\n"
        )
    assert not (folder / "was_run").exists()
    assert "own_parts" not in sys.modules


@pytest.mark.parametrize(("section", "kind"), [("teacher", "own_parts:TopTeacher"), ("engine", "own_parts:TextEngine")])
def test_a_teacher_or_engine_that_is_not_allowed_is_not_run(folder, section, kind):
    for value in (kind, {"kind": kind}):
        assert error_of(folder, method="kd", **{section: value}) == (
            f"{section}.kind = '{kind}': external code is not allowed; add --allow-code own_parts"
        )
    assert not (folder / "was_run").exists()


def test_allowing_one_module_allows_no_other(folder):
    assert "add --allow-code own_parts" in error_of(folder, "own", "own_parts_too", **DIVERGENCE)
    assert not (folder / "was_run").exists()


def test_a_method_that_is_not_allowed_is_not_run(folder):
    assert error_of(folder, method="own_parts:OWN") == (
        "method = 'own_parts:OWN': external code is not allowed; add --allow-code own_parts"
    )
    assert not (folder / "was_run").exists()


def test_a_module_that_one_call_allowed_is_not_allowed_for_the_next(folder):
    recipe = write_recipe(folder, method="own_parts:OWN", **DIVERGENCE)
    load_config(recipe, allow_code=["own_parts"])
    with pytest.raises(ConfigError, match="add --allow-code own_parts"):
        load_config(recipe)


# --- allowed components work ----------------------------------------------------------------------------------------------


def test_an_allowed_divergence_is_configured_and_survives_printing(folder, capsys):
    recipe = write_recipe(folder, **DIVERGENCE)
    assert cli.main(["config", str(recipe), "--allow-code", "own_parts", "objective.divergence.temperature=2"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["objective"]["divergence"] == {
        "kind": "own_parts:Hellinger",
        "temperature": 2.0,
        "teacher_temperature": 1.0,
        "scale": 3.0,
    }
    run = decode_run(printed, "printed", ["own_parts"])
    assert run == load_config(recipe, ["objective.divergence.temperature=2"], ["own_parts"])
    check_divergence(run.objective.divergence)


def test_a_bare_name_selects_the_defaults(folder):
    run = load_config(write_recipe(folder, objective={"divergence": "own_parts:Hellinger"}), allow_code=["own_parts"])
    assert run.objective.divergence.scale == 1.0


def test_a_policy_may_be_external_at_any_depth(folder):
    policy = {"kind": "mixed", "source": {"kind": "own_parts:Late", "source": "student_generated"}}
    run = load_config(write_recipe(folder, policy=policy, objective={"divergence": "fkl"}), allow_code=["own_parts"])
    assert isinstance(run.policy, Mixed) and type(run.policy.source).__name__ == "Late"
    tree = json.loads(json.dumps(encode_run(run)))
    assert tree["policy"]["source"]["kind"] == "own_parts:Late"
    assert decode_run(tree, "run.json", ["own_parts"]) == run


def test_a_method_may_be_external(folder):
    recipe = write_recipe(folder, method="own_parts:OWN")
    run = load_config(recipe, ["objective.divergence_weight=2"], ["own_parts"])
    assert type(run.resolved_method.policy).__name__ == "Late"
    assert run.resolved_method.objective.divergence.scale == 2.0, "an override keeps the rest of the method's block"
    assert run.resolved_method.objective.divergence_weight == 2.0
    assert run.optimiser.learning_rate == 0.25, "set by the method"
    assert decode_run(encode_run(run), "run.json", ["own_parts"]) == run


OUTSIDE = {"teacher": {"kind": "own_parts:TopTeacher", "top_k": 32}, "engine": "own_parts:TextEngine"}


@pytest.mark.parametrize("method", ["kd", "gkd"])
def test_a_teacher_and_an_engine_may_be_external(folder, method):
    run = load_config(write_recipe(folder, method=method, **OUTSIDE), allow_code=["own_parts"])
    assert (type(run.teacher).__name__, run.teacher.top_k) == ("TopTeacher", 32)
    assert (type(run.engine).__name__, run.engine.text) == ("TextEngine", "yes")
    tree = json.loads(json.dumps(encode_run(run)))
    assert tree["teacher"] == {"kind": "own_parts:TopTeacher", "top_k": 32}
    assert tree["engine"] == {"kind": "own_parts:TextEngine", "text": "yes"}
    assert decode_run(tree, "run.json", ["own_parts"]) == run


def test_declared_capabilities_are_checked_against_the_method(folder):
    assert error_of(folder, "own_parts", method="mgsr", **OUTSIDE) == (
        "objective.span_weight: needs teacher logits of the whole vocabulary, but the teacher provides only its 32 most "
        "probable classes; use a local teacher, or a method without DAC-KL and span loss, such as gkd; also policy mixed: "
        "needs teacher statistics (such as log-probabilities) of generated text, but the teacher provides only its 32 most "
        "probable classes; use a local teacher, or a policy such as student_generated (method mgsr)"
    )
    expected = error_of(folder, "own_parts", method="minillm", engine="own_parts:TextEngine")
    assert expected.startswith("policy rollouts: samples tokens from a mixture") and expected.endswith("(method minillm)")


def test_a_student_cannot_copy_layers_of_an_external_teacher(folder):
    student = {"model": "teacher", "initialise": {"layers": 2}}
    assert error_of(folder, "own_parts", method="kd", student=student, **OUTSIDE).startswith(
        "student.model = 'teacher': needs a teacher that is loaded in this process (teacher.kind local)"
    )


def test_a_package_is_allowed_with_all_its_modules(folder):
    (folder / "own_package").mkdir()
    (folder / "own_package/__init__.py").touch()
    (folder / "own_package/deep.py").write_text(MODULE)
    try:
        run = load_config(write_recipe(folder, objective={"divergence": "own_package.deep:Hellinger"}), (), ["own_package"])
        assert encode_run(run)["objective"]["divergence"]["kind"] == "own_package.deep:Hellinger"
    finally:
        for name in ("own_package", "own_package.deep"):
            sys.modules.pop(name, None)


def test_python_code_may_pass_an_instance(folder):
    run = tiny_run(folder, "kd")
    objective = Objective(sft_weight=0.0, divergence=Own())
    changed = dataclasses.replace(run, objective=objective)
    assert changed.resolved_method.objective.divergence == Own()
    assert encode_run(changed)["objective"]["divergence"] == {
        "kind": f"{__name__}:Own",
        "temperature": 1.0,
        "teacher_temperature": 1.0,
    }


class Own(TotalVariation):
    """A subclass is external; it does not have the kind of its parent."""


# --- invalid components -------------------------------------------------------------------------------------------------

REJECTED = {
    "no such module": ("absent_parts:X", "the module cannot be imported (ModuleNotFoundError: No module named 'absent_parts')"),
    "a module that fails": (
        "broken_parts:X",
        "the module cannot be imported (ModuleNotFoundError: No module named 'nothing_of",
    ),
    "no such attribute": ("own_parts:Helinger", "module own_parts has no Helinger"),
    "no dataclass": (
        "own_parts:NUMBER",
        "is not a frozen dataclass, which a divergence must be; test it with redistill.testing.check_divergence",
    ),
    "not frozen": ("own_parts:Thawed", "is not a frozen dataclass, which a divergence must be"),
    "not callable": (
        "own_parts:Mute",
        "has no __call__, which a divergence must have; test it with redistill.testing.check_divergence",
    ),
    "an expression": ("own_parts:Hellinger()", "the name of an external component must have the form module:Name"),
    "no module": (":Hellinger", "the name of an external component must have the form module:Name"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_an_invalid_divergence_is_rejected_on_one_line(folder, case):
    kind, expected = REJECTED[case]
    allowed = ("own_parts", "broken_parts", "absent_parts")
    assert error_of(folder, *allowed, objective={"divergence": kind}).startswith(
        f"objective.divergence.kind = '{kind}': {expected}"
    )


def test_an_invalid_policy_is_rejected(folder):
    expected = error_of(folder, "own_parts", policy="own_parts:Mute")
    assert expected.startswith("policy.kind = 'own_parts:Mute': has no bind and no sampling")
    assert expected.endswith("which a policy must have; test it with redistill.testing.check_policy")


@pytest.mark.parametrize(("section", "expected"), [("teacher", "a teacher"), ("engine", "an engine")])
def test_an_invalid_teacher_or_engine_is_rejected(folder, section, expected):
    assert error_of(folder, "own_parts", **{section: "own_parts:Mute"}) == (
        f"{section}.kind = 'own_parts:Mute': has no capabilities and no build, which {expected} must have; see docs/adding.md"
    )
    assert error_of(folder, "own_parts", **{section: "own_parts:Thawed"}) == (
        f"{section}.kind = 'own_parts:Thawed': is not a frozen dataclass, which {expected} must be; see docs/adding.md"
    )


def test_a_field_without_external_classes_is_rejected_with_those_that_accept_them(folder):
    policy = {"kind": "rollouts", "source": "own_parts:Late"}
    assert error_of(folder, "own_parts", method="minillm", policy=policy) == (
        "policy.source.kind = 'own_parts:Late': external classes are accepted only for divergence, policy, teacher, "
        "engine; use a kind that redistill defines"
    )


def test_an_invalid_method_is_rejected(folder):
    assert error_of(folder, "own_parts", method="own_parts:NUMBER") == (
        "method = 'own_parts:NUMBER': has the type int; must be a redistill.config.methods.Method"
    )


def test_a_value_that_the_class_rejects_is_reported_with_its_path(folder):
    expected = error_of(folder, "own_parts", objective={"divergence": {"kind": "own_parts:Hellinger", "scale": -1}})
    assert expected == "objective.divergence.scale = -1.0: must be > 0"
    expected = error_of(folder, "own_parts", objective={"divergence": {"kind": "own_parts:Hellinger", "scal": 1}})
    assert expected == "objective.divergence.scal: no such field; did you mean 'scale'?"


# --- a whole run --------------------------------------------------------------------------------------------------------


def test_a_run_trains_and_resumes_with_the_flag_and_is_reported_without_the_code(folder, capsys):
    recipe = folder / "whole.yaml"
    recipe.write_text(yaml.safe_dump(encode_run(tiny_run(folder, "kd", training={"updates": 1}))))
    change = "objective={sft_weight: 0, divergence: own_parts:Hellinger}"
    assert cli.main(["run", str(recipe), change, "--allow-code", "own_parts"]) == 0
    out = folder / "run"
    assert json.loads((out / "run.json").read_text())["config"]["objective"]["divergence"]["kind"] == "own_parts:Hellinger"
    assert cli.main(["run", str(out / "run.json"), "--allow-code", "own_parts"]) == 0, "the run in this folder is resumed"

    sys.modules.pop("own_parts")
    (folder / "own_parts.py").unlink()
    assert cli.main(["report", str(out)]) == 0
    assert tokens_of(str(out)).response_tokens == 16
    capsys.readouterr()
    assert cli.main(["run", str(out / "run.json")]) == 2
    assert "add --allow-code own_parts" in capsys.readouterr().err
