"""The configuration of a run: encoding and decoding, the recipes, and invalid settings."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from redistill.config.decode import kind_of
from redistill.config.methods import METHODS, as_in_reference, method
from redistill.config.run import Run, decode_run, encode_run, load_config, up_to_date
from redistill.errors import ConfigError
from redistill.losses.dac_kl import DacKLConfig
from redistill.losses.divergences import Divergence
from redistill.policies import Fixed, PolicyConfig, Rollouts
from redistill.training.objective import Objective

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = [path for path in sorted(FOLDER.glob("*.yaml")) if "\nrows:" not in path.read_text()]  # sweeps: test_sweep.py
LEAST = {"name": "r", "student": {"model": "s"}, "teacher": {"model": "t"}}
POLICIES = [node for member in get_args(PolicyConfig) for node in member.examples()]
DIVERGENCES = [node for member in get_args(Divergence | DacKLConfig) for node in member.examples()]


def round_trip(run: Run) -> Run:
    """Encode and decode a run, through JSON and through YAML."""
    tree = encode_run(run)
    assert decode_run(json.loads(json.dumps(tree)), "json") == run
    return decode_run(yaml.safe_load(yaml.safe_dump(tree)), "yaml")


def least(**sections: object) -> Run:
    return decode_run({**LEAST, **sections}, "test")


def error_of(**sections: object) -> str:
    with pytest.raises(ConfigError) as caught:
        least(**sections)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- encoding and decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_survives_a_round_trip(name: str) -> None:
    plain = least(method=name)
    assert round_trip(plain) == plain
    spelled_out = dataclasses.replace(plain, policy=METHODS[name].policy, objective=METHODS[name].objective)
    assert round_trip(spelled_out) == spelled_out
    assert spelled_out.resolved_method == plain.resolved_method == method(name)


@pytest.mark.parametrize("node", POLICIES, ids=repr)
def test_every_policy_survives_a_round_trip(node: PolicyConfig) -> None:
    run = dataclasses.replace(least(), policy=node)
    assert round_trip(run) == run
    assert encode_run(run)["policy"]["kind"] == kind_of(type(node))


@pytest.mark.parametrize("node", DIVERGENCES, ids=repr)
def test_every_divergence_survives_a_round_trip(node: Divergence | DacKLConfig) -> None:
    run = dataclasses.replace(least(), objective=Objective(divergence=node, divergence_weight=0.5))
    assert round_trip(run) == run


@pytest.mark.parametrize("objective", Objective.examples(), ids=repr)
def test_every_objective_survives_a_round_trip(objective: Objective) -> None:
    policy = Fixed() if objective.policy_gradient is None else Rollouts()
    run = dataclasses.replace(least(), policy=policy, objective=objective)
    assert round_trip(run) == run


def test_every_member_of_a_union_gives_examples_and_has_a_kind_of_its_own() -> None:
    for union in (PolicyConfig, Divergence | DacKLConfig):
        members = get_args(union) or (union,)
        for member in members:
            assert {type(example) for example in member.examples()} == {member}
        assert len({kind_of(member) for member in members}) == len(members)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_a_run(path: Path) -> None:
    run = load_config(path)
    assert round_trip(run) == run
    assert run.name.startswith(path.stem), "the run folder is named after the recipe"


def test_there_are_recipes() -> None:
    assert RECIPES


# --- files --------------------------------------------------------------------------------------------------------------


def test_run_json_is_a_recipe(tmp_path: Path) -> None:
    run = least(seed=7)
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"schema": 1, "status": "finished", "config": encode_run(run)}))
    assert load_config(path) == run
    assert load_config(path, ["training.updates=3"]).training.updates == 3


def test_errors_name_the_file_and_the_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: r\nstudent: {model: s}\nteacher: {model: t}\nobjective: {divergence: {kind: fkl}, span_weigt: 1}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: objective.span_weigt: no such field; did you mean 'span_weight'?"
    path.write_text("name: r\nstudent: {model: s}\nteacher: {model: t}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["policy={kind: mixed, source: {kind: revised, rounds: 0}}"])
    assert str(caught.value).startswith(f"{path}: policy.source.rounds = 0: must be >= 1")


# --- what a run is ------------------------------------------------------------------------------------------------------


def test_a_policy_or_objective_replaces_the_methods_as_a_whole() -> None:
    run = least(policy="fixed", objective={"sft_weight": 0.5})
    resolved = run.resolved_method
    assert resolved.policy == Fixed() and resolved.objective == Objective(sft_weight=0.5)
    assert resolved.summary == METHODS["mgsr"].summary


def test_the_folder_is_out_or_the_name() -> None:
    assert least().folder == Path("runs/r")
    assert least(out="else/where").folder == Path("else/where")


def test_a_teacher_is_required_by_methods_and_students_that_use_it() -> None:
    assert least(method="sft", teacher=None).teacher is None
    assert error_of(method="kd", teacher=None) == (
        "test: teacher: missing; set one, or use the method sft, which needs none (method kd)"
    )
    of_layers = {"model": "teacher", "initialise": {"layers": 2}}
    assert "student.model = 'teacher': needs a teacher" in error_of(method="sft", teacher=None, student=of_layers)


def test_teacher_and_engine_are_local_by_default() -> None:
    plain = least()
    assert plain == least(teacher={"kind": "local", "model": "t"}, engine="local") == least(engine={"kind": "local"})
    tree = encode_run(plain)
    assert tree["teacher"]["kind"] == "local"
    assert tree["engine"] == {"kind": "local", "ahead": 1, "decoder": None, "max_staleness": None}
    assert round_trip(plain) == plain


def test_a_stored_run_without_kinds_is_decoded() -> None:
    tree = encode_run(least())
    del tree["teacher"]["kind"], tree["engine"], tree["placement"]
    assert decode_run(tree, "test") == least() and up_to_date(tree) == encode_run(least())


def test_generated_text_that_no_term_uses_is_rejected() -> None:
    for policy in ("student_generated", "revised", "mixed"):
        assert "policy: generates text that no term of the objective uses" in error_of(
            method="sft", teacher=None, policy=policy
        )
    assert least(method="sft", policy={"kind": "mixed", "source": "fixed"})


def test_short_names_of_divergences_are_accepted() -> None:
    by_short = least(objective={"divergence": "fkl"})
    assert by_short == least(objective={"divergence": "forward_kl"})


REJECTED = {
    "student without a model": ({"student": {"model": "teacher"}}, "student.initialise: missing; choose layers"),
    "no such teacher": ({"teacher": {"kind": "remote"}}, "teacher.kind = 'remote': no such kind; choose one of local"),
    "no such engine": ({"engine": "loca"}, "engine.kind = 'loca': no such kind; did you mean 'local'?"),
    "unknown field of an engine": (
        {"engine": {"size": 1}},
        "engine.size: no such field; allowed are ahead, decoder, max_staleness",
    ),
    "updates ahead": ({"engine": {"ahead": 0}}, "engine.ahead = 0: must lie in [1, 1024]"),
    "no such placement": ({"placement": "shared"}, "placement = 'shared': must be 'auto' or 'sharded'"),
    "a sharded student of 4 bits": (
        {"placement": "sharded", "student": {"model": "s", "lora": {"quantise": "nf4"}}},
        "placement = 'sharded': needs lora.quantise = 'none' and lora.export = 'merged'",
    ),
    "a sharded student's adapter alone": (
        {"placement": "sharded", "student": {"model": "s", "lora": {"export": "adapter"}}},
        "placement = 'sharded': needs lora.quantise = 'none' and lora.export = 'merged'",
    ),
    "a sharded student, compiled": (
        {"placement": "sharded", "training": {"compile": "all"}},
        "placement = 'sharded': cannot run with training.compile = 'all'; set training.compile to rows or auto",
    ),
    "no layers": ({"student": {"model": "teacher", "initialise": {"layers": 0}}}, "student.initialise.layers = 0"),
    "layers twice": ({"student": {"model": "teacher", "initialise": {"layers": [0, 0]}}}, "layers = [0, 0]: must be"),
    "no model": ({"student": {"model": " "}}, "student.model = '': must be a hub name"),
    "no tuning": ({"teacher": {"model": "t", "finetune": {"updates": 0}}}, "teacher.finetune.updates = 0: must be >= 1"),
    "tuning at rate 0": (
        {"teacher": {"model": "t", "finetune": {"learning_rate": 0}}},
        "teacher.finetune.learning_rate = 0.0: must be > 0",
    ),
    "a test set outside of the folder": (
        {"data": {"tests": {"../mine": "x.jsonl"}}},
        "data.tests: '../mine': the name of a test set may contain letters, digits, '.', '_' and '-'",
    ),
    "a test set with a space": ({"data": {"tests": {"my set": "x.jsonl"}}}, "rename it to my-set"),
    "no data": ({"data": {"train": []}}, "data.train: empty; name at least one file"),
    "nothing held out": ({"data": {"validation_rows": 0}}, "data.validation_rows = 0: must be >= 1"),
    "no training rows": ({"data": {"max_train_rows": 0}}, "data.max_train_rows = 0: must be >= 1"),
    "negative number of bad rows": ({"data": {"max_bad_rows": -1}}, "data.max_bad_rows = -1: must be >= 0"),
    "no prompt": ({"data": {"tokens": {"prompt_tokens": 0}}}, "data.tokens.prompt_tokens = 0: must be >= 1"),
    "no term": ({"objective": {"sft_weight": 0}}, "objective: no term has a weight"),
    "negative weight": ({"objective": {"span_weight": -1}}, "objective.span_weight = -1.0: must be >= 0"),
    "infinite weight": ({"objective": {"sft_weight": float("inf")}}, "objective.sft_weight = inf: must be"),
    "rate": ({"optimiser": {"learning_rate": 0}}, "optimiser.learning_rate = 0.0: must be > 0"),
    "final rate": ({"optimiser": {"final_learning_rate": 1}}, "optimiser.final_learning_rate = 1.0: must lie in [0, 0.0005]"),
    "final rate above the clip network's": (
        {"optimiser": {"final_learning_rate": 1e-4, "clip_network_learning_rate": 1e-5}},
        "optimiser.final_learning_rate = 0.0001: must lie in [0,",
    ),
    "decay": ({"optimiser": {"weight_decay": -1}}, "optimiser.weight_decay = -1.0: must be >= 0"),
    "infinite decay": ({"optimiser": {"weight_decay": float("inf")}}, "optimiser.weight_decay = inf: must be"),
    "ahead": (
        {"method": "kd", "engine": {"kind": "local", "ahead": 4}},
        "engine.ahead = 4: must be 1 with the policy fixed, which",
    ),
    "warm-up": ({"optimiser": {"warmup_updates": -1}}, "optimiser.warmup_updates = -1: must be >= 0"),
    "betas": ({"optimiser": {"betas": [0.9, 1.0]}}, "optimiser.betas = [0.9, 1.0]: both must lie in [0, 1)"),
    "updates": ({"training": {"updates": 0}}, "training.updates = 0: must be >= 1"),
    "micro-batch": ({"training": {"micro_batch_size": 0}}, "training.micro_batch_size = 0: must be >= 1"),
    "saving": ({"training": {"save_every": -1}}, "training.save_every = -1: must be >= 0"),
    "patience": ({"training": {"patience": 0}}, "training.patience = 0: must be >= 1"),
    "seeds": ({"evaluation": {"seeds": []}}, "evaluation.seeds = []: must have at least one"),
    "top_p": ({"evaluation": {"top_p": 0}}, "evaluation.top_p = 0.0: must lie in (0, 1]"),
    "temperature": ({"evaluation": {"temperature": float("nan")}}, "evaluation.temperature = nan: must be >= 0"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_an_invalid_setting_is_rejected_with_its_path(case: str) -> None:
    sections, expected = REJECTED[case]
    assert expected in error_of(**sections)


def test_a_run_of_an_older_version_gets_defaults_for_later_fields() -> None:
    run = least(seed=5)
    tree = encode_run(run)
    del tree["compat"], tree["training"]["choose_by"]
    assert up_to_date(tree) == encode_run(run)
    assert up_to_date({"no": "run"}) == {"no": "run"}


def test_an_override_of_one_field_keeps_the_rest_of_the_compatibility_mode(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: r\nmethod: gkd\ncompat: distillm\nstudent: {model: s}\nteacher: {model: t}\n")
    policy = load_config(path, ["policy.student_fraction=0.3"]).resolved_method.policy
    assert policy == dataclasses.replace(as_in_reference("gkd").policy, student_fraction=0.3)


@pytest.mark.parametrize(
    "policy", [{"kind": "buffered", "capacity": 7}, {"kind": "mixed", "source": {"kind": "adaptive", "capacity": 7}}]
)
def test_a_buffer_smaller_than_a_batch_is_rejected_before_anything_is_loaded(policy: dict[str, Any]) -> None:
    assert "capacity = 7: must be at least training.batch_size = 8" in error_of(method="gkd", policy=policy)


def test_roll_outs_cannot_be_the_source_of_another_policy() -> None:
    assert "rollouts cannot be the source of another policy" in error_of(policy={"kind": "mixed", "source": "rollouts"})


def test_adapters_of_a_fine_tuned_student_cannot_be_exported_without_their_base() -> None:
    student = {"model": "s", "lora": {"export": "adapter"}, "finetune": {"updates": 2}}
    assert "student.lora.export = 'adapter'" in error_of(method="gkd", student=student)
    assert least(method="kd", student=student), "which is not fine-tuned first"


def test_a_length_that_is_too_large_is_rejected() -> None:
    assert "updates" in error_of(training={"updates": "9" * 400 + " epochs"})
