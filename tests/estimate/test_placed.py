"""Calculated memory of a process: sharding divides what a process always has, and generation needs the whole student."""

import json
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from redistill.cli.main import main
from redistill.config.run import encode_run
from redistill.config.sections import TeacherConfig
from redistill.estimate import Estimate, Memory, Seconds
from redistill.estimate.placed import PlacedMemory, placed_memory
from redistill.estimate.shallow import blueprints
from redistill.estimate.table import print_estimate
from redistill.models.families import layer_list
from redistill.models.load import parameter_bytes
from tests.worlds import tiny_run

GPU_BYTES = 10**9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("placed"), "mgsr", training={"batch_size": 8})


def calculated(run, processes=2, sharded=True, memory_bytes=GPU_BYTES):
    return placed_memory(run, blueprints(run), processes, sharded=sharded, memory_bytes=memory_bytes)


def test_sharding_divides_models_and_optimiser_state_in_every_phase(run):
    whole, part = calculated(run, sharded=False), calculated(run)
    for phase, parts in whole.phases.items():
        for name in {"student", "teacher", "optimiser", "gradients"} & parts.keys():
            assert part.phases[phase][name] == -(-parts[name] // 2), (phase, name)
        assert "gathered" not in parts and part.phases[phase]["gathered"] > 0


def test_a_sharded_student_is_whole_in_generation_and_validation_only(run):
    size = parameter_bytes(blueprints(run)["student"].empty(0))
    gathered = {phase: parts["gathered"] for phase, parts in calculated(run).phases.items()}
    assert min(gathered["generation"], gathered["validation"]) > size
    assert gathered["loading"] < size


@pytest.mark.parametrize("memory_bytes", [None, GPU_BYTES])
def test_one_process_is_never_sharded(run, memory_bytes):
    assert calculated(run, 1, True, memory_bytes) == calculated(run, 1, False, memory_bytes)


@pytest.mark.parametrize("teacher", [{"quantise": "nf4"}, {"offload": "cpu"}])
def test_a_quantised_or_offloaded_teacher_is_not_sharded_and_is_smaller(run, teacher):
    assert isinstance(run.teacher, TeacherConfig)
    smaller = replace(run, teacher=replace(run.teacher, **teacher))
    one, other = (calculated(smaller, sharded=sharded).phases["loading"]["teacher"] for sharded in (False, True))
    assert one == other < calculated(run, sharded=False).phases["loading"]["teacher"]


def test_a_teacher_that_generates_is_whole_in_generation(tmp_path):
    drawn = [tiny_run(tmp_path, "kd", policy={"kind": kind}) for kind in ("student_generated", "teacher_mixed")]
    alone, mixed = (calculated(each).phases["generation"] for each in drawn)
    layers = layer_list(blueprints(drawn[0])["teacher"].empty(0))[1]  # three, of which two are gathered at a time otherwise
    assert mixed["gathered"] - alone["gathered"] == parameter_bytes(layers[2])
    assert mixed["KV cache"] > alone["KV cache"]


def test_the_prefix_memory_has_at_most_a_quarter_of_the_rest_for_each_model(run):
    for gpu_bytes in (10**6, 10**7, 10**9):
        assert calculated(run, memory_bytes=gpu_bytes).phases["generation"].get("prefix memory", 0) <= gpu_bytes / 2


def test_the_largest_phase_decides_whether_a_run_fits():
    found = PlacedMemory(phases={"generation": {"student": 60, "KV cache": 30}, "training": {"student": 70}}, tokens=1)
    assert (found.largest_phase, found.peak_bytes) == ("generation", 90)
    assert found.fits(100) and not found.fits(95)


def test_the_table_has_each_phase_and_placement(run):
    placements = {"replicated": calculated(run, sharded=False), "sharded": calculated(run)}
    memory, seconds = Memory(parts={}, phases={"write": 1}), Seconds(parts={}, validation=0.0)
    found = Estimate(
        parameters={}, memory=memory, seconds=seconds, updates=1, validations=1, notes=(), processes=2, placements=placements
    )
    console = Console(record=True, width=100)
    print_estimate(found, console)
    text = console.export_text()
    assert "calculated for each of 2 processes" in text
    for name, placed in placements.items():
        assert name in text and f"{placed.peak_bytes / 1e6:,.0f} MB" in text
        assert json.loads(json.dumps(found.as_json()))["placements"][name]["peak_bytes"] == placed.peak_bytes


def test_the_command_calculates_both_placements(run, capsys, tmp_path):
    assert main(["estimate", write_recipe(run, tmp_path), "--processes", "2", "--memory", "1", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["processes"] == 2 and set(tree["placements"]) == {"replicated", "sharded"}


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--processes", "3"], "must be a multiple of 3"), (["--memory", "0"], "must be > 0")]
)
def test_numbers_that_cannot_be_used_are_one_line(run, arguments, message, capsys, tmp_path):
    assert main(["estimate", write_recipe(run, tmp_path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def write_recipe(run, folder):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(encode_run(run)), encoding="utf-8")
    return str(path)
