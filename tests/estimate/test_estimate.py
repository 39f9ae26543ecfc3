"""Estimates: parameters are exact, peaks are affine in the layers, and no weight is read."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from redistill.cli.main import main
from redistill.config.methods import METHODS
from redistill.estimate import estimate
from redistill.estimate.measurement import Layers, extrapolated, measure
from redistill.estimate.recorder import Cost, Recorder, resident_bytes
from redistill.estimate.sample_run import sample
from redistill.estimate.shallow import blueprints
from redistill.estimate.table import print_estimate
from redistill.models.load import parameter_bytes, parameter_count
from redistill.policies import Adaptive, Fixed, Mixed, Revised, Rollouts, StudentGenerated, TeacherGenerated
from redistill.runs.models import load_models
from tests.worlds import GPT2, LLAMA, tiny_run

CPU = torch.device("cpu")
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
    """A clock that does not depend on how busy the machine is: each reading takes a second."""
    count = itertools.count()
    return lambda: float(next(count))


@pytest.fixture(scope="module", params=RUNS, ids=str)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    run = tiny_run(folder, **RUNS[request.param])
    models = load_models(run)
    for weights in folder.glob("*/model.safetensors"):
        data = weights.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        weights.write_bytes(data[:header] + b"\xff" * (len(data) - header))  # every weight is NaN: a model that is read fails
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
    assert (parts["write"] > 0) == (case.run.method == "mgsr")
    assert min(parts["revise"], parts["student learns"], parts["vocabulary pass"], parts["optimiser"]) > 0
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


# --- shallow models -----------------------------------------------------------------------------------------------------


def peaks_of(run, folder, *layers):
    """Peak bytes of each part, with these numbers of layers."""
    prints, recorder = blueprints(run), Recorder(ticks(), CPU)
    with recorder.recording():
        measure(sample(run, folder), prints, Layers(*layers), recorder)
    return {cost.name: peak for cost, peak in recorder.costs.items() if cost.kind == "peak"}


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config["model_type"])
def test_the_peak_of_learning_is_affine_in_the_layers(config, tmp_path):
    run = tiny_run(tmp_path, "kd", config=config)
    layers = [Layers(1, 1), Layers(3, 1), Layers(1, 3), Layers(6, 4)]
    peaks = {each: peaks_of(run, tmp_path, *each)["vocabulary pass"] for each in layers}
    whole = peaks.pop(layers[-1])
    assert extrapolated(peaks, layers[-1], "student", "teacher") == whole
    assert extrapolated(peaks, layers[-1], "student") < whole


def test_a_cache_of_fixed_size_is_in_memory_while_the_student_learns(tmp_path):
    growing = replace(tiny_run(tmp_path, "gkd"), policy=StudentGenerated())
    static = replace(growing, engine=replace(growing.engine, decoder="static"))
    cache_bytes = 2 * 4 * 128 * LLAMA["hidden_size"] * 4  # keys and values of one layer: 4 sequences, 128 columns, float32
    for layers in (1, 3):
        less, more = (peaks_of(run, tmp_path, layers, 1)["vocabulary pass"] for run in (growing, static))
        assert more - less == pytest.approx(layers * cache_bytes, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_executed_and_generates_if_its_policy_does(method, tmp_path):
    run = tiny_run(tmp_path, method, **({"teacher": None} if method == "sft" else {}))
    recorder, policy = Recorder(ticks(), CPU), METHODS[method].policy
    measure(sample(run, tmp_path), blueprints(run), Layers(1, int(run.teacher is not None)), recorder)
    generates = policy.sampling is not None or policy.needs.teacher_text
    assert any(cost.name == "write" for cost in recorder.costs) == generates
    assert not (tmp_path / "run").exists()  # nothing is written to the folder of the run


def test_a_quantised_base_is_counted_at_its_size(tmp_path):
    run = tiny_run(tmp_path, student={"lora": {"rank": 2, "quantise": "int8"}})
    blueprint = blueprints(run)["student"]
    model = blueprint.shallow(1, 1)
    (layer,) = model.get_base_model().model.layers
    weights = sum(weight.numel() for name, weight in layer.named_parameters() if weight.ndim == 2 and "lora_" not in name)
    assert blueprint.bytes_saved(model) == 3 * weights  # one byte instead of four


def test_a_quantised_teacher_is_counted_at_its_size(tmp_path):
    found = {}
    for name, teacher in (("plain", {}), ("int8", {"quantise": "int8"})):
        run, recorder = tiny_run(tmp_path, "kd", out=name, teacher=teacher), Recorder(ticks(), CPU)
        found[name] = measure(sample(run, tmp_path).in_folder(name), blueprints(run), Layers(1, 1), recorder)
    weights = 4 * 32 * 32 + 3 * 32 * 64  # of one layer of the teacher: one byte each instead of four
    assert found["int8"][Cost("size", "saved")] == found["plain"][Cost("size", "saved")] + 3 * weights


# --- the sample ---------------------------------------------------------------------------------------------------------


def test_lengths_are_those_of_the_data_where_it_is_in_files(tmp_path):
    found = sample(tiny_run(tmp_path), tmp_path)
    assert found.num_examples == 24
    assert all(1 < len(example.prompt_ids) < 80 for example in found.data.train)
    assert "24 rows" in found.notes[0]
    assert found.in_updates("2 epochs") == 12


def test_lengths_are_the_limits_where_the_data_is_elsewhere(tmp_path):
    found = sample(tiny_run(tmp_path, data={"train": ["owner/name"], "tests": {}}), tmp_path)
    assert found.num_examples is found.in_updates("2 epochs") is None
    assert found.in_updates(7) == 7
    assert {(len(example.prompt_ids), len(example.token_ids)) for example in found.data.train} == {(80, 96)}


@pytest.mark.parametrize(
    ("policy", "generated", "generating"),
    [
        (Fixed(), 0, 1.0),
        (StudentGenerated(), 8, 1.0),
        (TeacherGenerated(), 8, 0.25),  # four epochs, and each answer is generated once
        (Mixed(source=Revised(), student_fraction=0.5), 4, 1.0),
        (Mixed(source=Revised(), student_fraction=0.25, coin="step"), 8, 0.25),
        (Adaptive(capacity=12), 4, 1.0),
        (Rollouts(num_rollouts=256, inner_epochs=4), 8, 0.25),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | float) else None,
)
def test_the_sampled_update_generates_what_an_update_may(policy, generated, generating, tmp_path, monkeypatch):
    sequences = []
    run = replace(tiny_run(tmp_path, "gkd", training={"batch_size": 8, "updates": 12}), policy=policy)
    monkeypatch.setattr("redistill.estimate.measurement.gradients", lambda draw, parts, step: sequences.extend(draw.items))
    found = sample(run, tmp_path)
    assert found.generating == generating
    measure(found, blueprints(run), Layers(1, 1), Recorder(ticks(), CPU))
    assert sum(item.sequence.origin != "dataset" for item in sequences) == generated


def test_a_corpus_is_read_as_long_blocks(tmp_path, monkeypatch):
    draws = []
    run = tiny_run(tmp_path, "minillm", data={"corpus": ["owner/name"]})
    monkeypatch.setattr("redistill.estimate.measurement.gradients", lambda draw, parts, step: draws.append(draw))
    measure(sample(run, tmp_path), blueprints(run), Layers(1, 1), Recorder(ticks(), CPU))
    assert [len(block.token_ids) for draw in draws for block in draw.corpus] == [96] * 4


def test_parts_of_other_processes_are_not_contacted(tmp_path):
    run = tiny_run(tmp_path)
    outside = SimpleNamespace(build=lambda tools: pytest.fail("it was built"))
    for name in ("engine", "teacher"):
        object.__setattr__(run, name, outside)
    prints, found = blueprints(run), sample(run, tmp_path)
    sizes = measure(found, prints, Layers(3, 0), Recorder(ticks(), CPU))
    assert sizes[Cost("size", "teacher")] == 0
    weights = sizes[Cost("size", "weights")] - sizes[Cost("size", "saved")]
    network = run.resolved_method.objective.build_divergence(prints["student"].config.vocab_size, 0)
    assert weights == parameter_bytes(load_models(tiny_run(tmp_path)).student) + parameter_bytes(network)
    assert len(found.notes) == 4


# --- the recorder -------------------------------------------------------------------------------------------------------


def test_a_peak_is_what_is_alive_at_once_and_belongs_to_the_innermost_part():
    recorder = Recorder(ticks(), CPU)
    with recorder.recording():
        with recorder.region("outer"):
            kept = torch.ones(1000)
            for _ in range(3):
                torch.ones(500)  # freed at once
            with recorder.region("inner"):
                torch.ones(2000)
        del kept
    assert recorder.costs[Cost("peak", "outer")] == 6000
    assert recorder.costs[Cost("peak", "inner")] == 12000


def test_seconds_of_a_part_are_those_outside_of_the_parts_in_it():
    now = iter([0.0, 1.0, 3.0, 8.0, 9.0])
    recorder = Recorder(lambda: next(now), CPU)
    with recorder.region("outer"), recorder.region("inner", "student"):
        pass
    assert recorder.costs[Cost("seconds", "outer", ())] == 3.0
    assert recorder.costs[Cost("seconds", "inner", ("student",))] == 5.0


def test_a_cost_does_not_fall_with_the_layers():
    found = {Layers(1, 0): 3.0, Layers(3, 0): 2.0}
    assert extrapolated(found, Layers(9, 0), "student", "teacher") == 3.0
    assert extrapolated(found, Layers(9, 0)) == 2.0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports it")
def test_the_resident_memory_is_what_the_process_holds_now():
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
