"""Estimates: parameters are exact, costs are affine in the layers, and no weight is read."""

import gc
import itertools
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from redistill.cli.main import main
from redistill.config.methods import METHODS
from redistill.contracts import items_of
from redistill.estimate import estimate
from redistill.estimate.costs import kept_bytes
from redistill.estimate.memory import resident_bytes
from redistill.estimate.slivers import Affine, blueprints
from redistill.estimate.table import print_estimate
from redistill.estimate.workload import Micro, workload, writing
from redistill.models.load import parameter_bytes, parameter_count
from redistill.policies import Fixed, Mixed, Revised, StudentGenerated, TeacherGenerated, TeacherMixed
from redistill.runs.models import load_models
from tests.worlds import GPT2, LLAMA, tiny_run

CPU = torch.device("cpu")
ROLES = ("sft", "distillation")
RUNS = {
    "mgsr-llama": {"method": "mgsr"},
    "sft": {"method": "sft", "teacher": None},
    "lora-gpt2-bf16": {
        "method": "mgsr",
        "config": GPT2,
        "student": {"lora": {"rank": 2}},
        "training": {"precision": "bf16"},
    },
}


def ticks():
    """A clock that has no part in how busy the machine is: each look at it takes a second."""
    count = itertools.count()
    return lambda: float(next(count))


@pytest.fixture(scope="module", params=RUNS, ids=str)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    run = tiny_run(folder, **RUNS[request.param])
    models = load_models(run)
    for weights in folder.glob("*/model.safetensors"):
        weights.write_bytes(b"")  # whoever reads a weight fails
    return SimpleNamespace(name=request.param, run=run, models=models, found=estimate(run, ticks()))


def test_parameters_are_those_of_the_models(case):
    student, teacher = case.models.student, case.models.teacher
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    expected = {"student": parameter_count(student), "trained": trained}
    if teacher is not None:
        expected["teacher"] = parameter_count(teacher)
    assert case.found.parameters == expected


def test_weights_have_their_bytes_and_the_optimiser_two_for_each_of_the_gradient(case):
    parts = case.found.memory.parts
    models = [model for model in (case.models.student, case.models.teacher) if model is not None]
    network = case.run.resolved_method.objective.build_divergence(case.models.vocabulary, 0)
    beside = sum(p.nbytes for p in network.parameters()) if isinstance(network, torch.nn.Module) else 0
    assert parts["weights"] == sum(map(parameter_bytes, models)) + beside
    assert parts["optimiser"] == 2 * parts["gradients"]


def test_the_peak_is_the_largest_phase_and_no_part_is_larger(case):
    memory = case.found.memory
    assert memory.peak_bytes == max(memory.phases.values())
    assert max(memory.parts.values()) < memory.peak_bytes


def test_only_who_writes_takes_time_to_write(case):
    parts = case.found.seconds.parts
    assert (parts["write"] > 0) == (parts["revise"] > 0) == (case.run.method == "mgsr")
    assert (parts["teacher reads"] > 0) == (case.run.teacher is not None and case.run.method != "sft")


def test_a_run_is_its_updates_and_its_validations(case):
    found = case.found
    assert (found.updates, found.validations) == (4, 2)
    assert found.run_seconds == pytest.approx(4 * found.seconds.step + 2 * found.seconds.validation)


def test_table_and_json_say_the_same_peak(case):
    console = Console(record=True, width=100)
    print_estimate(case.found, console)
    tree = json.loads(json.dumps(case.found.as_json()))
    assert f"{tree['memory']['peak_bytes'] / 1e6:,.0f} MB" in console.export_text()


# --- the parts of it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config["model_type"])
def test_what_autograd_keeps_is_affine_in_the_layers(config, tmp_path):
    (tmp_path / "world").mkdir()
    blueprint = blueprints(tiny_run(tmp_path / "world", config=config))["student"]
    ids = torch.ones((2, 24), dtype=torch.long)
    found = {n: kept_bytes(blueprint.sliver(n, 1, CPU).train(), ids, torch.ones_like(ids)) for n in (1, 3, 5)}
    assert Affine.of({1: found[1], 3: found[3]}).at(5) == found[5] > found[1] > 0


def test_what_autograd_keeps_of_a_linear_layer_is_its_input():
    from transformers import GPT2Config

    from redistill.models.initialise import fresh_model

    model = fresh_model(GPT2Config(vocab_size=8, n_embd=4, n_layer=1, n_head=1, n_positions=8), 1)
    ids = torch.ones((1, 4), dtype=torch.long)
    once, twice = (kept_bytes(model, ids.repeat(n, 1), torch.ones_like(ids).repeat(n, 1)) for n in (1, 2))
    assert once < twice <= 2 * once  # of no tensor more than its tokens', and not of the weights


def test_what_autograd_kept_is_freed(tmp_path):
    (tmp_path / "world").mkdir()
    model = blueprints(tiny_run(tmp_path / "world"))["student"].sliver(2, 1, CPU).train()
    outputs: list[weakref.ref[torch.Tensor]] = []
    for module in model.modules():
        module.register_forward_hook(
            lambda module, inputs, output: outputs.append(weakref.ref(output)) if isinstance(output, torch.Tensor) else None
        )
    ids = torch.ones((2, 24), dtype=torch.long)
    kept_bytes(model, ids, torch.ones_like(ids))
    gc.collect()
    assert outputs
    assert not [output for output in outputs if output() is not None]


def test_lengths_are_those_of_the_data_where_it_lies_in_files(tmp_path):
    run = tiny_run(tmp_path)
    work = workload(run, CPU)
    assert work.num_examples == 24
    assert 1 < work.prompt < run.data.tokens.prompt_tokens
    assert "24 rows" in work.notes[0]


def test_lengths_are_the_limits_where_the_data_is_elsewhere(tmp_path):
    work = workload(tiny_run(tmp_path, data={"train": ["owner/name"], "tests": {}}), CPU)
    assert work.num_examples is None
    assert work.prompt == 80
    assert all(len(s.token_ids) == 96 for micros in work.updates for micro in micros for s in micro.sequences)


def test_micro_batches_hold_what_the_methods_terms_read(tmp_path):
    works = {name: workload(tiny_run(tmp_path, name), CPU) for name in ("sft", "kd", "mgsr")}
    num = {
        name: [tuple(sum(role in i.roles for m in micros for i in m.items) for role in ROLES) for micros in work.updates]
        for name, work in works.items()
    }
    assert set(num["sft"]) == {(4, 0)}
    assert set(num["kd"]) == {(0, 4)}
    assert set(num["mgsr"]) == {(4, 4)}


def test_padded_counts_each_sequence_once_and_its_padding(tmp_path):
    micro = workload(tiny_run(tmp_path, "mgsr"), CPU).largest
    both = Micro(items_of(micro.sampled, "sft", "distillation"))
    assert both.padded == len(micro.sampled) * max(len(s.token_ids) for s in micro.sampled)
    assert both.sampled_padded == both.padded and both.rows == sum(s.num_targets for s in micro.sampled)


@pytest.mark.parametrize(
    ("policy", "drafts", "by"),
    [
        (Fixed(), 0, ()),
        (StudentGenerated(), 8, ("student",)),
        (TeacherGenerated(), 8, ("teacher",)),
        (TeacherMixed(), 8, ("student", "teacher")),
        (Mixed(source=Revised(), student_fraction=0.5), 4, ("student",)),
        (Mixed(source=Revised(), student_fraction=0.5, coin="step"), 8, ("student",)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | tuple) else None,
)
def test_a_policy_has_so_much_written_in_its_largest_update(policy, drafts, by):
    found = writing(policy, 8)
    assert found.of(8) == drafts
    assert tuple(who for who in ("student", "teacher") if getattr(found, who)) == by


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_writes(name):
    policy = METHODS[name].policy
    found = writing(policy, 8)
    assert found.student == (policy.sampling is not None)
    assert found.share <= found.most


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux alone tells it so")
def test_the_process_is_what_it_holds_now():
    before = resident_bytes(CPU)
    held = torch.ones(16 * 2**20)
    assert resident_bytes(CPU) - before > 0.9 * held.nbytes


# --- the command --------------------------------------------------------------------------------------------------------


def test_a_model_that_is_nowhere_is_one_line(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{name: a, method: sft, student: {model: ./nowhere}, data: {train: [./rows.jsonl]}}")
    assert main(["estimate", str(recipe)]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "./nowhere: no such folder" in line


def test_a_sweep_has_no_such_row(tmp_path, capsys):
    recipe = Path(__file__).parents[2] / "recipes" / "table1-gpt2.yaml"
    assert main(["estimate", str(recipe), "--row", "nothing"]) != 0
    assert "no such row" in capsys.readouterr().err
