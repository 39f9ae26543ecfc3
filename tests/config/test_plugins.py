"""Divergences, policies and methods from outside the package: run where they are allowed, and nowhere else."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from redistill.cli import main as cli
from redistill.config.run import Run, decode_run, encode_run, load_config
from redistill.errors import ConfigError
from redistill.losses.divergences import SkewForwardKL, TotalVariation
from redistill.policies import Mixed
from redistill.runs.run import tokens_of
from redistill.testing import check_divergence
from redistill.training.objective import Objective
from tests.worlds import tiny_run

MODULE = '''
"""Parts of somebody's own."""

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
    """Another source, whatever it is."""

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
def place(tmp_path, monkeypatch):
    """A folder to stand in, with own_parts.py in it; what is imported from there is forgotten afterwards."""
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


def refusal(folder: Path, *allowed: str, **sections) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write_recipe(folder, **sections), allow_code=allowed)
    line = str(caught.value)
    assert "\n" not in line
    return line.removeprefix(f"{folder / 'recipe.yaml'}: ")


DIVERGENCE = {"objective": {"divergence": {"kind": "own_parts:Hellinger", "scale": 3}}}


# --- the short names of our own -----------------------------------------------------------------------------------------


def test_short_names_of_divergences_are_accepted(tmp_path):
    kinds = {"sfkl": "skew_forward_kl", "srkl": "skew_reverse_kl", "jsd": "jensen_shannon", "tvd": "total_variation"}
    kinds |= {"fkl": "forward_kl", "rkl": "reverse_kl", "akl": "adaptive_kl", "ab": "alpha_beta"}
    for short, kind in kinds.items():
        run = load_config(write_recipe(tmp_path, objective={"divergence": short}))
        assert encode_run(run)["objective"]["divergence"]["kind"] == kind
    run = load_config(write_recipe(tmp_path, objective={"divergence": {"kind": "sfkl", "alpha": 0.2, "temperature": 2}}))
    assert run.objective.divergence == SkewForwardKL(alpha=0.2, temperature=2.0)


# --- what is not allowed is not run -------------------------------------------------------------------------------------


def test_code_that_is_not_allowed_is_not_run_and_the_flag_is_named(place, capsys):
    recipe = write_recipe(place, **DIVERGENCE)
    for command in ("config", "run", "train"):
        assert cli.main([command, str(recipe)]) == 2
        assert capsys.readouterr().err == (
            f"redistill: {recipe}: objective.divergence.kind = 'own_parts:Hellinger': "
            "code from outside is not run; add --allow-code own_parts\n"
        )
    assert not (place / "was_run").exists()
    assert "own_parts" not in sys.modules


@pytest.mark.parametrize(("section", "kind"), [("teacher", "own_parts:TopTeacher"), ("engine", "own_parts:TextEngine")])
def test_a_teacher_or_engine_that_is_not_allowed_is_not_run(place, section, kind):
    for value in (kind, {"kind": kind}):
        assert refusal(place, method="kd", **{section: value}) == (
            f"{section}.kind = '{kind}': code from outside is not run; add --allow-code own_parts"
        )
    assert not (place / "was_run").exists()


def test_allowing_one_module_allows_no_other(place):
    assert "add --allow-code own_parts" in refusal(place, "own", "own_parts_too", **DIVERGENCE)
    assert not (place / "was_run").exists()


def test_a_method_that_is_not_allowed_is_not_run(place):
    assert refusal(place, method="own_parts:OWN") == (
        "method = 'own_parts:OWN': code from outside is not run; add --allow-code own_parts"
    )
    assert not (place / "was_run").exists()


def test_what_one_command_allowed_is_refused_to_the_next(place):
    recipe = write_recipe(place, method="own_parts:OWN", **DIVERGENCE)
    load_config(recipe, allow_code=["own_parts"])
    with pytest.raises(ConfigError, match="add --allow-code own_parts"):
        load_config(recipe)


# --- what is allowed works ----------------------------------------------------------------------------------------------


def test_an_allowed_divergence_is_configured_and_survives_printing(place, capsys):
    recipe = write_recipe(place, **DIVERGENCE)
    assert cli.main(["config", str(recipe), "--allow-code", "own_parts", "objective.divergence.temperature=2"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["objective"]["divergence"] == {"kind": "own_parts:Hellinger", "temperature": 2.0, "scale": 3.0}
    run = decode_run(printed, "printed", ["own_parts"])
    assert run == load_config(recipe, ["objective.divergence.temperature=2"], ["own_parts"])
    check_divergence(run.objective.divergence)


def test_a_bare_name_stands_for_its_defaults(place):
    run = load_config(write_recipe(place, objective={"divergence": "own_parts:Hellinger"}), allow_code=["own_parts"])
    assert run.objective.divergence.scale == 1.0


def test_a_policy_may_be_from_outside_at_any_depth(place):
    policy = {"kind": "mixed", "source": {"kind": "own_parts:Late", "source": "student_generated"}}
    run = load_config(write_recipe(place, policy=policy, objective={"divergence": "fkl"}), allow_code=["own_parts"])
    assert isinstance(run.policy, Mixed) and type(run.policy.source).__name__ == "Late"
    tree = json.loads(json.dumps(encode_run(run)))
    assert tree["policy"]["source"]["kind"] == "own_parts:Late"
    assert decode_run(tree, "run.json", ["own_parts"]) == run


def test_a_method_may_be_from_outside(place):
    recipe = write_recipe(place, method="own_parts:OWN")
    run = load_config(recipe, ["objective.divergence_weight=2"], ["own_parts"])
    assert type(run.resolved_method.policy).__name__ == "Late"
    assert run.resolved_method.objective.divergence.scale == 2.0, "an override keeps the rest of the method's block"
    assert run.resolved_method.objective.divergence_weight == 2.0
    assert run.optimiser.learning_rate == 0.25, "as the method sets it"
    assert decode_run(encode_run(run), "run.json", ["own_parts"]) == run


OUTSIDE = {"teacher": {"kind": "own_parts:TopTeacher", "top_k": 32}, "engine": "own_parts:TextEngine"}


@pytest.mark.parametrize("method", ["kd", "gkd"])
def test_a_teacher_and_an_engine_may_be_from_outside(place, method):
    run = load_config(write_recipe(place, method=method, **OUTSIDE), allow_code=["own_parts"])
    assert (type(run.teacher).__name__, run.teacher.top_k) == ("TopTeacher", 32)
    assert (type(run.engine).__name__, run.engine.text) == ("TextEngine", "yes")
    tree = json.loads(json.dumps(encode_run(run)))
    assert tree["teacher"] == {"kind": "own_parts:TopTeacher", "top_k": 32}
    assert tree["engine"] == {"kind": "own_parts:TextEngine", "text": "yes"}
    assert decode_run(tree, "run.json", ["own_parts"]) == run


def test_what_they_declare_is_checked_against_the_method(place):
    assert refusal(place, "own_parts", method="mgsr", **OUTSIDE) == (
        "objective.span_weight: needs the teacher's logits of the whole vocabulary, and the teacher gives its 32 most probable "
        "classes; use a local teacher, or a method without DAC-KL and span loss, such as gkd (method mgsr)"
    )
    said = refusal(place, "own_parts", method="minillm", engine="own_parts:TextEngine")
    assert said.startswith("policy rollouts: samples tokens from a mixture") and said.endswith("(method minillm)")


def test_a_student_cannot_have_the_layers_of_a_teacher_from_outside(place):
    student = {"model": "teacher", "initialise": {"layers": 2}}
    assert refusal(place, "own_parts", method="kd", student=student, **OUTSIDE).startswith(
        "student.model = 'teacher': needs a teacher whose weights are loaded here (teacher.kind local)"
    )


def test_a_package_is_allowed_with_all_its_modules(place):
    (place / "own_package").mkdir()
    (place / "own_package/__init__.py").touch()
    (place / "own_package/deep.py").write_text(MODULE)
    try:
        run = load_config(write_recipe(place, objective={"divergence": "own_package.deep:Hellinger"}), (), ["own_package"])
        assert encode_run(run)["objective"]["divergence"]["kind"] == "own_package.deep:Hellinger"
    finally:
        for name in ("own_package", "own_package.deep"):
            sys.modules.pop(name, None)


def test_in_python_an_instance_is_simply_used(place):
    run = tiny_run(place, "kd")
    objective = Objective(sft_weight=0.0, divergence=Own())
    changed = Run(**{**vars(run), "objective": objective})
    assert changed.resolved_method.objective.divergence == Own()
    assert encode_run(changed)["objective"]["divergence"] == {"kind": f"{__name__}:Own", "temperature": 1.0}


class Own(TotalVariation):
    """A subclass is a part of somebody's own, not the kind that it comes from."""


# --- what cannot take the place -----------------------------------------------------------------------------------------

REFUSED = {
    "no such module": ("absent_parts:X", "the module cannot be imported (ModuleNotFoundError: No module named 'absent_parts')"),
    "a module that fails": (
        "broken_parts:X",
        "the module cannot be imported (ModuleNotFoundError: No module named 'nothing_of",
    ),
    "nothing of that name": ("own_parts:Helinger", "module own_parts has no Helinger"),
    "no dataclass": ("own_parts:NUMBER", "is no frozen dataclass, as a divergence must be; redistill.testing.check_divergence"),
    "not frozen": ("own_parts:Thawed", "is no frozen dataclass, as a divergence must be"),
    "not callable": ("own_parts:Mute", "has no __call__, as a divergence must; redistill.testing.check_divergence tries one"),
    "a form of its own": ("own_parts:Hellinger()", "a part from outside has the form module:Name"),
    "no module": (":Hellinger", "a part from outside has the form module:Name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_divergence_is_refused_on_one_line(place, case):
    kind, said = REFUSED[case]
    allowed = ("own_parts", "broken_parts", "absent_parts")
    assert refusal(place, *allowed, objective={"divergence": kind}).startswith(f"objective.divergence.kind = '{kind}': {said}")


def test_what_is_no_policy_is_refused(place):
    said = refusal(place, "own_parts", policy="own_parts:Mute")
    assert said.startswith("policy.kind = 'own_parts:Mute': has no bind and no sampling")
    assert said.endswith("as a policy must; redistill.testing.check_policy tries one")


@pytest.mark.parametrize(("section", "said"), [("teacher", "a teacher"), ("engine", "an engine")])
def test_what_is_no_teacher_or_engine_is_refused(place, section, said):
    assert refusal(place, "own_parts", **{section: "own_parts:Mute"}) == (
        f"{section}.kind = 'own_parts:Mute': has no capabilities and no build, as {said} must; docs/adding.md shows one"
    )
    assert refusal(place, "own_parts", **{section: "own_parts:Thawed"}) == (
        f"{section}.kind = 'own_parts:Thawed': is no frozen dataclass, as {said} must be; docs/adding.md shows one"
    )


def test_where_nothing_from_outside_can_stand_the_places_for_it_are_named(place):
    policy = {"kind": "rollouts", "source": "own_parts:Late"}
    assert refusal(place, "own_parts", method="minillm", policy=policy) == (
        "policy.source.kind = 'own_parts:Late': nothing from outside can stand here; outside kinds are for divergence, policy, "
        "teacher, engine"
    )


def test_what_is_no_method_is_refused(place):
    assert refusal(place, "own_parts", method="own_parts:NUMBER") == (
        "method = 'own_parts:NUMBER': is a int; must be a redistill.config.methods.Method"
    )


def test_a_value_that_the_class_refuses_is_named_with_its_path(place):
    said = refusal(place, "own_parts", objective={"divergence": {"kind": "own_parts:Hellinger", "scale": -1}})
    assert said == "objective.divergence.scale = -1.0: must be > 0"
    said = refusal(place, "own_parts", objective={"divergence": {"kind": "own_parts:Hellinger", "scal": 1}})
    assert said == "objective.divergence.scal: no such field; did you mean 'scale'?"


# --- a run with it ------------------------------------------------------------------------------------------------------


def test_a_run_trains_and_resumes_with_the_flag_and_is_read_without_the_code(place, capsys):
    recipe = place / "whole.yaml"
    recipe.write_text(yaml.safe_dump(encode_run(tiny_run(place, "kd", training={"updates": 1}))))
    change = "objective={sft_weight: 0, divergence: own_parts:Hellinger}"
    assert cli.main(["run", str(recipe), change, "--allow-code", "own_parts"]) == 0
    folder = place / "run"
    assert json.loads((folder / "run.json").read_text())["config"]["objective"]["divergence"]["kind"] == "own_parts:Hellinger"
    assert cli.main(["run", str(folder / "run.json"), "--allow-code", "own_parts"]) == 0, "the same folder goes on"

    sys.modules.pop("own_parts")
    (place / "own_parts.py").unlink()
    assert cli.main(["report", str(folder)]) == 0
    assert tokens_of(str(folder)).response_tokens == 16
    capsys.readouterr()
    assert cli.main(["run", str(folder / "run.json")]) == 2
    assert "add --allow-code own_parts" in capsys.readouterr().err
